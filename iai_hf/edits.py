"""Edits of a state: examples forgotten or moved to another label, labels renamed, merged, added and dropped.

Each is a pure function to a new state, and a line in the header's history, which also tells what could not be undone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from iai_hf import values
from iai_hf.data import TRAIN, open_stream
from iai_hf.errors import ConfigError, DataError, meant
from iai_hf.header import UNLABELLED, Edit, StateHeader
from iai_hf.methods import check_one_label, check_task, those
from iai_hf.state import TaskState
from iai_hf.stream import Columns, chunk_of
from iai_hf.task import LABELLED, Chunk, TaskSpec, check_sets, warn_of_alike
from iai_hf.threads import solving

if TYPE_CHECKING:
    from iai_hf.task import Tensors


@dataclass(frozen=True, eq=False)
class Edited:
    """What a method makes of an edit.

    Attributes:
        tensors: of the new state.
        approximate, restepped: see `iai_hf.header.Edit`.
        share: of the examples behind the state, those that the edit was about, 0 to 1.
        counts: what the examples had added to the header's counts.
    """

    tensors: Tensors
    approximate: Mapping[str, float] = field(default_factory=dict)
    restepped: int | None = None
    share: float = 0.0
    counts: Mapping[str, int] = field(default_factory=dict)


class Edits:
    """The part of the contract that edits states. A method that can be edited writes `forgotten` and `regrouped`."""

    method: ClassVar[str]

    # What a method is made of.

    def forgotten(self, tensors: Tensors, task: TaskSpec, chunk: Chunk, examples: int, strict: bool) -> Edited:
        """Tensors without a chunk, of a state behind `examples` examples; see `forget`."""
        raise NotImplementedError

    def regrouped(
        self, tensors: Tensors, before: TaskSpec, after: TaskSpec, places: Sequence[int | None], examples: int
    ) -> Edited:
        """Tensors of the task `after`, to whose label `places[c]` label c of `before` comes; None drops it.

        Labels of `after` that `before` has not got are known by their names alone, or have new ones.
        """
        raise NotImplementedError

    def check(self, state: TaskState) -> None:
        """Raise StateError where the state is another amortizer's."""
        raise NotImplementedError

    def update(self, state: TaskState, chunk: Chunk) -> TaskState:
        """The state refined by one chunk."""
        raise NotImplementedError

    def _signed(self, header: StateHeader) -> StateHeader:
        raise NotImplementedError

    # The contract.

    @solving()
    def forget(
        self,
        state: TaskState,
        data: Any,
        *,
        columns: Columns | None = None,
        unlabelled: Any = None,
        split: str = TRAIN,
        strict: bool = False,
    ) -> TaskState:
        """The state without examples that it has read: what its sums hold of them is gone exactly.

        What follows the order of the stream can't be undone: where texts are retained it is made anew from them,
        otherwise the share of it that the examples had a part in is told in the header's history.

        Args:
            data: a `Chunk`, or what `adapt` reads; all of it is forgotten, each row once. None where there are only
                `unlabelled` texts.
            columns, split: see `adapt`; rows without an output, where `columns` allow them, are unlabelled ones.
            unlabelled: unlabelled texts to forget too, in whatever form `data` may have.
            strict: set what can't be undone back to where it began, so that nothing of the examples remains.

        Raises:
            DataError: an unknown label, more examples of one than there are, or examples that were never read, as far
                as that can be known: with few examples the rest would be those of none, with many it may go unseen.
            ConfigError: the method's states can't be edited, or have a half-life.
            StateError: the state belongs to another method or backbone.
        """
        self._check_edits(state)
        chunk = _examples(data, columns, unlabelled, split)
        edited = self._forgotten(state, chunk, strict)
        return self._edited(state, edited, state.task, _line("forget", chunk, edited), len(chunk), chunk)

    @solving()
    def relabel(
        self,
        state: TaskState,
        data: Any,
        to: str | Sequence[str],
        *,
        columns: Columns | None = None,
        split: str = TRAIN,
        strict: bool = False,
    ) -> TaskState:
        """The state with examples moved to another label: forgotten with that which they had, and read anew.

        Args:
            data: the examples with the labels that they were read with; see `forget`.
            to: the label that all get, or one for each, in order; examples that have it already are left.
            strict: see `forget`.

        Raises:
            DataError, ConfigError, StateError: as `forget`; a label in `to` that the state does not know, or none that
                is another one.
        """
        self._check_edits(state)
        instead = "forget these examples, and adapt the state on them with the labels that are right"
        check_one_label(state.task, "relabelling", instead)
        chunk = _examples(data, columns, None, split)
        if chunk.unlabelled:
            raise DataError(f"{len(chunk.unlabelled)} rows have no label to be moved from; name the one they had")
        wanted = [to] * len(chunk) if isinstance(to, str) else values.column(to, "new labels")
        new = [values.label(label, f"new label {number}") for number, label in enumerate(wanted)]
        if len(new) != len(chunk):
            raise DataError(f"got {len(chunk)} examples and {len(new)} new labels; expected as many, or one for all")
        _check_known(state.task, new)
        moved = [number for number, label in enumerate(new) if label != chunk.outputs[number]]
        if not moved:
            raise DataError(
                "all examples have the label that they are to get; give them with the label that they were read with"
            )
        inputs = tuple(chunk.inputs[number] for number in moved)
        old = Chunk(inputs, tuple(chunk.outputs[number] for number in moved))
        edited = self._forgotten(state, old, strict)
        without = self._edited(state, edited, state.task, _line("forget", old, edited), len(old), old)
        again = self.update(without, Chunk(inputs, tuple(new[number] for number in moved)))
        line = replace(_line("relabel", old, edited), name=to if isinstance(to, str) else None)
        header = replace(again.header, stream=state.header.stream, history=(*state.header.history, line))
        return TaskState(again.tensors, header)

    def rename_label(self, state: TaskState, label: str, name: str) -> TaskState:
        """The state with a label called otherwise: its examples stay, what the name told is made from the new one.

        Raises:
            DataError: the label is not known, or the name is.
            ConfigError, StateError: as `forget`.
        """
        self._check_edits(state)
        _check_known(state.task, [label])
        name = _new_label(state.task, name, "merge_labels makes one of two")
        labels = tuple(name if known == label else known for known in state.task.labels)
        return self._regrouped(state, "rename_label", (label,), name, labels, list(range(len(labels))))

    def merge_labels(self, state: TaskState, labels: Iterable[str], name: str) -> TaskState:
        """The state with several labels made one, called `name`: a new one, or one that the state knows, which joins.

        Raises:
            DataError: fewer than two labels, an unknown one, or fewer than two would be left.
            ConfigError, StateError: as `forget`.
        """
        self._check_edits(state)
        known = state.task.labels
        merged = list(dict.fromkeys(values.column(labels, "labels to merge")))
        _check_known(state.task, merged)
        if name in known:
            merged = list(dict.fromkeys([*merged, name]))
        else:
            name = _new_label(state.task, name, "")
        if len(merged) < 2:
            raise DataError(f"got {merged} to merge into {name!r}; expected at least two different labels")
        _check_left(state.task, len(merged) - 1)
        joined = tuple(dict.fromkeys(name if label in merged else label for label in known))
        places = [joined.index(name if label in merged else label) for label in known]
        ordered = tuple(label for label in known if label in merged)
        instead = "give the labels one name in the data and adapt anew, or drop one of them"
        check_one_label(state.task, "merging labels, which a text may have together,", instead)
        return self._regrouped(state, "merge_labels", ordered, name, joined, places)

    def add_label(self, state: TaskState, name: str) -> TaskState:
        """The state with one more label, which is answered by its name alone until examples of it come.

        Raises:
            DataError: the label is known, or there are too many.
            ConfigError, StateError: as `forget`.
        """
        self._check_edits(state)
        name = _new_label(state.task, name, "it is answered already")
        labels = (*state.task.labels, name)
        return self._regrouped(state, "add_label", (), name, labels, list(range(len(state.task.labels))))

    def drop_label(self, state: TaskState, label: str) -> TaskState:
        """The state that answers a label no more, without its examples; where a text has several, these stay.

        Sums over all classes hold no class's own part; it is estimated, and told in the history. Where the examples are
        at hand, `forget` them first: then nothing has to be estimated.

        Raises:
            DataError: the label is not known, or fewer than two would be left.
            ConfigError, StateError: as `forget`.
        """
        self._check_edits(state)
        _check_known(state.task, [label])
        _check_left(state.task, 1)
        labels = tuple(known for known in state.task.labels if known != label)
        places = [labels.index(known) if known != label else None for known in state.task.labels]
        return self._regrouped(state, "drop_label", (label,), None, labels, places)

    # How.

    def _check_edits(self, state: TaskState) -> None:
        self.check(state)
        if type(self).forgotten is Edits.forgotten:
            edited = those(lambda method: method.forgotten is not Edits.forgotten)
            raise ConfigError(
                f"states of {self.method!r} can't be edited; adapt anew on other data, or choose a method whose states "
                f"can ({edited})"
            )

    def _forgotten(self, state: TaskState, chunk: Chunk, strict: bool) -> Edited:
        check_sets(state.task, chunk.outputs)
        _check_known(state.task, chunk.labels)
        read = {"examples": state.header.examples, "unlabelled rows": state.header.counts.get(UNLABELLED, 0)}
        for (what, known), gone in zip(read.items(), (len(chunk), len(chunk.unlabelled)), strict=True):
            if gone > known:
                raise DataError(f"got {gone:,} {what} to forget; the state has read {known:,}")
        return self.forgotten(state.tensors, state.task, chunk, state.header.examples, strict)

    @solving()
    def _regrouped(
        self,
        state: TaskState,
        edit: str,
        labels: tuple[str, ...],
        name: str | None,
        after: tuple[str, ...],
        places: Sequence[int | None],
    ) -> TaskState:
        task = replace(state.task, labels=after)
        check_task(self, task)
        if name is not None and name not in state.task.labels:
            warn_of_alike(tuple(label for label in after if label != name), (name,))
        edited = self.regrouped(state.tensors, state.task, task, places, state.header.examples)
        about = round(edited.share * state.header.examples)
        line = Edit(edit, about, 0, labels, name, edited.approximate, edited.restepped)
        dropped = edit == "drop_label" and task.kind == "classification"  # else the examples stay, without the label
        made = self._edited(state, edited, task, line, about if dropped else 0)
        # The rest of a stream has the labels as they were called before, and would bring them back.
        return made if edit == "add_label" else made.behind_its_stream()

    def _edited(
        self, state: TaskState, edited: Edited, task: TaskSpec, line: Edit, gone: int, chunk: Chunk | None = None
    ) -> TaskState:
        """The new state, with `gone` examples fewer."""
        less = dict(edited.counts)
        if chunk is not None and chunk.unlabelled:
            less[UNLABELLED] = len(chunk.unlabelled)
        header = dataclasses.replace(
            state.header,
            task=task,
            examples=state.header.examples - gone,
            counts={key: max(count - less.get(key, 0), 0) for key, count in state.header.counts.items()},
            history=(*state.header.history, line),
        )
        return TaskState(edited.tensors, self._signed(header))


