"""Streams: any source of labelled examples as a sequence of records that can be cut into chunks and resumed."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from iai_hf.errors import DataError
from iai_hf.readers import SUFFIXES, file_fingerprint, load_hub_dataset, read_file
from iai_hf.task import Chunk, Kind, TaskSpec

PEEK = 256  # examples looked at to tell classification from generation


class Record(NamedTuple):
    """One example: a text, or the numbers of a table's row; `output` is empty where a stream has no output column."""

    input: Any
    output: str


@dataclass(frozen=True)
class Columns:
    """Names of the columns that hold the text and its answer; `output` None reads queries only.

    `numbers` makes a numeric table of the rows: the names of its inputs, in order; empty for all but the output.
    """

    input: str = "input"
    output: str | None = "output"
    numbers: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Stream:
    """Records from a source, from any position on.

    Attributes:
        fingerprint: identifies the content and order; None for a plain iterable, which can't be told from another.
        length: number of records where known ahead.
        hub_id: of the dataset, where it came from the Hub.
        rows: `rows(start)` yields `(place, row)` from record `start` on.
    """

    fingerprint: str | None
    length: int | None
    rows: Callable[[int], Iterator[tuple[str, dict[str, Any]]]]
    columns: Columns = field(default_factory=Columns)
    label_names: dict[int, str] = field(default_factory=dict)
    hub_id: str | None = None

    def records(self, start: int = 0) -> Iterator[Record]:
        """Checked records from `start` on.

        Raises:
            DataError: a column is missing, a text is empty or no text; the message names the place.
        """
        names = self.columns.numbers or ()
        for place, row in self.rows(start):
            if self.columns.numbers is None:
                yield Record(self._text(place, row, self.columns.input), self._output(place, row))
                continue
            names = names or tuple(name for name in row if name != self.columns.output)
            yield Record(tuple(self._number(place, row, name) for name in names), self._output(place, row))

    def chunks(self, size: int, start: int = 0, stop: int | None = None) -> Iterator[Chunk]:
        """Chunks of `size` examples (the last may be shorter) of records `start` to `stop`."""
        if size < 1:
            raise DataError(f"chunk size is {size}; expected at least 1")
        records = itertools.islice(self.records(start), None if stop is None else max(stop - start, 0))
        while batch := list(itertools.islice(records, size)):
            yield Chunk(tuple(record.input for record in batch), tuple(record.output for record in batch))

    def task(self, given: TaskSpec | None = None) -> TaskSpec:
        """The task, as far as it is not given: its kind, and the columns of a numeric table.

        The kind is classification where most outputs of the first examples occur more than once among them; of a table,
        regression where they are numbers, and over 20 different ones or not whole; otherwise generation.

        Raises:
            DataError: there is no example.
        """
        if given is not None and self.columns.numbers is None:
            return given
        first = list(itertools.islice(self.records(), PEEK))
        if not first:
            raise DataError("the dataset has no examples; expected at least one")
        counts = Counter(record.output for record in first)
        kind: Kind = "classification" if len(counts) <= max(2, 0.6 * counts.total()) else "generation"
        if self.columns.numbers is None:
            return TaskSpec(kind)
        names = self.columns.numbers or tuple(name for name in next(self.rows(0))[1] if name != self.columns.output)
        if given is not None:
            return replace(given, columns=names)
        return TaskSpec("regression" if _measured(counts) else "classification", columns=names)

    def _text(self, place: str, row: dict[str, Any], column: str) -> str:
        if column not in row:
            raise DataError(
                f"{place} has no column {column!r}; found {sorted(map(str, row))}: "
                "name the right ones (--input-column, --output-column)"
            )
        value = row[column]
        if not isinstance(value, str):
            raise DataError(f"{place}: {column!r} is {type(value).__name__} {str(value)[:40]!r}; expected text")
        if not value.strip():
            raise DataError(f"{place}: {column!r} is empty; expected text: drop the row or fill it")
        return value

    def _number(self, place: str, row: dict[str, Any], column: str) -> float:
        if column not in row:
            raise DataError(f"{place} has no column {column!r}; found {sorted(map(str, row))}")
        try:
            value = float(row[column])
        except (TypeError, ValueError):
            value = math.nan
        if not math.isfinite(value):
            raise DataError(
                f"{place}: {column!r} is {str(row[column])[:40]!r}; expected a finite number: fill or drop the row, "
                "turn words into numbers, or leave the column out"
            )
        return value

    def _output(self, place: str, row: dict[str, Any]) -> str:
        column = self.columns.output
        if column is None:
            return ""
        value = row.get(column)
        if self.columns.numbers is not None and isinstance(value, float):
            row = {**row, column: repr(value)}
        if isinstance(value, int) and not isinstance(value, bool):  # class numbers, as Hub datasets have them
            row = {**row, column: self.label_names.get(value, str(value))}
        return self._text(place, row, column)


def _measured(counts: Counter[str]) -> bool:
    try:
        values = [float(output) for output in counts]
    except ValueError:
        return False
    return len(values) > 20 or any(value != int(value) for value in values)


