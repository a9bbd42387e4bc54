"""Layout: a file's columns on disk, memory-mapped, so that its rows can be read in any order.

A layout stands in the cache of datasets under the digest of the file's content and of what is read of it, so that it is
made once. What it needs is found by reading the file once more, told before anything is written, and refused where it
is not free.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iai_hf.errors import DataError
from iai_hf.files import beside

if TYPE_CHECKING:
    import datasets
    import pyarrow

    from iai_hf.stream import Record, Stream

log = logging.getLogger(__name__)
BATCH = 1000  # rows that are written together
LAYOUT = 1  # to be raised when files come to be read or laid out otherwise
VALUE = 8  # bytes at most of a value's place, or of a number
BATCH_BYTES = 2048  # of a batch beside its values
ROOM = 50_000_000  # bytes that are left free


def laid_out(stream: Stream, path: Path) -> datasets.Dataset:
    """The columns of the file at `path` that `stream` reads, in its order.

    Raises:
        DataError: a malformed row; or the disk has no room for them, or can't be written.
    """
    import datasets
    from filelock import FileLock

    columns = stream.columns
    read = f"{LAYOUT} {stream.fingerprint} {path.suffix.lower()} {columns} {stream.class_names}"
    key = hashlib.sha256(read.encode()).hexdigest()[:32]
    place = Path(datasets.config.HF_DATASETS_CACHE) / "iai_hf" / f"{key}.arrow"
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(place.with_suffix(".lock")):  # several processes that read together want the same one
            if not place.is_file():
                for left in place.parent.glob(f".{place.name}.*.partial"):  # of a run that was killed
                    left.unlink()
                needed = bytes_needed(stream)
                free = shutil.disk_usage(place.parent).free
                log.info(
                    "a shuffled read of %s takes %s on disk, in %s, where %s are free",
                    path,
                    shown(needed),
                    place.parent,
                    shown(free),
                )
                if needed + ROOM > free:
                    raise _no_room(path, place, f"takes {shown(needed)} there, and {shown(free)} are free")
                _write(stream, place)
    except OSError as error:
        raise _no_room(path, place, f"can't be written there: {error.strerror or error}") from error
    return datasets.Dataset.from_file(str(place))


def bytes_needed(stream: Stream) -> int:
    """Bytes that a stream's layout takes at most, found by reading it."""
    size, rows = 0, 0
    for record in stream.records():
        rows += 1
        size += sum(VALUE + len(value.encode()) if isinstance(value, str) else VALUE for value in _values(record))
    return size + BATCH_BYTES * (rows // BATCH + 2)


def shown(size: int) -> str:
    """Bytes, for people."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


def _values(record: Record) -> Iterator[Any]:
    for value in record:
        if isinstance(value, tuple):
            yield None  # where a list ends
            yield from value
        else:
            yield value


def _write(stream: Stream, place: Path) -> None:
    import pyarrow

    schema, partial = _schema(stream), beside(place)
    try:
        with open(partial, "xb") as file:
            with pyarrow.ipc.new_stream(file, schema) as writer:
                records = stream.records()
                while rows := list(itertools.islice(records, BATCH)):
                    writer.write_batch(_batch(stream, schema, rows))
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, place)
    finally:
        partial.unlink(missing_ok=True)


def _schema(stream: Stream) -> pyarrow.Schema:
    import pyarrow

    columns, text = stream.columns, pyarrow.string()
    first = next((record.output for record in stream.records() if record.output is not None), None)
    several = isinstance(first, tuple)
    names = stream.task().columns if columns.numbers is not None else ()
    inputs = [(name, pyarrow.float64()) for name in names] or [(columns.input, text)]
    return pyarrow.schema([*inputs, (columns.output or "", pyarrow.list_(text) if several else text)])


def _batch(stream: Stream, schema: pyarrow.Schema, rows: list[Record]) -> pyarrow.RecordBatch:
    import pyarrow

    inputs = (
        zip(*(row.input for row in rows), strict=True)
        if stream.columns.numbers is not None
        else [[row.input for row in rows]]
    )
    columns = [*map(list, inputs), [list(row.output) if isinstance(row.output, tuple) else row.output for row in rows]]
    return pyarrow.record_batch(
        [pyarrow.array(column, field.type) for column, field in zip(columns, schema, strict=True)], schema=schema
    )


def _no_room(path: Path, place: Path, why: str) -> DataError:
    return DataError(
        f"to read {path} in another order its rows are laid out in {place.parent}, and that {why}; free space, set "
        "HF_DATASETS_CACHE to a folder on another disk, or shuffle the file itself and read it without a seed",
        options=("shuffle_seed",),
    )
