"""Readers: a JSONL, CSV or Parquet file, a Hub dataset or an iterable, as an iterator of plain rows.

Rows are dictionaries of columns; nothing is guessed or converted here, so that a label "NA" stays the
text "NA" (type-guessing readers turn it into a missing value).
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iai_hf import hub
from iai_hf.delimited import SEPARATORS, read_delimited
from iai_hf.errors import DataError, meant

Row = tuple[str, dict[str, Any]]  # where it is, and its columns
BLOCK = 256  # rows that are read before they are given out
PACKED = {b"\x1f\x8b": "packed by gzip", b"PK": "a ZIP archive or a spreadsheet", b"BZ": "packed by bzip2"}
SUFFIXES = {
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}


def is_file(name: str) -> bool:
    """Whether a text names a file or folder here, or what would be a data file, and no dataset on the Hub."""
    if Path(name).exists():
        return True
    identifier, colon, _ = name.partition(":")
    return not colon and Path(name).suffix.lower() in SUFFIXES and not hub.is_repository_id(identifier)


def _names(folder: Path, most: int = 1000) -> list[str]:
    """Of some files in a folder; none where it is not there, or may not be listed."""
    try:
        return [entry.name for entry in itertools.islice(folder.iterdir(), most)]
    except OSError:
        return []


def check_file(path: Path) -> None:
    """Raise DataError where there is no file that `read_file` can read."""
    if path.is_dir():
        inside = sorted(entry.name for entry in path.iterdir() if entry.suffix.lower() in SUFFIXES)[:5]
        raise DataError(
            f"{path} is a folder; expected a file: {f'name one of {inside}' if inside else 'there is none in it'} "
            "(what save_to_disk wrote, datasets.load_from_disk reads)"
        )
    if not path.exists():
        beside = _names(path.parent)
        raise DataError(f"no file at {path}; expected a {', '.join(SUFFIXES)} file{meant(path.name, beside)}")
    if path.suffix.lower() not in SUFFIXES:
        packed = "unpack it first; " if path.suffix.lower() in (".gz", ".zip", ".bz2", ".xz", ".zst") else ""
        raise DataError(f"{path} has suffix {path.suffix!r}; {packed}expected one of {', '.join(SUFFIXES)}")
    if path.is_file() and path.stat().st_size == 0:
        raise DataError(f"{path} is empty; expected at least one example")


def file_fingerprint(path: Path) -> str:
    """Digest of a file's content; it is what a resumed stream is recognised by, so a touched file is no new one.

    Raises:
        DataError: no file that can be read.
    """
    check_file(path)
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise DataError(f"can't read {path}: {error.strerror}") from error
    return digest.hexdigest()[:32]


def beginning(path: Path, known: Collection[str]) -> str | None:
    """The fingerprint among `known` of what a file was before lines were appended to it; None if there is none."""
    if not known or SUFFIXES.get(path.suffix.lower()) == "parquet":
        return None
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for line in file:
            digest.update(bare := line.rstrip(b"\r\n"))
            ends = [digest.copy().hexdigest()[:32]]  # an editor may have left out the last line's end
            digest.update(line[len(bare) :])
            ends.append(digest.copy().hexdigest()[:32])
            if found := next((end for end in ends if end in known), None):
                return found
    return None


@dataclass
class Content:
    """A file as it was found.

    Attributes:
        fingerprint: see `file_fingerprint`.
        seen: what the system says of the file, which is another after each writing.
    """

    path: Path
    fingerprint: str
    seen: tuple[int, int, int]

    @classmethod
    def of(cls, path: Path) -> Content:
        """That of a file now.

        Raises:
            DataError: no file that can be read, or one that is being written to.
        """
        check_file(path)
        seen = _signature(path)
        found = cls(path, file_fingerprint(path), seen)
        if _signature(path) != seen:
            found._check_unchanged(0)
        return found

    def unchanged(self, rows: Iterator[Row]) -> Iterator[Row]:
        """Its rows, each of which was read while the file was as it was found.

        Raises:
            DataError: it is another by now; the message says how many of its rows were read before.
        """
        read = 0
        while True:
            try:
                block = list(itertools.islice(rows, BLOCK))
            except DataError:
                self._check_unchanged(read)
                raise
            self._check_unchanged(read)
            yield from block
            read += len(block)
            if len(block) < BLOCK:
                return

    def _check_unchanged(self, read: int) -> None:
        before, now = self.seen, _signature(self.path)
        if now == before:
            return
        if now[0] == before[0] and file_fingerprint(self.path) == self.fingerprint:
            self.seen = now  # it was touched, or written as it had been
            return
        sizes = f"it had {before[0]:,} bytes and has {now[0]:,}" if now[0] != before[0] else "it has other content"
        raise DataError(
            f"{self.path} changed while it was read: {sizes}. The first {read:,} rows were read as they had been, none "
            "after that; read a copy that nobody writes to"
        )


def _signature(path: Path) -> tuple[int, int, int]:
    """Size, time of the last writing, and which file it is."""
    try:
        found = path.stat()
    except OSError as error:
        raise DataError(f"can't read {path}: {error.strerror}") from error
    return found.st_size, found.st_mtime_ns, found.st_ino


def read_file(path: Path, quotes: bool | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield `(place, row)` of a data file, the place being what an error message should name.

    Args:
        quotes: of CSV and TSV, whether quotation marks enclose fields; see `iai_hf.delimited`.

    Raises:
        DataError: unknown suffix, missing, empty or malformed file; malformed lines are named.
    """
    check_file(path)
    kind = SUFFIXES[path.suffix.lower()]
    try:
        if kind == "csv":
            yield from read_delimited(path, quotes)
        else:
            yield from {"jsonl": _read_jsonl, "parquet": _read_parquet}[kind](path)
    except UnicodeDecodeError as error:
        start = _beginning(path)
        if start in PACKED:
            raise DataError(f"{path} is {PACKED[start]}, whatever its name says; unpack it first") from error
        what = "UTF-16" if start in (b"\xff\xfe", b"\xfe\xff") else f"{error.reason} at byte {error.start}"
        code = "UTF-16" if what == "UTF-16" else "LATIN1"
        raise DataError(
            f"{path} is not UTF-8 text ({what}); convert it first, e.g. iconv -f {code} -t UTF-8 FILE > NEW"
        ) from error
    except OSError as error:
        raise DataError(f"can't read {path}: {error.strerror or error}") from error