def open_stream(
    data: Any,
    columns: Columns | None = None,
    *,
    split: str = "train",
    shuffle_seed: int | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
) -> Stream:
    """Open a `datasets.Dataset` or `IterableDataset`, a path (JSONL, CSV, Parquet), a Hub dataset id
    (`id` or `id:config`), or any iterable of dictionaries.

    With `shuffle_seed` the order is a permutation made from the seed alone, the same on every machine, so that a
    position in it can be resumed. It needs random access: files are laid out as Arrow in the datasets cache once.

    Raises:
        DataError: nothing there to read, or a stream that can't be shuffled.
    """
    import datasets

    columns = columns or Columns()
    if isinstance(data, Path) or (isinstance(data, str) and (Path(data).exists() or Path(data).suffix in SUFFIXES)):
        path = Path(data)
        if not path.is_file():
            raise DataError(f"no file at {path}; expected a {', '.join(SUFFIXES)} file")
        fingerprint = file_fingerprint(path)
        if shuffle_seed is None:
            stream = Stream(fingerprint, None, lambda start: itertools.islice(read_file(path), start, None), columns)
            # One pass over the file finds a malformed row before hours of work, and tells the length.
            return replace(stream, length=sum(1 for _ in stream.records()))
        return _from_dataset(_as_arrow(path, fingerprint, columns), fingerprint, columns, shuffle_seed)
    if isinstance(data, str):
        found = open_stream(load_hub_dataset(data, split, revision, token), columns, shuffle_seed=shuffle_seed)
        return replace(found, hub_id=data.partition(":")[0])
    if isinstance(data, (datasets.DatasetDict, datasets.IterableDatasetDict)):
        if split not in data:
            raise DataError(f"the dataset has splits {sorted(data)}; {split!r} is not one of them")
        data = data[split]
    if isinstance(data, datasets.Dataset):
        return _from_dataset(data, data._fingerprint, columns, shuffle_seed)
    if not isinstance(data, Iterable):
        raise DataError(f"data is a {type(data).__name__}; expected a dataset, a path, a Hub id or an iterable of rows")
    if shuffle_seed is not None:
        raise DataError("a stream without random access can't be shuffled; shuffle it at its source, or pass a file")
    return _from_iterable(data, columns)


def _from_dataset(data: Any, fingerprint: str, columns: Columns, shuffle_seed: int | None) -> Stream:
    import datasets
    import numpy

    length = len(data)
    if length == 0:
        raise DataError("the dataset has no rows; expected at least one example")
    order = None if shuffle_seed is None else numpy.random.default_rng(shuffle_seed).permutation(length)
    feature = data.features.get(columns.output)
    names = dict(enumerate(feature.names)) if isinstance(feature, datasets.ClassLabel) else {}
    named = columns.numbers if columns.numbers is not None else (columns.input,)
    wanted = [name for name in (*named, columns.output) if name in data.column_names] if named else []
    view = data.select_columns(wanted) if wanted else data

    def rows(start: int) -> Iterator[tuple[str, dict[str, Any]]]:
        for first in range(start, length, 256):
            positions = range(first, min(first + 256, length))
            batch = view[[int(order[i]) for i in positions]] if order is not None else view[positions]
            for i, position in enumerate(positions):
                number = position if order is None else int(order[position])
                yield f"row {number}", {name: batch[name][i] for name in batch}

    return Stream(fingerprint, length, rows, columns, names)


def _from_iterable(data: Iterable[Any], columns: Columns) -> Stream:
    features = getattr(data, "features", None)
    names = getattr((features or {}).get(columns.output), "names", None) or ()
    once = iter(data) if iter(data) is data else None  # a generator can be read a single time
    seen: list[Any] = []

    def rows(start: int) -> Iterator[tuple[str, dict[str, Any]]]:
        # What `kind` peeked at is read again from memory, the rest from the generator itself.
        if once is None:
            source: Iterable[Any] = data
        else:
            source = itertools.chain(list(seen), _remember(once, seen))
        for number, row in enumerate(itertools.islice(source, start, None), start=start):
            if not isinstance(row, dict):
                raise DataError(f"row {number} is a {type(row).__name__}; expected a dictionary with {columns}")
            yield f"row {number}", row

    return Stream(None, None, rows, columns, dict(enumerate(names)))


def _remember(source: Iterator[Any], seen: list[Any]) -> Iterator[Any]:
    for row in source:
        if len(seen) < PEEK:
            seen.append(row)
        yield row


def _as_arrow(path: Path, fingerprint: str, columns: Columns) -> Any:
    """The file's two columns as a memory-mapped dataset; the cache key is the content, so it is made once."""
    import datasets

    stream = Stream(fingerprint, None, lambda start: read_file(path), columns)

    def rows() -> Iterator[dict[str, Any]]:
        names = stream.task().columns if columns.numbers is not None else ()
        for record in stream.records():
            given = dict(zip(names, record.input, strict=True)) if names else {columns.input: record.input}
            yield {**given, columns.output or "": record.output}

    key = hashlib.sha256(f"{fingerprint} {columns}".encode()).hexdigest()[:32]
    try:
        return datasets.Dataset.from_generator(rows, fingerprint=key)
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, DataError):
            cause = cause.__cause__
        raise cause or DataError(f"{path} can't be laid out for shuffling ({error})") from error
