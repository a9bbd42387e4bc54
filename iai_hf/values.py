"""Values: what a user passes as texts, labels or rows of numbers, in any library's types, made plain and checked.

A column is a list, tuple, generator, pandas or polars Series, 1-D array or tensor, Arrow array or a dataset's column. A
bare string is refused wherever several texts are expected, since reading it would make a text of each letter.
"""

from __future__ import annotations

import itertools
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence, Set
from typing import Any

from iai_hf.errors import DataError

MOST_NUMBERED_CLASSES = 20  # more different whole numbers are values, not classes
NUMBER_SIGNS = re.compile(r"[\s,_'$€£¥%]")  # what people write numbers with
SEPARATORS = (";", "|", ",")  # what people put between labels in one field


def texts(values: Any, place: str = "query {}") -> tuple[str, ...]:
    """A column of texts, in order; a table or 2-D array of one column is that column.

    Args:
        place: what a message calls a text, with its number for the braces.

    Raises:
        DataError: no column, a column without values, or a value that is no text; its place is named.
    """
    whole = place.format("").strip(" []")
    named = names_of(values)
    if named is not None:
        if len(named) != 1:
            raise DataError(
                f"{whole}: got a table with the columns {_shown(named)}; expected one column of texts: "
                f"choose it, e.g. table[{_shown(named[0] if named else 'input')}]"
            )
        values = values[named[0]]
    found = column(values, whole)
    if len(getattr(values, "shape", ())) == 2 and values.shape[1] == 1:
        found = [row[0] for row in found]
    if not found:
        raise DataError(f"{whole}: there are none; expected at least one text")
    return tuple(text(value, place.format(number)) for number, value in enumerate(found))


def rows(values: Any, columns: Sequence[str] = (), place: str = "row {}") -> tuple[tuple[float, ...], ...]:
    """Rows of numbers, in order. A table, or rows that are dictionaries, are read by the names of `columns`.

    Raises:
        DataError: no rows, a column that is missing, or a value that is no finite number; its place is named.
    """
    whole = place.format("").strip(" []")
    named = names_of(values)
    if named is not None:
        _require_columns(named, columns, whole)
        parts = [column(values[name], f"{whole}: column {name!r}") for name in columns]
        found: list[Any] = list(zip(*parts, strict=True))
    else:
        found = column(values, whole)
    if not found:
        raise DataError(f"{whole}: there are none; expected at least one row of numbers")
    made = []
    for number, row in enumerate(found):
        if isinstance(row, Mapping):
            _require_columns(list(row), columns, place.format(number))
            row = [row[name] for name in columns]
        made.append(numbers(row, place.format(number)))
    return tuple(made)


def column(values: Any, place: str) -> list[Any]:
    """The values of a column as a list; a generator is read once.

    Raises:
        DataError: a bare string, a dictionary, a set, a table or no iterable.
    """
    if isinstance(values, (str, bytes)) or getattr(values, "shape", None) == ():
        raise DataError(f"{place}: got {_shown(values)} alone; expected a sequence: write [...] around one value")
    if isinstance(values, (Mapping, Set)) or names_of(values) is not None or not hasattr(values, "__iter__"):
        raise DataError(
            f"{place}: got a {type(values).__name__}; expected a sequence: a list, a generator or one column"
        )
    for method in ("to_pylist", "tolist"):  # Arrow; pandas, numpy and torch: plain values, not scalars of their own
        if hasattr(values, method):
            return list(getattr(values, method)())
    return list(values)


def names(values: Any, place: str) -> tuple[str, ...]:
    """Names of columns; any text may be one, the empty one too (an unnamed index, as pandas writes it).

    Raises:
        DataError: no sequence, or a name that is no text.
    """
    found = column(values, place)
    for name in found:
        if not isinstance(name, str):
            raise DataError(f"{place}: {_shown(name)} is {type(name).__name__}; expected names, which are text")
    return tuple(found)