def class_names(path: Path, column: str | None) -> tuple[str, ...]:
    """Names of the classes that stand as numbers in a column of a Parquet file, as datasets writes them beside it."""
    import pyarrow.parquet
    from pyarrow import ArrowException

    if SUFFIXES.get(path.suffix.lower()) != "parquet":
        return ()
    try:
        metadata = pyarrow.parquet.read_schema(path).metadata or {}
        feature = json.loads(metadata[b"huggingface"])["info"]["features"][column]
        while "feature" in feature:  # of a list of them
            feature = feature["feature"]
        names = feature["names"] if feature["_type"] == "ClassLabel" else ()
        return tuple(names) if all(isinstance(name, str) for name in names) else ()
    except (ArrowException, OSError, ValueError, KeyError, TypeError):  # other writers have no such metadata
        return ()


def _read_jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    first = True
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            place = f"{path} line {number}"
            try:
                row = json.loads(line, object_pairs_hook=_distinct)
            except (ValueError, RecursionError) as error:
                if first and line.strip() in ("[", "{"):
                    raise DataError(f"{path} is {_whole(line)}") from error
                table = first and "{" not in line and any(mark in line for mark in SEPARATORS)
                other = "; the file looks like a table: name it .csv or .tsv" if table else ""
                raise DataError(f"{place} is no JSON ({error}); expected one object a line{other}") from error
            if not isinstance(row, dict):
                if first and isinstance(row, list):
                    raise DataError(f"{path} is {_whole(line)}")
                raise DataError(f"{place} is a JSON {type(row).__name__}; expected an object with the columns as keys")
            yield place, row
            first = False


def _whole(line: str) -> str:
    """What a file that begins so is, where it is no JSON Lines."""
    if line.lstrip().startswith("{"):
        return "JSON over several lines; expected an object a line: jq -c . FILE > FILE.jsonl"
    return "a JSON array; expected an object a line: jq -c '.[]' FILE > FILE.jsonl"


def _beginning(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(2)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} occurs twice")
    return made


def _read_parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow.parquet
    from pyarrow import ArrowException

    try:
        number = 0
        file = pyarrow.parquet.ParquetFile(path)
        twice = sorted({name for name in file.schema_arrow.names if file.schema_arrow.names.count(name) > 1})
        if twice:
            raise DataError(
                f"{path} has more than one column {twice[0]!r}; expected each name once: rename or drop one"
            )
        for batch in file.iter_batches(batch_size=1024):
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
            f"({hub.reason(error, token)}); check the path, the id, the split, your access and the network"
        ) from error
