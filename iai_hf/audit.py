"""Audit of labelled texts: what a state that has read them says of each as if it alone had not been read.

    q[i, k] ~ p(k | x[i], all others) T[k, y[i]]

p is the state's leave-one-out posterior, y the given labels, T how often a label k is written as another one: mostly
itself, at first the others alike, and then re-estimated from q, so that labels that are mistaken for one another are
told from random slips (confident learning, Northcutt et al. 2021, arXiv 1911.00068; the estimate is that of Dawid and
Skene 1979). A label is wrong with probability 1 - q[i, y[i]].

Average precision in %, 9 held-out tasks of 1,024, 5% flipped at random / to the nearest label: this 55.6 / 42.5,
self-confidence 56.6 / 38.9, margins 48.4 / 43.6; rounds without suspects and neighbours' labels mixed in were behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from iai_hf.errors import ConfigError
from iai_hf.methods import check_one_label, those
from iai_hf.metrics import check_labels
from iai_hf.task import Chunk, check_sets, plain_sets

if TYPE_CHECKING:
    import torch

    from iai_hf.state import TaskState

WRONG = 0.05  # share of labels that is taken for wrong before anything is known
HELD = 0.5  # of a label's examples so many count for that, while T is estimated
ROUNDS = 3  # more change little
LIKELY = 0.5  # a label that is wrong with this probability is an issue
NO_SIGNAL = 0.02  # nats: a text that moves the labels' frequencies by no more tells nothing
CONFUSED = 0.05  # share of two labels' examples, from which they are told to be one another's
LABEL, DUPLICATE, SIGNAL = "label", "duplicate", "no signal"


@runtime_checkable
class LeavesOneOut(Protocol):
    """A method whose states can say what they would, had they not read one of their examples."""

    def leave_one_out(self, state: TaskState, chunk: Chunk) -> torch.Tensor:
        """Log probabilities `[n, C]` of examples that the state has read, each as if it alone had not been."""


@dataclass(frozen=True)
class Finding:
    """What an audit says of one example.

    Attributes:
        row: its number in the data, from 0.
        wrong: probability that its label is.
        suggestion: the likeliest label.
        signal: how far the text moves the labels' frequencies, in nats (a KL divergence).
        issues: of "label", "duplicate" (the same text has another label elsewhere), "no signal".
        duplicates: rows of the same text, but for case and spaces.
    """

    row: int
    input: str
    output: str
    wrong: float
    suggestion: str
    signal: float
    issues: tuple[str, ...]
    duplicates: tuple[int, ...]


@dataclass(frozen=True)
class Confusion:
    """Two labels, and the share of their examples that is likelier the other's."""

    first: str
    second: str
    share: float


@dataclass(frozen=True)
class Audit:
    """An audit of a dataset.

    Attributes:
        findings: of all examples, the likeliest wrong label first.
        confusions: pairs of labels that are one another's, the worst first.
        labels: the state's.
        matrix: mean posterior of the labels (columns) by the given one (rows), `[C, C]`.
    """

    findings: tuple[Finding, ...]
    confusions: tuple[Confusion, ...]
    labels: tuple[str, ...]
    matrix: tuple[tuple[float, ...], ...]

    def count(self, issue: str) -> int:
        """Examples with an issue."""
        return sum(issue in finding.issues for finding in self.findings)


def audit(amortizer: Any, state: TaskState, inputs: Sequence[str], outputs: Sequence[str]) -> Audit:
    """Audit examples that a state has read.

    Raises:
        ConfigError: the method's states can't leave an example out.
        DataError: a label that the state does not know, or a state of fewer than two.
        StateError: the state has not read these examples, or belongs to another backbone.
    """
    import torch

    if not isinstance(amortizer, LeavesOneOut):
        able = those(lambda method: hasattr(method, "leave_one_out"))
        raise ConfigError(
            f"a state of {amortizer.method!r} can't tell what it would say without one of its examples; choose a "
            f"method that can ({able})"
        )
    labels = state.task.labels
    check_one_label(state.task, "an audit")
    check_sets(state.task, plain_sets(outputs))
    check_labels(labels, outputs)
    log_probs = amortizer.leave_one_out(state, Chunk(tuple(inputs), tuple(outputs)))
    class_of = {label: number for number, label in enumerate(labels)}
    given = torch.tensor([class_of[output] for output in outputs])
    posterior = true_labels(log_probs, given)
    wrong = 1 - posterior.gather(1, given[:, None])[:, 0]
    own = torch.nn.functional.one_hot(given, len(labels)).to(posterior)
    shares = (own.sum(0) + 1) / (len(given) + len(labels))
    signal = (log_probs.exp() * (log_probs - shares.log())).sum(1)
    twins = _twins(inputs)
    findings = []
    for row in sorted(range(len(inputs)), key=lambda row: -float(wrong[row])):
        same = twins[_plain(inputs[row])]
        issues = (
            (LABEL, float(wrong[row]) > LIKELY),
            (DUPLICATE, len({outputs[other] for other in same}) > 1),
            (SIGNAL, float(signal[row]) < NO_SIGNAL),
        )
        findings.append(
            Finding(
                row,
                inputs[row],
                outputs[row],
                round(float(wrong[row]), 6),
                labels[int(posterior[row].argmax())],
                round(float(signal[row]), 6),
                tuple(issue for issue, has in issues if has),
                tuple(other for other in same if other != row),
            )
        )
    matrix = (own.T @ log_probs.exp()) / own.sum(0).clamp(min=1)[:, None]
    return Audit(tuple(findings), _confusions(own, log_probs, labels), labels, tuple(map(tuple, matrix.tolist())))


def true_labels(log_probs: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
    """Posterior of the true labels `[n, C]`, from leave-one-out ones `[n, C]` and the given labels int64 `[n]`."""
    import torch

    classes = log_probs.shape[1]
    prior = torch.full((classes, classes), WRONG / max(classes - 1, 1)).fill_diagonal_(1 - WRONG)
    own = torch.nn.functional.one_hot(given, classes).to(log_probs)
    written, probs = prior, log_probs.exp()
    for _ in range(ROUNDS):
        posterior = probs * written[:, given].T
        posterior = posterior / posterior.sum(1, keepdim=True).clamp(min=1e-30)
        found = posterior.T @ own
        found = found + HELD * found.sum(1, keepdim=True).clamp(min=1) * prior
        written = found / found.sum(1, keepdim=True)
    return posterior


def _confusions(own: torch.Tensor, log_probs: torch.Tensor, labels: Sequence[str]) -> tuple[Confusion, ...]:
    import torch

    taken = own.T @ torch.nn.functional.one_hot(log_probs.argmax(1), len(labels)).to(own)
    counts = own.sum(0)
    pairs = [
        Confusion(labels[a], labels[b], float((taken[a, b] + taken[b, a]) / (counts[a] + counts[b]).clamp(min=1)))
        for a in range(len(labels))
        for b in range(a + 1, len(labels))
    ]
    return tuple(sorted((pair for pair in pairs if pair.share >= CONFUSED), key=lambda pair: -pair.share))


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _twins(inputs: Sequence[str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for row, text in enumerate(inputs):
        found.setdefault(_plain(text), []).append(row)
    return found
