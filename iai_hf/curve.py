"""The adaptation curve: how good a state's answers are as examples arrive, and what that costs."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iai_hf.errors import DataError
from iai_hf.files import write_whole
from iai_hf.metrics import score
from iai_hf.task import Chunk

if TYPE_CHECKING:
    from iai_hf.amortizer import Amortizer
    from iai_hf.state import TaskState

log = logging.getLogger(__name__)
EVALUATION_FILE, CURVE_FILE = "evaluation.json", "curve.png"


class Curve:
    """Evaluates states while they adapt, and times adapting and evaluating apart.

    Args:
        inputs, outputs: test data; outputs that the state does not know yet count as errors.
    """

    def __init__(self, amortizer: Amortizer, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        self.amortizer, self.inputs, self.outputs = amortizer, inputs, outputs
        self.curve: list[dict[str, Any]] = []
        self.query_seconds = 0.0
        self.start()

    def start(self) -> None:
        """Start the clock."""
        self.began, self.paused = time.perf_counter(), 0.0

    def evaluate(self, state: TaskState) -> None:
        """A point of the curve; none where the state was evaluated already, or can't answer yet."""
        if self.curve and self.curve[-1]["examples"] == state.header.examples:
            return
        now = time.perf_counter()
        if len(state.task.labels) >= 2 or state.task.kind != "classification":
            prediction = self.amortizer.predict(state, self.inputs)
            self.query_seconds = time.perf_counter() - now
            metrics = score(prediction, self.outputs, allow_unseen_labels=True)
            spent = now - self.began - self.paused
            self.curve.append({"examples": state.header.examples, **metrics, "adapt_seconds": spent})
            name, value = next(iter(metrics.items()))
            log.info("  %s examples: %s %.3f", f"{state.header.examples:,}", name.replace("_", " "), value)
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

    def save(self, state: TaskState, directory: Path, test: str) -> None:
        """Write `evaluation.json` and `curve.png`; `test` is the name of the test data.

        Raises:
            DataError: there is no point.
        """
        from iai_hf.plots import curve_plot

        found = {"test": test, "test_examples": len(self.inputs), "method": state.header.method, **self.record(state)}
        write_whole(directory / EVALUATION_FILE, json.dumps(found, indent=2).encode())
        write_whole(directory / CURVE_FILE, curve_plot([found], headline(self.curve), test))


def marks(chunk_size: int, total: int, count: int) -> list[int]:
    """Numbers of examples, spaced by a constant factor from the first chunk on."""
    ratio = (total / chunk_size) ** (1 / max(count - 1, 1)) if total > chunk_size else 1.0
    return sorted({round(chunk_size * ratio**i) for i in range(count - 1)})


def headline(curve: Sequence[dict[str, Any]]) -> str:
    """The metric that a curve is shown by: accuracy, exact match, or explained variance."""
    return next(name for name in ("accuracy", "exact_match", "r2") if name in curve[-1])


def read_evaluation(directory: Path) -> dict[str, Any] | None:
    """What `Curve.save` wrote, where it did.

    Raises:
        DataError: the file is damaged.
    """
    path = directory / EVALUATION_FILE
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        numbers = all(isinstance(value, (int, float)) for value in found["curve"][-1].values())
        if not numbers or not {"examples", "adapt_seconds"} <= set(found["curve"][-1]):
            raise ValueError("the last point of its curve is no record of numbers")
        if not (isinstance(found["test"], str) and isinstance(found["test_examples"], int)):
            raise ValueError("test or test_examples is missing")
        return found
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise DataError(f"{path} is no evaluation ({error}); delete it, or adapt again with --test") from error
