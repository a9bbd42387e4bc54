"""What flows through an amortizer: the task's description, a chunk of examples, a prediction."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from iai_hf import values
from iai_hf.errors import DataError, StateError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

log = logging.getLogger(__name__)
Kind = Literal["classification", "generation", "regression"]
KINDS = get_args(Kind)
Tensors: TypeAlias = "Mapping[str, torch.Tensor]"  # of a state, by name
ABSENT_VALUES = ("nan", "n/a", "<na>", "null")  # as tables write them
MAX_LABELS = 1000  # bounds the state of a classification task; more are most likely free text


@dataclass(frozen=True)
class TaskSpec:
    """A task, as far as it is known: its kind and, for classification, its label names in a fixed order.

    Labels may be given ahead (then they can be predicted before an example of them is seen) or left empty;
    those that turn up in the stream are appended. `columns` are the names of a numeric table's inputs, in order; it is
    empty where inputs are texts.
    """

    kind: Kind = "classification"
    labels: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise DataError(f"task kind is {self.kind!r}; expected {', '.join(KINDS)}")
        labels = values.column(self.labels, "a task's labels")
        named = tuple(values.label(label, f"label {number} of a task") for number, label in enumerate(labels))
        object.__setattr__(self, "labels", named)
        object.__setattr__(self, "columns", values.names(self.columns, "a task's columns"))
        if len(set(self.labels)) != len(self.labels):
            twice = sorted({label for label in self.labels if self.labels.count(label) > 1})
            raise DataError(f"label names must be distinct; given twice: {twice}")

    def with_labels_of(self, outputs: tuple[str, ...]) -> TaskSpec:
        """The same task with the outputs that it did not know yet appended, in order of appearance."""
        if self.kind != "classification":
            return self
        unseen = dict.fromkeys(output for output in outputs if output not in self.labels)
        warn_of_alike(self.labels, tuple(unseen))
        absent = sorted(label for label in unseen if label.strip().lower() in ABSENT_VALUES)
        if absent:
            log.warning(
                "the labels %s look like values that are missing in a table; take their rows out if they are",
                ", ".join(map(repr, absent)),
            )
        return replace(self, labels=self.labels + tuple(unseen)) if unseen else self


def warn_of_alike(known: tuple[str, ...], new: tuple[str, ...]) -> None:
    """Warn where labels that look alike are going to be different classes."""
    seen = {values.folded(label): label for label in known}
    for label in new:
        near = seen.setdefault(values.folded(label), label)
        if near != label:
            log.warning(
                "the labels %s and %s are different classes, though they differ only in case, spaces or Unicode form; "
                "make them one in the data if they are the same",
                ascii(near[:60]),
                ascii(label[:60]),
            )


@dataclass(frozen=True)
class Chunk:
    """One mini-batch of labelled examples, `inputs[i]` answered by `outputs[i]`, and of inputs that have no answer.

    Inputs are texts, or tuples of floats for a numeric table; outputs are texts, for regression those of a number.
    Given as any column (list, Series, array, generator), they are kept as tuples; numbers as outputs become texts.
    `len(chunk)` counts the labelled ones.

    Raises:
        DataError: a bare string or a dictionary, an empty chunk, a value that is no text, number or label.
    """

    inputs: tuple[Any, ...]
    outputs: tuple[str, ...]
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
        answers = [
            values.label(output, f"example {number} of a chunk: output", fractions=read is values.numbers)
            for number, output in enumerate(outputs)
        ]
        object.__setattr__(self, "outputs", tuple(answers))

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def rows(self) -> int:
        """Rows of the data that it holds, labelled or not."""
        return len(self.inputs) + len(self.unlabelled)


@dataclass(frozen=True)
class Prediction:
    """Answers to a batch of queries.

    Attributes:
        outputs: one text a query.
        labels: the columns of `log_probs`; empty for generation.
        log_probs: float32 `[queries, labels]`, natural logarithm, rows sum to one after `exp`; None otherwise.
        values: float32 `[queries]`, of a regression; None otherwise.
    """

    outputs: tuple[str, ...]
    labels: tuple[str, ...] = ()
    log_probs: torch.Tensor | None = None
    values: torch.Tensor | None = None

    def __post_init__(self) -> None:
        sound = self.log_probs is None or not bool(self.log_probs.isnan().any())
        if not sound or not (self.values is None or bool(self.values.isfinite().all())):
            raise StateError(
                "an answer is no finite number: the state or the backbone's weights are damaged, or the numbers are "
                "too large for their precision; restore the state from a copy, or load in float32"
            )

    @classmethod
    def from_logits(cls, logits: torch.Tensor, labels: tuple[str, ...]) -> Prediction:
        """Classification from `[queries, labels]` logits of any float dtype."""
        log_probs = logits.float().log_softmax(-1)
        return cls(tuple(labels[i] for i in log_probs.argmax(-1).tolist()), labels, log_probs)

    def row(self, number: int) -> Prediction:
        """The answer to one query alone."""
        part = slice(number, number + 1)
        scores = None if self.log_probs is None else self.log_probs[part]
        return Prediction(self.outputs[part], self.labels, scores, None if self.values is None else self.values[part])