def names_of(values: Any) -> list[Any] | None:
    """Column names of a table (pandas, polars, Arrow, datasets, an array with named fields); None for anything else."""
    fields = getattr(getattr(values, "dtype", None), "names", None)
    for names in (fields, getattr(values, "column_names", None), getattr(values, "columns", None)):
        if names is not None and not callable(names) and not isinstance(names, Mapping):
            return list(names)
    return None


def text(value: Any, place: str) -> str:
    """One text, as an exact `str`.

    Raises:
        DataError: no text, an empty one, or half a character (a lone surrogate), which no tokenizer reads.
    """
    if missing(value):
        raise DataError(f"{place} is missing ({value!r}); expected text: drop the row or fill it")
    if not isinstance(value, str):
        raise DataError(f"{place} is {type(value).__name__} {_shown(value)}; expected text")
    if not value.strip():
        raise DataError(f"{place} is empty ({_shown(value)}); expected text: drop the row or fill it")
    plain = str.__str__(value)  # of a subclass too: numpy's, or an enumeration's
    try:
        plain.encode()
    except UnicodeEncodeError as error:
        half = f"U+{ord(plain[error.start]):04X}"
        raise DataError(
            f"{place} has half a character, the lone surrogate {half}, at position {error.start}: "
            f"{_shown(plain[max(error.start - 20, 0) : error.start + 1])}; expected Unicode text: "
            "a text was cut in the middle of an emoji, mend or drop the row"
        ) from error
    return plain


def label(value: Any, place: str, names: Sequence[str] = (), *, fractions: bool = False) -> str:
    """One answer: a text, or a class number or truth value (plain, numpy's or a tensor's) as text.

    Args:
        names: of the dataset's classes, where numbers stand for them.
        fractions: let a number with a fraction be an answer too, as in tables.

    Raises:
        DataError: no answer, or a number outside `names`, by which datasets mark a row that has no label.
    """
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, int):
        if not names:
            return str(int(value))
        if 0 <= value < len(names):
            return text(names[value], place)
        raise DataError(
            f"{place} is {value}, outside the dataset's {len(names)} class names: the row has no label (-1 marks that "
            f"in many test splits); expected 0 to {len(names) - 1}: drop such rows, or take another split"
        )
    if isinstance(value, float) and math.isfinite(value):
        if fractions:
            return repr(value)
        raise DataError(
            f"{place} is float {value}; expected text or a class number, which is whole: pandas makes fractions of a "
            "column of class numbers where one is missing; drop such rows, or write the labels as text"
        )
    return text(value, place)


def is_set(value: Any) -> bool:
    """Whether an answer is several labels: a list, tuple, set, or an array or list of a library's own."""
    if isinstance(value, (list, tuple, Set)):
        return True
    return len(getattr(value, "shape", ())) > 0 or hasattr(value, "to_pylist")


def likely_separator(outputs: Collection[str]) -> str | None:
    """What probably stands between labels, as in "a;b" among outputs that are "a" or have "b", too; None if nothing."""
    for separator in SEPARATORS:
        parts = {output: {part.strip() for part in output.split(separator)} for output in outputs}
        joined = [found for found in parts.values() if len(found) > 1]
        of = Counter(itertools.chain.from_iterable(parts.values()))
        if len(joined) > 1 and 2 * sum(all(of[part] > 1 for part in found) for found in joined) > len(joined):
            return separator
    return None


