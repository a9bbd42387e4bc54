"""Data: whatever a user names or passes as a dataset, opened as a stream of records."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from iai_hf import values
from iai_hf.errors import DataError, meant
from iai_hf.layout import laid_out
from iai_hf.readers import Content, class_names, is_file, load_hub_dataset, read_file
from iai_hf.scan import Scan
from iai_hf.stream import PEEK, Columns, Record, Stream, check_columns
from iai_hf.task import LABEL_LIMIT, distinct

log = logging.getLogger(__name__)
__all__ = ["TEST", "TRAIN", "Columns", "Record", "Stream", "open_stream"]
TRAIN, TEST = "train", "test"  # splits that are read by default: to learn from, to answer or to measure


def open_stream(
    data: Any,
    columns: Columns | None = None,
    *,
    split: str = TRAIN,
    shuffle_seed: int | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
) -> Stream:
    """Open a `datasets.Dataset` or `IterableDataset`, a path (JSONL, CSV, TSV, Parquet), a Hub dataset id
    (`id` or `id:config`), a table (pandas, polars, Arrow), or any iterable of dictionaries.

    Files and sequences are read through once, so that a malformed row is found before hours of work. With
    `shuffle_seed` the order is a permutation made from the seed alone, the same on every machine, so that a position
    in it can be resumed. It needs random access: files are laid out in the datasets cache once, and what that takes on
    disk is told before (`iai_hf.layout`).

    Raises:
        DataError: nothing there to read, a malformed row, or a stream that can't be shuffled.
    """
    import datasets

    if isinstance(data, Stream):  # it is open, with its split and order
        return data if columns is None else replace(data, columns=columns)
    columns = columns or Columns()
    if isinstance(data, str) and "://" in data:
        raise DataError(f"{data} is an address; expected a file here or a Hub id: download it first")
    if isinstance(data, Path) or (isinstance(data, str) and is_file(data)):
        return _from_file(Path(data), columns, shuffle_seed)
    if isinstance(data, str):
        found = open_stream(load_hub_dataset(data, split, revision, token), columns, shuffle_seed=shuffle_seed)
        return replace(found, hub_id=data.partition(":")[0])
    if isinstance(data, (datasets.DatasetDict, datasets.IterableDatasetDict)):
        if split not in data:
            raise DataError(
                f"the dataset has splits {sorted(data)}; {split!r} is not one of them: choose one{meant(split, data)}",
                options=("split",),
            )
        data = data[split]
    if isinstance(data, datasets.Dataset):
        return _from_dataset(data, data._fingerprint, columns, shuffle_seed)
    if not isinstance(data, datasets.IterableDataset) and (names := values.names_of(data)) is not None:
        check_columns("the table", names, columns.named)
        parts = {name: values.column(data[name], f"column {name!r}") for name in dict.fromkeys(names)}
        data = [dict(zip(parts, row, strict=True)) for row in zip(*parts.values(), strict=True)]
    if not isinstance(data, Iterable) or isinstance(data, (Mapping, bytes)):
        raise DataError(
            f"data is a {type(data).__name__}; expected a dataset, a path, a Hub id or an iterable of rows "
            "(of columns, datasets.Dataset.from_dict makes a dataset)"
        )
    if shuffle_seed is not None:
        raise DataError("a stream without random access can't be shuffled; shuffle it at its source, or pass a file")
    feature = (getattr(data, "features", None) or {}).get(columns.output)
    threaded = isinstance(data, (list, tuple, datasets.IterableDataset))
    stream = Stream(None, None, _Rows(data), columns, _names(feature), threaded=threaded)
    return _scanned(stream) if isinstance(data, Sequence) else stream


def _from_file(path: Path, columns: Columns, shuffle_seed: int | None) -> Stream:
    content = Content.of(path)
    stream = Stream(
        content.fingerprint,
        None,
        lambda start: itertools.islice(content.unchanged(read_file(path, columns.quotes)), start, None),
        columns,
        class_names(path, columns.output),
        threaded=True,
    )
    if shuffle_seed is None:
        return replace(_scanned(stream), file=path)
    layout = laid_out(stream, path)
    stands, shuffled = (_from_dataset(layout, content.fingerprint, columns, seed) for seed in (None, shuffle_seed))
    return replace(shuffled, file=path, content=_scan(stands).content)


def _scan(stream: Stream) -> Scan:
    scan = Scan.of(stream.records())
    if scan.repeats:
        log.warning("%s", scan)
    return scan


def _scanned(stream: Stream) -> Stream:
    """The stream after one pass over it, which finds a malformed row, the length, the outputs and the content."""
    scan = _scan(stream)
    return replace(stream, length=scan.length, outputs=scan.outputs, content=scan.content)


def _from_dataset(data: Any, fingerprint: str, columns: Columns, shuffle_seed: int | None) -> Stream:
    import numpy

    length = len(data)
    if length == 0:
        raise DataError("the dataset has no rows; expected at least one example")
    made = data.format["type"] == "custom"  # a transform of the user's makes the columns as they are read
    if not made:
        check_columns("the dataset", data.column_names, columns.named)
    order = None if shuffle_seed is None else numpy.random.default_rng(shuffle_seed).permutation(length)
    feature = data.features.get(columns.output)
    names = _names(feature)
    view = data if made or columns.numbers == () else data.select_columns(list(columns.named))

    def rows(start: int) -> Iterator[tuple[str, dict[str, Any]]]:
        for first in range(start, length, 256):
            positions = range(first, min(first + 256, length))
            batch = view[[int(order[i]) for i in positions]] if order is not None else view[positions]
            parts = {name: values.column(batch[name], name) for name in values.names_of(batch) or batch}
            for i, position in enumerate(positions):
                number = position if order is None else int(order[position])
                yield f"row {number}", {name: part[i] for name, part in parts.items()}

    stream = Stream(fingerprint, length, rows, columns, names, threaded=not made)
    return stream if made or columns.output is None else replace(stream, outputs=_different(data, stream))


def _different(data: Any, stream: Stream) -> frozenset[str]:
    """The different outputs of a dataset, up to one more than there may be labels.

    Raises:
        DataError: one of them is no answer; its row is named.
    """
    import datasets

    found, outputs = set[Any](), set[str]()
    lists = not isinstance(data.features[stream.columns.output], (datasets.Value, datasets.ClassLabel))
    for batch in data.select_columns([stream.columns.output]).with_format("arrow").iter(10_000):
        try:
            column = batch.column(0)
            new = set(map(_plain, column.to_pylist()) if lists else column.unique().to_pylist()) - found
            read = (stream.output("a row", {stream.columns.output or "": value}) for value in new)
            outputs.update(distinct(output for output in read if output is not None))
            found |= new
        except (DataError, TypeError, NotImplementedError):  # e.g. nested values; reading names the row
            for _ in stream.records():
                pass
            raise
        if len(outputs) > LABEL_LIMIT:
            break
    return frozenset(outputs)


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _names(feature: Any) -> tuple[str, ...]:
    """Names of the classes that stand as numbers in a dataset's column, or in the lists of one."""
    return tuple(getattr(getattr(feature, "feature", feature), "names", None) or ())


