"""Stream: labelled examples as checked records, from any position on, cut into chunks."""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from iai_hf import values
from iai_hf.delimited import hint
from iai_hf.errors import DataError, meant
from iai_hf.header import BEHIND
from iai_hf.methods import OR_MORE_LABELS, those
from iai_hf.readers import beginning
from iai_hf.task import LABELLED, MAX_LABELS, Chunk, TaskSpec, check_sets, distinct

log = logging.getLogger(__name__)
PEEK = 256  # examples looked at to tell classification from generation
REPEATED = 0.6  # of the rows, as many different outputs as classes may have at most


class Record(NamedTuple):
    """One example: a text, or the numbers of a table's row.

    `output` is a text, empty where a stream has no output column, or a tuple of labels. Only where
    `Columns.allow_missing_outputs` is set, or in `Stream.unlabelled`, it may be None, of a row without a label.
    """

    input: Any
    output: Any


@dataclass(frozen=True)
class Columns:
    """Names of the columns that hold the text and its answer; `output` None reads queries only.

    `numbers` makes a numeric table of the rows: the names of its inputs, in order; empty for all but the output.
    `quotes` says whether quotation marks in a CSV or TSV file enclose fields, where that is in doubt; False takes them
    for part of the texts. `allow_missing_outputs` reads rows whose output is missing (null, NaN, an empty text, -1
    among class numbers) as unlabelled ones; otherwise they are an error. `label_separator` stands between the labels of
    an output that is a text, as in CSV: "a;b" is then the labels "a" and "b", an empty text none. Lists need none.

    Raises:
        DataError: a name that is no text, or a separator that separates nothing.
    """

    input: str = "input"
    output: str | None = "output"
    numbers: tuple[str, ...] | None = None
    quotes: bool | None = None
    allow_missing_outputs: bool = False
    label_separator: str | None = None

    def __post_init__(self) -> None:
        for role in ("input", "output"):
            name = getattr(self, role)
            if not isinstance(name, str) and not (role == "output" and name is None):
                raise DataError(f"the {role} column is {name!r}; expected its name, a text")
        if self.numbers is None and self.input == self.output:
            raise DataError(
                f"texts and answers are both to be read from the column {self.input!r}; name another one for either",
                options=("input_column", "output_column"),
            )
        if self.numbers is not None:
            object.__setattr__(self, "numbers", values.names(self.numbers, "columns of numbers"))
        if self.quotes not in (None, True, False):
            raise DataError(f"quotes is {self.quotes!r}; expected True, False or None")
        if self.label_separator is not None and not (isinstance(self.label_separator, str) and self.label_separator):
            raise DataError(f"the label separator is {self.label_separator!r}; expected a text, e.g. ';'")
        if self.label_separator is not None and self.allow_missing_outputs:
            raise DataError(
                "with a label separator an empty output says that no label applies, so rows without an output can't be "
                "told from it; leave one of the two out"
            )

    @property
    def named(self) -> tuple[str, ...]:
        """All columns that are named, which a row must have."""
        inputs = (self.input,) if self.numbers is None else self.numbers
        return inputs if self.output is None else (*inputs, self.output)


