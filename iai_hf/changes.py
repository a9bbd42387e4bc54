"""Changes of a stream: what a state that watches it has noticed, as values and in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from iai_hf.methods import check_watches

if TYPE_CHECKING:
    from iai_hf.state import TaskState

Kind = Literal["meaning", "frequencies", "texts", "label"]
GROUPED = 0.9  # share of one label among the newest examples, from which on data are probably sorted by label


@dataclass(frozen=True)
class Change:
    """A change of a stream.

    Attributes:
        kind: "meaning": of the labels, given a text; "frequencies": of the labels; "texts": of the texts, beyond what
            other frequencies of the labels bring; "label": the first example of a label, long after all others.
        noticed: number of the example at which it was noticed, from 1 on.
        began: estimate of the first example since the change.
        label: which label became more or less frequent than any other did, or is new; None of other kinds.
        before, after: its share earlier, and among the newest examples.
    """

    kind: Kind
    noticed: int
    began: int
    label: str | None = None
    before: float | None = None
    after: float | None = None

    @property
    def grouped(self) -> bool:
        """Whether the newest examples have nearly all one label, as in data that are sorted by label."""
        return self.after is not None and self.before is not None and self.after >= GROUPED > self.before

    def __str__(self) -> str:
        at = f"at example {self.noticed:,}"
        since = f"since about example {self.began:,}"
        if self.kind == "meaning":
            return (
                f"{at}: labels mean something else {since}; examples before no longer count, and what they taught is "
                "used as far as it is still right"
            )
        if self.kind == "texts":
            return f"{at}: texts are of another kind {since}, whatever their labels; nothing is forgotten"
        if self.kind == "label":
            return f"{at}: the first example of a new label, {self.label!r}"
        told = f"{at}: labels' frequencies are others {since}: {self.label!r} has {self.after:.0%} of the newest ones"
        if self.grouped:
            return f"{told}, {self.before:.0%} before: data sorted or grouped by label? If so, shuffle (shuffle_seed)"
        return f"{told}, {self.before:.0%} before; answers follow as far as that proves right"


class Watches:
    """The part of the contract that tells of changes. A method that can notice them has a setting `watch`.

    Attributes:
        watches: whether the method can.
    """

    watches: ClassVar[bool] = False

    def changes(self, state: TaskState) -> list[Change]:
        """What a watched state has noticed of its stream, the newest last.

        Raises:
            ConfigError: the method notices no changes, or the state is not watched.
            StateError: the state belongs to another method or backbone.
        """
        check_watches(self)
        raise NotImplementedError
