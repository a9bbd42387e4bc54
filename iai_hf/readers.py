"""Readers: a JSONL, CSV or Parquet file, a Hub dataset or an iterable, as an iterator of plain rows.

Rows are dictionaries of columns; nothing is guessed or converted here, so that a label "NA" stays the
text "NA" (type-guessing readers turn it into a missing value).
"""

from __future__ import annotations

import csv
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from iai_hf.errors import DataError

SUFFIXES = {
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}


def file_fingerprint(path: Path) -> str:
    """Digest of a file's content; it is what a resumed stream is recognised by, so a touched file is no new one."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise DataError(f"can't read {path}: {error.strerror}") from error
    return digest.hexdigest()[:32]


def read_file(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield `(place, row)` of a data file, the place being what an error message should name.

    Raises:
        DataError: unknown suffix, missing, empty or malformed file; malformed lines are named.
    """
    kind = SUFFIXES.get(path.suffix.lower())
    if kind is None:
        raise DataError(f"{path} has suffix {path.suffix!r}; expected one of {', '.join(SUFFIXES)}")
    if path.is_file() and path.stat().st_size == 0:
        raise DataError(f"{path} is empty; expected at least one example")
    reader = {"jsonl": _read_jsonl, "csv": _read_csv, "parquet": _read_parquet}[kind]
    try:
        yield from reader(path)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); convert it first") from error
    except OSError as error:
        raise DataError(f"can't read {path}: {error.strerror or error}") from error


def _read_jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            place = f"{path} line {number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{place} is no JSON ({error}); expected one object a line") from error
            if not isinstance(row, dict):
                raise DataError(f"{place} is a JSON {type(row).__name__}; expected an object with the columns as keys")
            yield place, row


def _read_csv(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
        try:
            for row in reader:
                place = f"{path} line {reader.line_num}"
                if None in row or None in row.values():
                    raise DataError(f"{place} has not as many fields as the header ({len(reader.fieldnames or [])})")
                yield place, row
        except csv.Error as error:
            raise DataError(f"{path} line {reader.line_num} is no CSV ({error})") from error


def _read_parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow.parquet
    from pyarrow import ArrowException

    try:
        number = 0
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                yield f"{path} row {number}", row
                number += 1
    except ArrowException as error:
        raise DataError(f"{path} is no readable Parquet file ({error})") from error


def load_hub_dataset(name: str, split: str, revision: str | None, token: str | bool | None) -> Any:
    """A `datasets.Dataset` from the Hub. `name` is an id, or `id:config`.

    Raises:
        DataError: no such dataset or split, no access, or no network.
    """
    import datasets

    identifier, _, config = name.partition(":")
    try:
        return datasets.load_dataset(identifier, config or None, split=split, revision=revision, token=token)
    except Exception as error:  # the client raises a dozen types; each of them means the same to the user
        raise DataError(
            f"{name!r} is neither a file here nor a dataset that can be loaded from the Hub "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no details'}); "
            "check the path, the id, the split and the network"
        ) from error