def label_set(value: Any, place: str, names: Sequence[str] = (), separator: str | None = None) -> tuple[str, ...]:
    """The labels of one text, in order (of a set, ascending); of an empty list none.

    Args:
        names: of the dataset's classes, where numbers stand for them.
        separator: between the labels of a text that stands for a list; such a text may be empty.

    Raises:
        DataError: no list, a label that is none or occurs twice, or numbers that nothing names: a row of an indicator
            matrix looks just so.
    """
    if missing(value):
        raise DataError(f"{place} is missing ({value!r}); expected a list of labels, which is empty where none applies")
    if isinstance(value, str):
        if separator is None:
            raise DataError(
                f"{place} is the text {_shown(value)}; expected a list of labels, as elsewhere: write [...] around one "
                "label, or name what separates several in a text",
                options=("label_separator",),
            )
        parts = [part.strip() for part in value.split(separator)] if value.strip() else []
        if not all(parts):
            raise DataError(f"{place} is {_shown(value)}, where nothing stands between two {separator!r}")
        value = parts
    try:
        given = sorted(value) if isinstance(value, Set) else column(value, place)
    except TypeError as error:
        raise DataError(f"{place} is {_shown(value)}; expected labels, which are text") from error
    for item in given:
        if not names and not isinstance(item, str) and not missing(item):
            raise DataError(
                f"{place} is {_shown(given)}, with {_shown(item)} in it; expected names of labels: a row of an "
                "indicator matrix is not one, so list the names of the columns that are 1; name class numbers"
            )
    found = tuple(label(item, f"{place}[{number}]", names) for number, item in enumerate(given))
    if len(set(found)) != len(found):
        twice = next(name for name in found if found.count(name) > 1)
        raise DataError(f"{place} is {_shown(given)}, which has {twice!r} twice; expected each label once")
    return found


def numbers(value: Any, place: str) -> tuple[float, ...]:
    """One row of finite numbers.

    Raises:
        DataError: no row, or a value that is no finite number.
    """
    row = column(value, place)
    try:
        found = tuple(map(float, row))
    except (TypeError, ValueError):
        found = (math.nan,)
    if not all(map(math.isfinite, found)) or any(isinstance(item, str) for item in row):
        raise DataError(f"{place} is {_shown(row)}; expected finite numbers: fill or drop it")
    return found


def missing(value: Any) -> bool:
    """Whether a value marks that there is none: None, NaN, or pandas' own marks."""
    return (
        value is None or (isinstance(value, float) and value != value) or type(value).__name__ in ("NAType", "NaTType")
    )


def unlabelled(value: Any, names: Sequence[str] = ()) -> bool:
    """Whether an answer is missing: `missing`, an empty text, or -1 where numbers stand for `names` of classes."""
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()
    if is_set(value):
        return False
    return missing(value) or (isinstance(value, str) and not value.strip()) or (bool(names) and value == -1)


def folded(label: str) -> str:
    """A label without what people overlook: case, spaces, the Unicode form, and the ".0" of a whole number."""
    plain = " ".join(unicodedata.normalize("NFC", unicodedata.normalize("NFC", label).casefold()).split())
    return re.sub(r"^(-?\d+)\.0+$", r"\1", plain)


def _require_columns(found: Sequence[Any], wanted: Sequence[str], place: str) -> None:
    absent = [name for name in wanted if found.count(name) != 1]
    if absent or not wanted:
        raise DataError(f"{place}: expected the columns {_shown(list(wanted))}, each once; found {_shown(list(found))}")


def _shown(value: Any) -> str:
    written = repr(value)
    return written if len(written) <= 60 else f"{written[:57]}..."


def number(value: Any, place: str) -> float:
    """A finite number; DataError of anything else."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(
            f"{place} is {str(value)[:40]!r}; expected a finite number: fill or drop the row, turn words into numbers, "
            "or leave the column out"
        )
    return number


def check_numbers(counts: Counter[str], column: str | None) -> None:
    """Raise DataError where many different outputs are numbers, but for how some of them are written."""
    unread = [output for output in counts if _value(output) is None]
    alike = sum(_value(NUMBER_SIGNS.sub("", output)) is not None for output in counts)
    if unread and len(counts) > MOST_NUMBERED_CLASSES and alike > 0.8 * len(counts):
        raise DataError(
            f"{column!r} looks like a column of numbers, but {unread[0][:40]!r} is none as it stands; write numbers "
            "plainly, e.g. 1510.5, and drop rows without one; if these are class names after all, name the kind "
            "classification"
        )


def _value(output: str) -> float | None:
    try:
        return float(output)
    except ValueError:
        return None


def measured(counts: Counter[str]) -> bool:
    """Whether outputs are measured values, and no class numbers."""
    values = [value for output in counts if (value := _value(output)) is not None]
    if len(values) < len(counts):
        return False
    return len(values) > MOST_NUMBERED_CLASSES or any(value != int(value) for value in values)
