"""Delimited text: CSV and TSV files, with quotes that enclose fields told from quotes that belong to a text.

A text that begins with a quotation mark opens a field in quotes, and a reader then takes all lines up to the next mark
for one field, so that rows vanish. Where the lines of such a field could be rows themselves, nothing is guessed: the
file is refused until `quotes` says what the marks are.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from iai_hf.errors import DataError

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
WORDS = 4  # more are hardly a column's name
NO_QUOTES = "if the quotation marks are part of the texts, say so: Columns(quotes=False)"


def read_delimited(path: Path, quotes: bool | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield `(place, row)` of a `.csv` or `.tsv` file.

    Args:
        quotes: whether quotation marks enclose fields; None where they may, but not around what may be whole rows.

    Raises:
        DataError: a row has not as many fields as the header, a column's name occurs twice, quotes are not closed or
            enclose rows; the line is named.
    """
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    quoting: Any = csv.QUOTE_NONE if quotes is False else csv.QUOTE_MINIMAL
    with open(path, encoding="utf-8-sig", newline="") as file:
        lines = _Lines(file)
        reader = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)
        header: list[str] | None = None
        while True:
            first, lines.record = reader.line_num + 1, []
            place = f"{path} line {first}"
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise DataError(_cause(path, first, lines.record, delimiter, error), options=("quotes",)) from error
            if not row:
                continue
            if header is None:
                header = row
                check_header(path, header)
                quotes = quotes or lines.record[0].startswith('"') or None  # a name in quotes: the writer quotes fields
                continue
            if len(row) != len(header):
                raise DataError(
                    f"{place} has {len(row)} fields, the header has {len(header)}; expected as many fields"
                    f"{hint(header, delimiter)}"
                )
            if quotes is None and len(lines.record) > 1 and _are_rows(lines.record, delimiter, len(header)):
                raise DataError(
                    f"{place}: a quotation mark opens a field that ends in line {reader.line_num}, and these "
                    f"{len(lines.record)} lines have the {len(header)} field(s) of a row each, so rows would be lost; "
                    f"{NO_QUOTES}; if it is one text of several lines: Columns(quotes=True)",
                    options=("quotes",),
                )
            yield place, dict(zip(header, row, strict=True))


def hint(names: Sequence[Any], delimiter: str | None = None) -> str:
    """What to try where columns' names look like several that are separated otherwise, or like a row; else empty."""
    if names and str(names[0]).lstrip().startswith("{"):
        return " (the first line is JSON: name the file .jsonl)"
    if any(len(str(name).split()) > WORDS for name in names):
        return " (the first line looks like a row: is the line with the columns' names missing?)"
    if len(names) != 1:
        return ""
    found = [mark for mark in SEPARATORS if mark != delimiter and mark in str(names[0])]
    if not found:
        return ""
    mark = max(found, key=str(names[0]).count)
    remedy = "name it .tsv" if mark == "\t" else "name it .csv" if mark == "," else "separate them by commas or tabs"
    return f" (the header {str(names[0])[:60]!r} looks separated by {SEPARATORS[mark]}: {remedy})"


class _Lines:
    """Lines of a file, those of the record under way being kept."""

    def __init__(self, file: TextIO) -> None:
        self.file, self.record = file, list[str]()

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = next(self.file)
        self.record.append(line)
        return line


def check_header(path: Path, header: Sequence[str]) -> None:
    """Raise DataError where a column's name occurs twice, so that one of the columns would be lost."""
    if any("\0" in name for name in header):
        raise DataError(f"{path} has zero bytes in its header, as UTF-16 text has; convert it to UTF-8 first")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(f"{path} has more than one column {twice[0]!r}; expected each name once: rename or drop one")


def _are_rows(lines: Sequence[str], delimiter: str, width: int) -> bool:
    """Whether the first, the last and most of the lines could be rows if quotes were letters.

    A space behind a comma is prose, which no row has.
    """
    split = [line.rstrip("\r\n").split(delimiter) for line in lines if line.strip()]
    rows = [len(fields) == width and not any(field[:1] == " " for field in fields[1:]) for fields in split]
    return rows[0] and rows[-1] and sum(rows) > len(rows) / 2


def _cause(path: Path, first: int, lines: Sequence[str], delimiter: str, error: csv.Error) -> str:
    opened = _open_quote(lines, delimiter)
    if opened is None:
        return f"{path} line {first} is no CSV ({error}); {NO_QUOTES}"
    return f"{path} line {first + opened}: a quotation mark opens a field and none closes it; {NO_QUOTES}"


def _open_quote(lines: Sequence[str], delimiter: str) -> int | None:
    """Number of the line where a field in quotes begins that does not end; None where all of them end."""
    opened, inside, closed, before = 0, False, False, delimiter
    for number, line in enumerate(lines):
        for mark in line:
            if mark != '"':
                closed = False
            elif inside:
                inside, closed = False, True
            elif closed:  # the second of a doubled one: the field goes on
                inside = True
            elif before in (delimiter, "\n", "\r"):
                inside, opened = True, number
            before = mark
    return opened if inside else None
