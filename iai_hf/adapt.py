"""The one streaming loop: any dataset, chunk by chunk, through an amortizer's `update`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from iai_hf.ahead import ahead
from iai_hf.config import whole_number
from iai_hf.cursor import Cursor
from iai_hf.data import Columns, Stream, open_stream
from iai_hf.errors import DataError, StateError
from iai_hf.files import STATE_FILE, claimed
from iai_hf.header import StreamPosition
from iai_hf.methods import check_takes_unlabelled
from iai_hf.order import LabelOrder
from iai_hf.progress import Progress
from iai_hf.state import TaskState, check_folder
from iai_hf.task import LABELLED, Chunk, TaskSpec

if TYPE_CHECKING:
    from iai_hf.backbones import Backbone

log = logging.getLogger(__name__)


class Updates(Protocol):
    """What the loop needs of an amortizer."""

    backbone: Backbone
    method: ClassVar[str]
    takes_unlabelled: ClassVar[bool]

    @property
    def max_labels(self) -> int:
        """Labels that a state may have."""

    def init_state(self, task: TaskSpec | None = None) -> TaskState:
        """The state before any example."""

    def read_ahead(self, chunk: Chunk) -> None:
        """Make what `update` with the chunk will need but for the model."""

    def update(self, state: TaskState, chunk: Chunk) -> TaskState:
        """The state refined by one chunk."""

    def check(self, state: TaskState) -> None:
        """Raise StateError where the state is another amortizer's."""


