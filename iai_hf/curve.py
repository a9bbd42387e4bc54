"""The adaptation curve: how good a state's answers are as examples arrive, and what that costs."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iai_hf import evaluation_file
from iai_hf.errors import DataError
from iai_hf.files import CURVE_FILE, EVALUATION_FILE, write_whole
from iai_hf.methods import can_answer
from iai_hf.metrics import check_labels, score
from iai_hf.task import LABELLED, Chunk, TaskSpec, check_sets

if TYPE_CHECKING:
    from iai_hf.amortizer import Amortizer
    from iai_hf.state import TaskState

log = logging.getLogger(__name__)


class Curve:
    """Evaluates states while they adapt, and times adapting and evaluating apart.

    Args:
        inputs, outputs: test data; outputs that the state does not know yet count as errors.
        test: name of the test data.
        directory: where `evaluation.json` is written at every point, so that a run that is cut off keeps its curve; of
            several processes that evaluate together, the first writes.
        allow_unseen_labels: let `check` pass outputs that no state is going to know.
    """

    def __init__(
        self,
        amortizer: Amortizer,
        inputs: Sequence[str],
        outputs: Sequence[str],
        test: str = "",
        directory: Path | None = None,
        *,
        allow_unseen_labels: bool = False,
    ) -> None:
        self.allow_unseen_labels = allow_unseen_labels
        self.amortizer, self.inputs, self.outputs = amortizer, inputs, outputs
        self.test, self.directory = test, directory
        self.curve: list[dict[str, Any]] = []
        self.query_seconds = 0.0
        self.start()

    def start(self) -> None:
        """Start the clock."""
        self.began, self.paused = time.perf_counter(), 0.0

    def resume(self, state: TaskState) -> None:
        """Take over the points of the run that `state` was left in, as far as they are behind it.

        Raises:
            DataError: they are of other test data, or their file is damaged.
        """
        found = None if self.directory is None else evaluation_file.read(self.directory)
        if found is None:
            return
        if found.get("run") != _run(state):
            log.warning("%s in %s is of another run; its points are not taken over", EVALUATION_FILE, self.directory)
            return
        if found["test_digest"] != self.test_digest:
            raise DataError(
                f"{EVALUATION_FILE} in {self.directory} was measured on other test data ({found['test']}, digest "
                f"{found['test_digest'][:8]}) than {self.test} ({self.test_digest[:8]}); resume with the same test "
                "data, or move that file away",
                options=("test",),
            )
        examples, same = state.header.examples, found["state"] == state.digest
        points = [point for point in found["curve"] if point["examples"] < examples + same]
        if points:
            self.curve, self.query_seconds = points, found["milliseconds_per_query"] * len(self.inputs) / 1000
            self.began -= points[-1]["adapt_seconds"]

    @cached_property
    def test_digest(self) -> str:
        """Of the test data."""
        return hashlib.sha256(json.dumps([list(self.inputs), list(self.outputs)]).encode()).hexdigest()[:32]

    def check(self, task: TaskSpec, coming: Iterable[str] | None = ()) -> None:
        """Raise DataError where a test label is none of the task's, nor of those still `coming`; None is any."""
        if task.kind in LABELLED and coming is not None and not self.allow_unseen_labels:
            check_sets(task, self.outputs)
            check_labels((*task.labels, *coming), self.outputs)

    def evaluate(self, state: TaskState) -> None:
        """A point of the curve; none where the state was evaluated already, or can't answer yet."""
        if self.curve and self.curve[-1]["examples"] == state.header.examples:
            return
        now = time.perf_counter()
        if can_answer(state.task):
            prediction = self.amortizer.predict(state, self.inputs)
            self.query_seconds = time.perf_counter() - now
            metrics = score(prediction, self.outputs, allow_unseen_labels=True)
            spent = now - self.began - self.paused
            self.curve.append({"examples": state.header.examples, **metrics, "adapt_seconds": spent})
            name, value = next(iter(metrics.items()))
            log.info("  %s examples: %s %.3f", f"{state.header.examples:,}", name.replace("_", " "), value)
            self.save(state, plot=False)
        self.paused += time.perf_counter() - now

    def evaluate_at(self, marks: Sequence[int]) -> Callable[[TaskState, Chunk], None]:
        """An `on_step` for `adapt` that evaluates where the marks, numbers of examples, are passed."""

        def on_step(state: TaskState, chunk: Chunk) -> None:
            examples = state.header.examples
            if any(examples - len(chunk) < mark <= examples for mark in marks):
                self.evaluate(state)

        return on_step

    def record(self, state: TaskState) -> dict[str, Any]:
        """All of it, as plain values: `curve`, and `state_bytes`, `milliseconds_per_query` at the end.

        Raises:
            DataError: there is no point.
        """
        if not self.curve:
            raise DataError("the state was never ready to answer; expected at least two labels")
        return {
            "examples": state.header.examples,
            "counts": dict(state.header.counts),
            "state_bytes": state.nbytes,
            "milliseconds_per_query": 1000 * self.query_seconds / len(self.inputs),
            "adapt_seconds": self.curve[-1]["adapt_seconds"],
            "curve": self.curve,
        }

    def described(self, state: TaskState) -> dict[str, Any]:
        """What `evaluation.json` holds: the record, its test data, and which run and which state it is of."""
        return {
            "test": self.test,
            "test_examples": len(self.inputs),
            "test_digest": self.test_digest,
            "run": _run(state),
            "state": state.digest,
            "method": state.header.method,
            **self.record(state),
        }

    def save(self, state: TaskState, plot: bool = True) -> None:
        """Write `evaluation.json`, and `curve.png`, where there is a `directory`.

        Raises:
            DataError: there is no point.
        """
        from iai_hf.plots import curve_plot

        if self.directory is None or self.amortizer.backbone.group.index:
            return
        found = self.described(state)
        evaluation_file.write(self.directory, found)
        if plot:
            write_whole(self.directory / CURVE_FILE, curve_plot([found], headline(self.curve), self.test))


def _run(state: TaskState) -> str:
    """What the states of one run have in common: who made them, from which stream, and the examples before it."""
    header = state.header
    at = header.stream
    stream = None if at is None else [at.source, at.chunk_size, at.shuffle_seed, at.columns, header.rows - at.examples]
    text = json.dumps([header.amortizer, header.backbone_fingerprint, header.task.kind, stream])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def marks(chunk_size: int, total: int, count: int) -> list[int]:
    """Numbers of examples, spaced by a constant factor from the first chunk on."""
    ratio = (total / chunk_size) ** (1 / max(count - 1, 1)) if total > chunk_size else 1.0
    return sorted({round(chunk_size * ratio**i) for i in range(count - 1)})


def headline(curve: Sequence[dict[str, Any]]) -> str:
    """The metric that a curve is shown by: accuracy, exact match, explained variance, or macro-F1 of label sets."""
    return next(name for name in ("accuracy", "exact_match", "r2", "macro_f1") if name in curve[-1])