@dataclass(frozen=True)
class Stream:
    """Records from a source, from any position on.

    Attributes:
        fingerprint: identifies the content and order; None for a plain iterable, which can't be told from another.
        length: number of records where known ahead.
        class_names: of the classes that stand as numbers in the output column.
        outputs: the different outputs where known ahead, of lists of labels the different labels, up to one more than a
            classification may have.
        hub_id: of the dataset, where it came from the Hub.
        file: that the records are of.
        content: digest of the records, the same in any order and form; None where they are not read ahead.
        unlabelled: whose inputs are read before all else, as rows without a label.
        rows: `rows(start)` yields `(place, row)` from record `start` on.
        threaded: whether rows may be read in another thread, before they are asked for: reading takes none away.
    """

    fingerprint: str | None
    length: int | None
    rows: Callable[[int], Iterator[tuple[str, Mapping[str, Any]]]]
    columns: Columns = field(default_factory=Columns)
    class_names: tuple[str, ...] = ()
    outputs: frozenset[str] | None = None
    hub_id: str | None = None
    file: Path | None = None
    content: str | None = None
    unlabelled: Stream | None = None
    threaded: bool = False

    def behind(self, unlabelled: Stream) -> Stream:
        """The stream that begins with the inputs of another one, as rows without a label.

        Raises:
            DataError: its rows can't be counted ahead, or there are none.
        """
        if unlabelled.length is None:
            raise DataError(
                "the number of unlabelled rows is not known ahead, as of a generator; pass a list, a file or a dataset"
            )
        if not unlabelled.length:
            raise DataError("the unlabelled data have no rows; expected at least one text, or leave them out")
        whole = None
        if self.fingerprint is not None and unlabelled.fingerprint is not None:
            whole = f"{self.fingerprint}{BEHIND}{unlabelled.fingerprint}"
        threaded = self.threaded and unlabelled.threaded
        return replace(self, fingerprint=whole, unlabelled=unlabelled, threaded=threaded)

    def continues(self, known: Collection[str]) -> str | None:
        """The fingerprint among `known` of what the file was before rows were appended; None if there is none."""
        return None if self.file is None else beginning(self.file, known)

    @property
    def known_as(self) -> tuple[str, ...]:
        """What the data are recognised by: their fingerprint, and their rows whatever the file's form."""
        return tuple(name for name in (self.fingerprint, self.content) if name is not None)

    @property
    def ahead(self) -> int:
        """Rows before the stream's own."""
        return 0 if self.unlabelled is None else self.unlabelled.length or 0

    def records(self, start: int = 0) -> Iterator[Record]:
        """Checked records from `start` on.

        Raises:
            DataError: a column is missing, a text is empty or no text; the message names the place.
        """
        columns = self.columns
        names = columns.numbers or ()
        first = None
        if self.unlabelled is not None:
            for record in self.unlabelled.records(start):
                yield record._replace(output=None)
        for place, row in self.rows(max(start - self.ahead, 0)):
            if columns.allow_missing_outputs and columns.output not in (None, *row):
                raise DataError(
                    f"{place} has no column {columns.output!r}; found {sorted(map(str, row))}: where an output is "
                    "missing write null, so that a misspelt name can't be taken for one",
                    options=("output_column",),
                )
            if columns.numbers is None:
                check_columns(place, row, columns.named)
                given: Any = values.text(row[columns.input], f"{place}: {columns.input!r}")
            else:
                names = names or self._inputs_of(row)
                check_columns(place, row, (*names, *columns.named))
                given = tuple(values.number(row[name], f"{place}: {name!r}") for name in names)
            output = self.output(place, row)
            first = output if first is None else first
            if output is not None and isinstance(output, tuple) is not isinstance(first, tuple):
                kinds = ("one label", "a list of labels")
                raise DataError(
                    f"{place}: {columns.output!r} is {kinds[isinstance(output, tuple)]} ({str(output)[:40]!r}), where "
                    f"rows before have {kinds[isinstance(first, tuple)]}; expected one or the other in all rows"
                )
            yield Record(given, output)

    def batches(self, size: int, start: int = 0, stop: int | None = None) -> Iterator[list[Record]]:
        """Records `start` to `stop`, `size` at a time; the last may be fewer, and the last of those `ahead`."""
        if size < 1:
            raise DataError(f"chunk size is {size}; expected at least 1")
        records, read = itertools.islice(self.records(start), None if stop is None else max(stop - start, 0)), start
        while batch := list(itertools.islice(records, min(size, self.ahead - read) if read < self.ahead else size)):
            read += len(batch)
            yield batch

    def chunks(self, size: int, start: int = 0, stop: int | None = None) -> Iterator[Chunk]:
        """Chunks of `size` rows (the last may be shorter) of records `start` to `stop`."""
        return map(chunk_of, self.batches(size, start, stop))

    def task(self, given: TaskSpec | None = None, stop: int | None = None, most: int = MAX_LABELS) -> TaskSpec:
        """The task, as far as it is not given: its kind, and the columns of a numeric table.

        The kind is classification where the dataset names classes, or where most outputs of the first examples, or of
        all where they are known, occur more than once, and no more differ than a state may have labels; of a table,
        regression where they are numbers, and over 20 different ones or not whole; otherwise generation. Lists of
        labels make a multi-label task.

        Args:
            stop: so many examples are going to be read; None for all.
            most: labels that a state may have.

        Raises:
            DataError: there is no example, or a classification has more labels than a state may hold; a kind is given
                that the outputs are not of.
        """
        columns = self.columns
        self._check_separator()
        if given is not None:
            self.check_labels(given, stop, most)
            check_sets(given, (record.output for record in itertools.islice(self.records(), 1)))
            if columns.numbers is None:
                return given
        first = list(itertools.islice(self.records(), PEEK))
        if not first:
            raise DataError("the dataset has no examples; expected at least one")
        names = columns.numbers or self._inputs_of(next(self.rows(0))[1])
        counts = Counter(record.output for record in first if record.output is not None)
        if any(isinstance(output, tuple) for output in counts):
            task = TaskSpec("multi-label", columns=given.columns if given else names if columns.numbers else ())
            self.check_labels(task, stop, most)
            return task
        if given is not None:
            return replace(given, columns=names)
        if columns.numbers is not None:
            values.check_numbers(counts, columns.output)
            return TaskSpec("regression" if values.measured(counts) else "classification", columns=names)
        if separator := values.likely_separator(counts):
            shown = next(output for output in counts if separator in output)
            log.warning(
                "outputs as %s are taken whole, and look like several labels with %r between: if they are, name it as "
                "the label separator",
                ascii(shown[:60]),
                separator,
            )
        outputs = self.outputs_until(stop)
        seen = [(len(counts), counts.total())]
        if outputs is not None and self.length is not None:
            seen.append((len(outputs), self.length if stop is None else min(stop, self.length)))
        repeated = any(different <= max(2, REPEATED * total) for different, total in seen)
        if self.class_names or (repeated and seen[-1][0] <= most):
            self.check_labels(TaskSpec(), stop, most)
            return TaskSpec("classification")
        inputs = Counter(record.input for record in first)
        if len(inputs) > 1 and 2 * len(inputs) <= len(first):
            log.warning(
                "%r has %s different texts in %s rows, as labels do, and %r hardly one twice; are the two columns the "
                "wrong way round?",
                columns.input,
                len(inputs),
                len(first),
                columns.output,
            )
        different, total = seen[-1]
        over = "over " if different > most else ""
        log.info("taken for generation: %s%s different outputs in %s examples", over, min(different, most), total)
        return TaskSpec("generation")

    def _check_separator(self) -> None:
        """Warn where what should separate labels separates none in the first examples."""
        separator = self.columns.label_separator
        if separator is None:
            return
        first = list(itertools.islice(self.records(), PEEK))
        if first and all(len(record.output or ()) < 2 for record in first):
            log.warning(
                "none of the first %s outputs has %r in it, so each is one label, e.g. %s; is that the separator?",
                len(first),
                separator,
                ascii(next((record.output[0] for record in first if record.output), "")[:60]),
            )

    def check_labels(self, task: TaskSpec, stop: int | None = None, most: int = MAX_LABELS) -> None:
        """Raise DataError where `task` is a classification, and would have more than `most` labels.

        Where they are more than usual, and nearly as many as rows, that is told: so are the values of an id.
        """
        outputs = self.outputs_until(stop)
        if task.kind not in LABELLED or outputs is None:
            return
        if len(outputs.union(task.labels)) > most:
            raise DataError(
                f"the examples have over {most} different outputs, more than a classification may have labels: "
                "if they are free text, the kind is generation, for a method that answers it "
                f"({those(lambda method: 'generation' in method.kinds)}){OR_MORE_LABELS}, or join or drop rare ones",
                options=("kind generation",),
            )
        rows = self.length if stop is None or self.length is None else min(stop, self.length)
        if rows is not None and len(outputs) > max(MAX_LABELS, REPEATED * rows):
            log.warning(
                "the %s rows have %s different outputs, e.g. %s: if most rows have one of their own, as an id, nothing "
                "can be learned from it, and another column is the output",
                f"{rows:,}",
                f"{len(outputs):,}",
                ascii(min(outputs)[:60]),
            )

    def outputs_until(self, stop: int | None = None) -> frozenset[str] | None:
        """The different outputs of the first `stop` examples, or of all, where the stream can be read ahead."""
        if self.outputs is None or stop is None or (self.length is not None and stop >= self.length):
            return self.outputs
        read = itertools.islice(self.records(), stop)
        return frozenset(distinct(record.output for record in read if record.output is not None))

    def _inputs_of(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(name for name in row if name != self.columns.output)

    def output(self, place: str, row: Mapping[str, Any]) -> str | tuple[str, ...] | None:
        """The answer of one row, checked; empty where the stream has no output column, None where it may be missing."""
        column = self.columns.output
        if column is None:
            return ""
        if self.columns.allow_missing_outputs and values.unlabelled(row[column], self.class_names):
            return None
        separator = self.columns.label_separator
        if separator is not None or values.is_set(row[column]):
            return values.label_set(row[column], f"{place}: {column!r}", self.class_names, separator)
        if isinstance(row[column], str) and not row[column].strip():
            raise DataError(
                f"{place}: {column!r} is empty; expected a text: drop the row or fill it, or, where an empty one says "
                "that no label applies, name what stands between several labels",
                options=("label_separator",),
            )
        fractions = self.columns.numbers is not None
        return values.label(row[column], f"{place}: {column!r}", self.class_names, fractions=fractions)


def chunk_of(records: Iterable[Record]) -> Chunk:
    """Records as a chunk, those without a label apart."""
    pairs, unlabelled = [], []
    for given, output in records:
        if output is None:
            unlabelled.append(given)
        else:
            pairs.append((given, output))
    return Chunk(tuple(given for given, _ in pairs), tuple(output for _, output in pairs), tuple(unlabelled))


def check_columns(place: str, found: Collection[Any], wanted: Iterable[str]) -> None:
    """Raise DataError where a column is missing; the message shows those that are there."""
    for name in wanted:
        if name not in found:
            raise DataError(
                f"{place} has no column {name!r}; found {_few(found)}{hint(list(found))}: "
                f"name the right ones{meant(name, map(str, found))}",
                options=("input_column", "output_column", "target"),
            )


def _few(names: Collection[Any]) -> list[str]:
    return [name if len(name) <= 40 else f"{name[:37]}..." for name in sorted(map(str, names))]
