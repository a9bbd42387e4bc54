"""What flows through an amortizer: the task's description, a chunk of examples, a prediction."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from iai_hf import values
from iai_hf.errors import DataError, StateError, meant

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import torch

log = logging.getLogger(__name__)
Kind = Literal["classification", "generation", "regression", "multi-label"]
KINDS = get_args(Kind)
LABELLED = ("classification", "multi-label")  # kinds whose answers are labels that the task knows
Tensors: TypeAlias = "Mapping[str, torch.Tensor]"  # of a state, by name
ABSENT_VALUES = ("nan", "n/a", "<na>", "null")  # as tables write them
MAX_LABELS = 1000  # bounds the state of a classification task; more are most likely free text
LABEL_LIMIT = 10_000  # that a setting may allow for


@dataclass(frozen=True)
class TaskSpec:
    """A task, as far as it is known: its kind and, where answers are labels, their names in a fixed order.

    In a classification a text has one label, in a "multi-label" task any number of them, or none. Labels may be given
    ahead (then they can be predicted before an example of them is seen) or left empty; those that turn up in the stream
    are appended. `columns` are the names of a numeric table's inputs, in order; it is empty where inputs are texts.
    """

    kind: Kind = "classification"
    labels: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            near = meant(str(self.kind), KINDS)
            raise DataError(f"task kind is {self.kind!r}; expected {', '.join(KINDS)}{near}", options=("kind",))
        labels = values.column(self.labels, "a task's labels")
        named = tuple(values.label(label, f"label {number} of a task") for number, label in enumerate(labels))
        object.__setattr__(self, "labels", named)
        object.__setattr__(self, "columns", values.names(self.columns, "a task's columns"))
        if len(set(self.labels)) != len(self.labels):
            twice = sorted({label for label in self.labels if self.labels.count(label) > 1})
            raise DataError(f"label names must be distinct; given twice: {twice}")

    def with_labels_of(self, outputs: tuple[Any, ...]) -> TaskSpec:
        """The same task with the labels of outputs that it did not know yet appended, in order of appearance."""
        if self.kind not in LABELLED:
            return self
        known = set(self.labels)
        unseen = dict.fromkeys(label for label in distinct(outputs) if label not in known)
        if not unseen:
            return self
        warn_of_alike(self.labels, tuple(unseen))
        absent = sorted(label for label in unseen if label.strip().lower() in ABSENT_VALUES)
        if absent:
            log.warning(
                "the labels %s look like values that are missing in a table; take their rows out if they are",
                ", ".join(map(repr, absent)),
            )
        listed = [label for label in (*self.labels, *unseen) if label.startswith("[") or label.endswith("]")]
        if listed and not known.intersection(listed):  # once is enough
            log.warning(
                "labels such as %s look like lists that were written as text, e.g. by pandas' to_csv; if so, give "
                "the data as JSON lines or Parquet, where a list is one",
                ascii(listed[0][:60]),
            )
        return replace(self, labels=self.labels + tuple(unseen))


def warn_of_alike(known: tuple[str, ...], new: tuple[str, ...]) -> None:
    """Warn where labels that look alike are going to be different classes."""
    seen = {values.folded(label): label for label in known}
    for label in new:
        near = seen.setdefault(values.folded(label), label)
        if near != label:
            log.warning(
                "the labels %s and %s are different classes, though they differ only in case, spaces or Unicode form, "
                "or in how a number is written; make them one in the data if they are the same",
                ascii(near[:60]),
                ascii(label[:60]),
            )


@dataclass(frozen=True)
class Chunk:
    """One mini-batch of labelled examples, `inputs[i]` answered by `outputs[i]`, and of inputs that have no answer.

    Inputs are texts, or tuples of floats for a numeric table; outputs are texts, for regression those of a number; of a
    multi-label task each is a list of labels, kept as a tuple, which is empty where none applies.
    Given as any column (list, Series, array, generator), they are kept as tuples; numbers as outputs become texts.
    `len(chunk)` counts the labelled ones.

    Raises:
        DataError: a bare string or a dictionary, an empty chunk, a value that is no text, number or label, or lists of
            labels beside labels alone.
    """

    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    unlabelled: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        inputs = values.column(self.inputs, "a chunk's inputs")
        outputs = values.column(self.outputs, "a chunk's outputs")
        if len(inputs) != len(outputs):
            raise DataError(f"a chunk has {len(inputs)} inputs and {len(outputs)} outputs; expected as many")
        unlabelled = values.column(self.unlabelled, "a chunk's unlabelled inputs")
        if not inputs and not unlabelled:
            raise DataError("a chunk is empty; expected at least one example")
        read = values.text if isinstance((inputs or unlabelled)[0], str) else values.numbers
        made = [read(given, f"example {number} of a chunk: input") for number, given in enumerate(inputs)]
        object.__setattr__(self, "inputs", tuple(made))
        others = [read(given, f"unlabelled input {number} of a chunk") for number, given in enumerate(unlabelled)]
        object.__setattr__(self, "unlabelled", tuple(others))
        several, fractions = any(map(values.is_set, outputs)), read is values.numbers
        places = [f"example {number} of a chunk: output" for number in range(len(outputs))]
        answers = [
            values.label_set(output, place) if several else values.label(output, place, fractions=fractions)
            for output, place in zip(outputs, places, strict=True)
        ]
        object.__setattr__(self, "outputs", tuple(answers))

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def label_sets(self) -> bool:
        """Whether outputs are lists of labels."""
        return bool(self.outputs) and isinstance(self.outputs[0], tuple)

    @property
    def labels(self) -> tuple[str, ...]:
        """The different labels of the outputs, in order of appearance."""
        return distinct(self.outputs)

    @property
    def rows(self) -> int:
        """Rows of the data that it holds, labelled or not."""
        return len(self.inputs) + len(self.unlabelled)


def distinct(outputs: Iterable[Any]) -> tuple[str, ...]:
    """The different labels of outputs, each one label or several, in order of appearance."""
    each = ((output,) if isinstance(output, str) else output for output in outputs)
    return tuple(dict.fromkeys(label for several in each for label in several))


def plain_sets(outputs: Iterable[Any]) -> list[Any]:
    """Outputs as they are, but for lists of labels of any type, which become tuples.

    Raises:
        DataError: a list of what are no labels; its place is named.
    """
    return [
        values.label_set(output, f"example {number}: output") if values.is_set(output) else output
        for number, output in enumerate(outputs)
    ]


def check_sets(task: TaskSpec, outputs: Iterable[Any]) -> None:
    """Raise DataError where an output is a list of labels and the task has one a text, or the other way round."""
    for number, output in enumerate(outputs):
        several = isinstance(output, tuple)
        if output is None or several == (task.kind == "multi-label"):
            continue
        if several:
            raise DataError(
                f"example {number} has a list of labels, {str(list(output))[:60]}; the kind is {task.kind}, with one "
                'answer each: choose the kind "multi-label", or give one label',
                options=("kind multi-label",),
            )
        raise DataError(
            f"example {number} has one answer, {str(output)[:60]!r}; the kind is multi-label, where each is a list: "
            "write [...] around one label, or name what separates several in a text",
            options=("label_separator",),
        )


@dataclass(frozen=True)
class Prediction:
    """Answers to a batch of queries.

    Attributes:
        outputs: one text a query, None where it was abstained from; of a multi-label task the labels that apply, a
            tuple.
        labels: the columns of `log_probs`, or of `probabilities`; empty for generation.
        log_probs: float32 `[queries, labels]`, natural logarithm, rows sum to one after `exp`; None otherwise.
        values: float32 `[queries]`, of a regression; None otherwise.
        probabilities: float32 `[queries, labels]`, of a multi-label task, each label's own; None otherwise.
        sets: labels a query, the right one among them as often as was asked, None of one that was abstained from; None
            where it was not.
    """

    outputs: tuple[Any, ...]
    labels: tuple[str, ...] = ()
    log_probs: torch.Tensor | None = None
    values: torch.Tensor | None = None
    probabilities: torch.Tensor | None = None
    sets: tuple[Any, ...] | None = None

    def __post_init__(self) -> None:
        scores = self.log_probs if self.probabilities is None else self.probabilities
        sound = scores is None or not bool(scores.isnan().any())
        if not sound or not (self.values is None or bool(self.values.isfinite().all())):
            raise StateError(
                "an answer is no finite number: the state or the backbone's weights are damaged, or the numbers are "
                "too large for their precision; restore the state from a copy, or load in float32"
            )

    @property
    def kind(self) -> Kind:
        """Of the task that is answered."""
        if self.probabilities is not None:
            return "multi-label"
        if self.values is not None:
            return "regression"
        return "generation" if self.log_probs is None else "classification"

    @classmethod
    def from_logits(cls, logits: torch.Tensor, labels: tuple[str, ...]) -> Prediction:
        """Classification from `[queries, labels]` logits of any float dtype."""
        log_probs = logits.float().log_softmax(-1)
        return cls(tuple(labels[i] for i in log_probs.argmax(-1).tolist()), labels, log_probs)

    @classmethod
    def from_label_logits(cls, logits: torch.Tensor, thresholds: torch.Tensor, labels: tuple[str, ...]) -> Prediction:
        """Sets of labels from a logit for each, `[queries, labels]`; those above its threshold apply, `[labels]`."""
        apply = (logits > thresholds).tolist()
        sets = tuple(tuple(label for label, has in zip(labels, row, strict=True) if has) for row in apply)
        return cls(sets, labels, probabilities=logits.float().sigmoid())

    @classmethod
    def joined(cls, parts: Sequence[Prediction]) -> Prediction:
        """The answers to several batches as those to one."""
        import torch

        def whole(name: str) -> torch.Tensor | None:
            found = [tensor for part in parts if (tensor := getattr(part, name)) is not None]
            return torch.cat(found) if found else None

        outputs = tuple(output for part in parts for output in part.outputs)
        sets = tuple(labels for part in parts for labels in part.sets or ())
        return cls(
            outputs,
            parts[0].labels,
            whole("log_probs"),
            whole("values"),
            whole("probabilities"),
            None if parts[0].sets is None else sets,
        )

    def row(self, number: int) -> Prediction:
        """The answer to one query alone."""
        part = slice(number, number + 1)
        each = (self.log_probs, self.values, self.probabilities)
        log_probs, values, probabilities = (None if scores is None else scores[part] for scores in each)
        sets = None if self.sets is None else self.sets[part]
        return Prediction(self.outputs[part], self.labels, log_probs, values, probabilities, sets)
