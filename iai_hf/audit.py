"""Audit of labelled texts: what a state that has read them says of each as if it alone had not been read.

    q[i, k] ~ p(k | x[i], all others) T[k, y[i]]

p is the state's leave-one-out posterior, y the given labels, T how often a label k is written as another one: mostly
itself, at first the others alike, and then re-estimated from q, so that labels that are mistaken for one another are
told from random slips (confident learning, Northcutt et al. 2021, arXiv 1911.00068; the estimate is that of Dawid and
Skene 1979). A label is wrong with probability 1 - q[i, y[i]].

Where a text has any number of labels, each is asked by itself, as of two classes, that it applies and that it does not;
a set is wrong with the largest probability that one of its labels is, given or left out.

Average precision in %, 9 held-out tasks of 1,024, 5% flipped at random / to the nearest label: this 55.6 / 42.5,
self-confidence 56.6 / 38.9, margins 48.4 / 43.6; rounds without suspects and neighbours' labels mixed in were behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from iai_hf.errors import ConfigError
from iai_hf.methods import those
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
LABEL, DUPLICATE, UNINFORMATIVE = "label", "duplicate", "no signal"


@runtime_checkable
class LeavesOneOut(Protocol):
    """A method whose states can say what they would, had they not read one of their examples."""

    def leave_one_out(self, state: TaskState, chunk: Chunk) -> torch.Tensor:
        """Log probabilities `[n, C]` of examples that the state has read, each as if it alone had not been.

        Of a multi-label task each label's log odds.
        """


@dataclass(frozen=True)
class Finding:
    """What an audit says of one example.

    Attributes:
        row: its number in the data, from 0.
        output: its label, or labels.
        wrong: probability that its label is, or one of them, or one that is missing.
        suggestion: the likeliest label, or all that probably apply.
        signal: how far the text moves the labels' frequencies, in nats (a KL divergence).
        issues: of "label", "duplicate" (the same text has another label elsewhere), "no signal".
        duplicates: rows of the same text, but for case and spaces.
    """

    row: int
    input: str
    output: str | tuple[str, ...]
    wrong: float
    suggestion: str | tuple[str, ...]
    signal: float
    issues: tuple[str, ...]
    duplicates: tuple[int, ...]


class Judged(NamedTuple):
    """Examples, and what is said of their labels.

    Attributes:
        own: labels that were given, `[n, C]`.
        probs: of labels, each example left out, `[n, C]`.
        posterior: that they truly apply, `[n, C]`.
        wrong: probability that an example's output is, `[n]`.
        signal: how far a text moves the labels' frequencies, `[n]`.
        suggestions: the likeliest outputs.
    """

    own: torch.Tensor
    probs: torch.Tensor
    posterior: torch.Tensor
    wrong: torch.Tensor
    signal: torch.Tensor
    suggestions: list[Any]


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


def audit(amortizer: Any, state: TaskState, inputs: Sequence[str], outputs: Sequence[Any]) -> Audit:
    """Audit examples that a state has read.

    Raises:
        ConfigError: the method's states can't leave an example out.
        DataError: a label that the state does not know, a state of too few, or lists where a text has one label, or
            the other way round.
        StateError: the state has not read these examples, or belongs to another backbone.
    """
    if not isinstance(amortizer, LeavesOneOut):
        able = those(lambda method: hasattr(method, "leave_one_out"))
        raise ConfigError(
            f"a state of {amortizer.method!r} can't tell what it would say without one of its examples; choose a "
            f"method that can ({able})"
        )
    labels = state.task.labels
    outputs = plain_sets(outputs)
    check_sets(state.task, outputs)
    check_labels(labels, outputs)
    chunk = Chunk(tuple(inputs), tuple(outputs))
    left_out = amortizer.leave_one_out(state, chunk)
    judged = (_of_several if state.task.kind == "multi-label" else _of_one)(left_out, chunk.outputs, labels)
    wrong, signal = judged.wrong, judged.signal
    twins = _twins(inputs)
    findings = []
    for row in sorted(range(len(inputs)), key=lambda row: -float(wrong[row])):
        same = twins[_plain(inputs[row])]
        issues = (
            (LABEL, float(wrong[row]) > LIKELY),
            (DUPLICATE, len({_unordered(chunk.outputs[other]) for other in same}) > 1),
            (UNINFORMATIVE, float(signal[row]) < NO_SIGNAL),
        )
        findings.append(
            Finding(
                row,
                inputs[row],
                chunk.outputs[row],
                round(float(wrong[row]), 6),
                judged.suggestions[row],
                round(float(signal[row]), 6),
                tuple(issue for issue, has in issues if has),
                tuple(other for other in same if other != row),
            )
        )
    matrix = (judged.own.T @ judged.probs) / judged.own.sum(0).clamp(min=1)[:, None]
    confusions = _confusions(judged, labels, state.task.kind == "multi-label")
    return Audit(tuple(findings), confusions, labels, tuple(map(tuple, matrix.tolist())))


def _of_one(log_probs: torch.Tensor, outputs: Sequence[str], labels: Sequence[str]) -> Judged:
    import torch

    class_of = {label: number for number, label in enumerate(labels)}
    given = torch.tensor([class_of[output] for output in outputs])
    posterior = true_labels(log_probs, given)
    own = torch.nn.functional.one_hot(given, len(labels)).to(posterior)
    shares = (own.sum(0) + 1) / (len(given) + len(labels))
    signal = (log_probs.exp() * (log_probs - shares.log())).sum(1)
    wrong = 1 - posterior.gather(1, given[:, None])[:, 0]
    likeliest = [labels[number] for number in posterior.argmax(1).tolist()]
    return Judged(own, log_probs.exp(), posterior, wrong, signal, likeliest)


def _of_several(log_odds: torch.Tensor, outputs: Sequence[Sequence[str]], labels: Sequence[str]) -> Judged:
    import torch

    own = torch.tensor([[label in output for label in labels] for output in outputs])
    each = torch.stack([-torch.nn.functional.softplus(log_odds), -torch.nn.functional.softplus(-log_odds)], -1)
    pairs = [true_labels(each[:, number], own[:, number].long())[:, 1] for number in range(len(labels))]
    posterior, given = torch.stack(pairs, 1), own.to(log_odds)
    shares = (given.sum(0) + 1) / (len(own) + 2)
    known = torch.stack([1 - shares, shares], -1).log()
    signal = (each.exp() * (each - known)).sum((1, 2))
    wrong = (given - posterior).abs().amax(1)
    likely = [
        tuple(label for label, applies in zip(labels, row, strict=True) if applies)
        for row in (posterior > LIKELY).tolist()
    ]
    return Judged(given, log_odds.sigmoid(), posterior, wrong, signal, likely)


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


def _confusions(judged: Judged, labels: Sequence[str], several: bool) -> tuple[Confusion, ...]:
    """Pairs of labels that are given where it is likelier the other: of several, where one goes as the other comes."""
    import torch

    own, counts = judged.own, judged.own.sum(0)
    if several:
        apply = (judged.posterior > LIKELY).to(own)
        taken = (own * (1 - apply)).T @ (apply * (1 - own))
    else:
        taken = own.T @ torch.nn.functional.one_hot(judged.probs.argmax(1), len(labels)).to(own)
    pairs = [
        Confusion(labels[a], labels[b], float((taken[a, b] + taken[b, a]) / (counts[a] + counts[b]).clamp(min=1)))
        for a in range(len(labels))
        for b in range(a + 1, len(labels))
    ]
    return tuple(sorted((pair for pair in pairs if pair.share >= CONFUSED), key=lambda pair: -pair.share))


def _unordered(output: str | tuple[str, ...]) -> Any:
    return output if isinstance(output, str) else frozenset(output)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _twins(inputs: Sequence[str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for row, text in enumerate(inputs):
        found.setdefault(_plain(text), []).append(row)
    return found