def check_counts(task: TaskSpec, known: Sequence[float], gone: Sequence[float]) -> None:
    """Raise DataError where more examples of a class are to be forgotten than the state has read."""
    for label, have, less in zip(task.labels, known, gone, strict=True):
        if less > have + 0.5:
            raise DataError(
                f"got {less:,.0f} examples of {label!r} to forget; the state has read {have:,.0f}: give each as often "
                "as it was read, with the label that it was read with"
            )


def never_read(why: str) -> DataError:
    """The error of examples that a state can't have read."""
    return DataError(
        f"some of these examples were never read, or not with these labels ({why}); the state is as it was: give those "
        "that it has read, as they were read"
    )


def _examples(data: Any, columns: Columns | None, unlabelled: Any, split: str) -> Chunk:
    """All of the data as one chunk."""
    texts: tuple[Any, ...] = ()
    if unlabelled is not None:
        named = Columns((columns or Columns()).input, None)
        texts = tuple(record.input for record in open_stream(unlabelled, named, split=split).records())
    if data is None and texts:
        data = Chunk((), (), texts)
        texts = ()
    if not isinstance(data, Chunk):
        records = list(open_stream(data, columns, split=split).records())
        if not records:
            raise DataError("there are no examples; expected at least one")
        data = chunk_of(records)
    return replace(data, unlabelled=(*data.unlabelled, *texts)) if texts else data