class _Rows:
    """Rows of an iterable. The first are kept, so that a look ahead loses none of an iterable with one position."""

    def __init__(self, data: Iterable[Any]) -> None:
        self.data, self.source = data, iter(data)
        self.kept: list[Any] = []
        self.taken = 0

    def __call__(self, start: int) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """As `Stream.rows`."""
        if self.taken > len(self.kept):
            self._begin_anew()
        number = 0
        while True:
            if number < len(self.kept):
                row = self.kept[number]
            else:
                try:
                    row = next(self.source)
                except StopIteration:
                    return
                self.taken += 1
                if len(self.kept) < PEEK:
                    self.kept.append(row)
            if not isinstance(row, Mapping):
                raise DataError(
                    f"row {number} is a {type(row).__name__}; expected a dictionary of columns, e.g. "
                    '{"input": "a text", "output": "its answer"}'
                )
            if number >= start:
                yield f"row {number}", row
            number += 1

    def _begin_anew(self) -> None:
        again, first = iter(self.data), self.kept[0]
        begun = None if again is self.data else next(again, None)
        if begun is not first and not _equal(begun, first):
            raise DataError(
                f"the {type(self.data).__name__} can be read once only, and {self.taken} of its rows were; "
                "pass a list, a file or a dataset"
            )
        self.source, self.taken = itertools.chain([begun], again), 0
        self.kept = []


def _equal(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except ValueError:  # arrays, which have no one answer
        return type(one) is type(other)