def adapt(
    amortizer: Updates,
    data: Any,
    state: TaskState | None = None,
    *,
    task: TaskSpec | None = None,
    columns: Columns | None = None,
    unlabelled: Any = None,
    split: str = "train",
    chunk_size: int = 64,
    max_examples: int | None = None,
    shuffle_seed: int | None = None,
    resume: bool = False,
    output: str | Path | None = None,
    checkpointing_steps: int = 20,
    on_step: Callable[[TaskState, Chunk], None] | None = None,
    progress: bool = True,
    read_ahead: bool = True,
) -> TaskState:
    """Stream `data` through `update` and return the last state.

    Args:
        data: dataset, path, Hub id or iterable; see `iai_hf.data.open_stream`.
        state: go on from this one (more data tomorrow); by default the amortizer's initial state.
        task: kind and label names where known ahead; by default the kind is told from the first examples.
        unlabelled: more texts of the task, without labels, in whatever form `data` may have but for a generator: they
            are read first, their inputs alone. Rows of `data` without an output are unlabelled ones too where `columns`
            allow it.
        chunk_size: examples an update.
        max_examples: stop after that many rows of `data`.
        shuffle_seed: read in an order permuted from this seed.
        resume: `state` was left in the middle of this same stream; go on behind the last example it absorbed.
        output: folder, held by this run alone, to which the state is saved every `checkpointing_steps` chunks and at
            the end; of several processes that read together (`Backbone.split_over_processes`), the first saves.
        on_step: called after each update with the new state and its chunk.
        progress: show rows, tokens a second and the time left: a bar on standard error, or where that is no terminal
            a line a minute in the log.
        read_ahead: read and tokenise rows of files, lists and datasets in a thread, while the model is at those before.
            False does so in this thread, for a dataset whose code can't run in another. The state is the same.

    Raises:
        DataError: nothing to read, malformed data, a file that changed meanwhile, or a single class.
        ConfigError: rows without a label for a method that can't take them.
        StateError: `resume` without a state, or with one that was in another stream; `task` is not the state's;
            another run writes to `output`, or it holds something else, or a state that was not given.
    """
    chunk_size = whole_number("chunk_size", chunk_size, at_least=1)
    checkpointing_steps = whole_number("checkpointing_steps", checkpointing_steps, at_least=1)
    if max_examples is not None:
        max_examples = whole_number("max_examples", max_examples, at_least=1)
    if shuffle_seed is not None:
        shuffle_seed = whole_number("shuffle_seed", shuffle_seed, at_least=0)
    group = amortizer.backbone.group
    first_process = group.index == 0
    output = Path(output) if output is not None and first_process else None
    if output is not None:
        check_folder(output)
        if state is None and (output / STATE_FILE).is_file():
            raise StateError(f"{output} holds a state already; pass it as `state` to go on, or choose another folder")
    with ExitStack() as stack:
        if output is not None:
            stack.enter_context(claimed(output))  # before anything is read
        if task is not None and not isinstance(task, TaskSpec):
            raise DataError(f"task is {task!r}; expected e.g. TaskSpec('classification')")
        if state is not None:  # a table is read as the state knows it, by the names of its columns
            named = columns or (data.columns if isinstance(data, Stream) else Columns())
            columns = replace(named, numbers=state.task.columns or None)
        stream = open_stream(data, columns, split=split, shuffle_seed=shuffle_seed)
        if unlabelled is not None or stream.columns.allow_missing_outputs:
            check_takes_unlabelled(amortizer)
        whole = stream
        if unlabelled is not None:
            texts = open_stream(unlabelled, Columns(stream.columns.input, None), split=split)
            if texts.fingerprint is not None and texts.fingerprint == stream.fingerprint:
                log.warning("the unlabelled texts are those of the data itself, which tell nothing more")
            whole = stream.behind(texts)
        cursor = Cursor(whole, chunk_size, shuffle_seed)
        if state is None:
            if resume:
                raise StateError("there is no state to resume; start without resume")
            state = amortizer.init_state(stream.task(task, max_examples, amortizer.max_labels))
        else:
            amortizer.check(state)
            _check_task(task, state.task, resume)
            stream.check_labels(state.task, max_examples, amortizer.max_labels)
            if resume:
                if cursor.resume(state.header):  # what it was before stays noted, so that no merge counts it twice
                    state = TaskState(state.tensors, replace(state.header, merged=state.header.read))
            else:
                if set(stream.known_as).intersection(state.header.read):
                    log.warning("the state has read this data already: every example will count once more")
                elif stream.continues(state.header.read):
                    log.warning(
                        "%s begins with rows that the state has read already, which will count once more: name a file "
                        "of the new ones alone, or resume without shuffling, which reads only these",
                        stream.file,
                    )
                state = state.behind_its_stream()
        if stream.content is not None and stream.file is not None:  # lists leave no more behind than what they yield
            state = state.having_read(stream.content)
        stop = None if max_examples is None else whole.ahead + max_examples
        reading = cursor.chunks(stop)
        if read_ahead and whole.threaded:
            reading = _ahead(amortizer, reading)
        at = cursor.position.examples
        if stop is not None and at > stop:
            log.warning(
                "the state has read %s rows of this stream, max_examples asks for %s: nothing is read",
                f"{at - whole.ahead:,}",
                max_examples,
            )
            stop = at
        length = None if whole.length is None else whole.ahead + whole.length
        total = length if stop is None else min(stop, length or stop)
        meter = amortizer.backbone.meter
        saved, position = state, cursor.position
        bar = stack.enter_context(Progress(total, at, progress and first_process, lambda: meter.tokens))
        stack.enter_context(closing(reading))
        unseen_ahead = set(task.labels if task is not None else ())
        order = LabelOrder() if state.task.kind in LABELLED else None
        try:
            for position, chunk in reading:
                state = amortizer.update(state, chunk).at(position, stream.hub_id)
                bar.update(chunk.rows)
                unseen_ahead.difference_update(chunk.labels)
                if order is not None and order.read(chunk.outputs):
                    log.warning("%s", order)
                    order = None
                if on_step is not None:
                    on_step(state, chunk)
                if output is not None and state.header.steps % checkpointing_steps == 0:
                    state.save_pretrained(output)
                    saved = state
        except (KeyboardInterrupt, DataError) as error:
            behind = state.header.stream
            agreed = group.count == 1 or isinstance(error, KeyboardInterrupt)  # processes may have read different rows
            if agreed and output is not None and state is not saved and behind is not None:
                # What was read so far need not be read again.
                state.save_pretrained(output)
                log.warning("%s holds the state of the first %s rows", output, f"{behind.examples:,}")
            raise
        group.agree("end", str(position.examples))
        if position.examples == 0:
            raise DataError("the dataset has no examples; expected at least one")
        if state.task.kind in LABELLED and not state.task.labels:
            raise DataError(
                "no row has a label, and none was named ahead; check the output column, or name the labels: "
                f"task=TaskSpec({state.task.kind!r}, (...))"
            )
        if state.task.kind == "classification" and len(state.task.labels) < 2:
            known = stream.outputs or ()
            if len(known) > 1:
                raise DataError(
                    f"the first {position.examples:,} examples have the one label {state.task.labels[0]!r}, others "
                    f"come behind ({', '.join(sorted(known.difference(state.task.labels))[:3])}, ...): read more, or "
                    "shuffle data that are sorted by label",
                    options=("shuffle_seed", "max_examples"),
                )
            raise DataError(
                f"all examples have the one label {state.task.labels[0]!r}; expected at least two classes: check the "
                "output column, or name the other labels ahead"
            )
        if task is not None and task.labels and len(unseen_ahead) == len(task.labels) and state.header.examples:
            log.warning(
                "none of the labels named ahead (%s, ...) occurs in the data, whose first is %r: are they the same?",
                ascii(task.labels[0]),
                state.task.labels[len(task.labels) : len(task.labels) + 1],
            )
        elif task is not None and unseen_ahead and len(state.task.labels) > len(task.labels):
            log.warning(
                "labels named ahead that the data do not have: %s; and that they have beside those: %s: is one "
                "the other?",
                ", ".join(map(ascii, sorted(unseen_ahead)[:5])),
                ", ".join(map(ascii, state.task.labels[len(task.labels) :][:5])),
            )
        if output is not None:
            state.save_pretrained(output)
    return state


def _ahead(
    amortizer: Updates, chunks: Iterator[tuple[StreamPosition, Chunk]]
) -> Generator[tuple[StreamPosition, Chunk], None, None]:
    """The chunks, each read and made ready for the model in a thread, while the one before is used."""

    def ready() -> Iterator[tuple[StreamPosition, Chunk]]:
        for position, chunk in chunks:
            amortizer.read_ahead(chunk)
            yield position, chunk

    return ahead(ready())


def _check_task(given: TaskSpec | None, known: TaskSpec, resume: bool) -> None:
    """Raise StateError where the task that is given is not the state's."""
    if given is None:
        return
    if given.kind != known.kind:
        raise StateError(f"the state's task is {known.kind}, not {given.kind}; leave the kind out, or start anew")
    if given.columns not in ((), known.columns):
        raise StateError(f"the state reads columns {list(known.columns)}, not {list(given.columns)}; leave them out")
    unknown = [label for label in given.labels if label not in known.labels]
    if unknown or (resume and known.labels[: len(given.labels)] != given.labels):
        raise StateError(
            f"the state's labels are {list(known.labels)}, not {list(given.labels)}; leave the labels out (new ones "
            "join with their first example), or start anew"
        )