def _line(edit: str, chunk: Chunk, edited: Edited) -> Edit:
    labels = chunk.labels
    return Edit(edit, len(chunk), len(chunk.unlabelled), labels, None, edited.approximate, edited.restepped)


def _check_known(task: TaskSpec, labels: Iterable[str]) -> None:
    unknown = list(dict.fromkeys(label for label in labels if label not in task.labels))
    if task.kind not in LABELLED:
        raise DataError(f"the state's task is {task.kind}, which has no labels to edit")
    if unknown:
        shown = ", ".join(map(repr, task.labels[:20])) + (", ..." if len(task.labels) > 20 else "")
        raise DataError(
            f"the state does not know the label {unknown[0]!r}; it knows {shown}{meant(unknown[0], task.labels)}"
        )


def _new_label(task: TaskSpec, name: str, instead: str) -> str:
    _check_known(task, ())
    name = values.label(name, "the new label")
    if name in task.labels:
        raise DataError(f"the state has a label {name!r} already: {instead}; choose another name")
    return name


def _check_left(task: TaskSpec, fewer: int) -> None:
    least, word = (2, "two") if task.kind == "classification" else (1, "one")
    if len(task.labels) - fewer < least:
        raise DataError(
            f"of {len(task.labels)} labels {len(task.labels) - fewer} would be left; expected at least {word}: add "
            "another one first"
        )
