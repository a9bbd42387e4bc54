"""Retained: a sample of the stream's examples as they are, within a budget of bytes, so that they can be read again.

Each example draws a number from its text and place, and those with the smallest numbers stay: a uniform sample of all
that was read, whatever the chunks, so that samples of parts of a stream make one of the whole (bottom-k sketches,
Cohen and Kaplan 2007). In a stream that drifts the number grows with age (Efraimidis and Spirakis 2006).
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from iai_hf.posterior import half_life_decay

if TYPE_CHECKING:
    import torch

    from iai_hf.task import Tensors

MAX_CHARACTERS = 1024  # of a text: more than is read of it again
TEXTS, LENGTHS, TARGETS, PLACES = "texts", "lengths", "targets", "places"


class Example(NamedTuple):
    """One retained example.

    Attributes:
        text: its beginning, UTF-8.
        target: number of its class.
        place: examples that the stream had before it.
    """

    text: bytes
    target: int
    place: int


@dataclass(frozen=True)
class Retained:
    """Examples in the order in which they came."""

    examples: tuple[Example, ...] = ()

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def texts(self) -> list[str]:
        """Their texts, each as far as it was kept."""
        return [example.text.decode("utf-8", "ignore") for example in self.examples]

    @property
    def targets(self) -> torch.Tensor:
        """Their classes, int64 `[examples]`."""
        import torch

        return torch.tensor([example.target for example in self.examples], dtype=torch.long)

    def weights(self, half_life: int | None) -> torch.Tensor:
        """How much each still counts beside the newest of them, float32 `[examples]`."""
        import torch

        seen = max((example.place for example in self.examples), default=0)
        shares = [half_life_decay(seen - example.place, half_life) for example in self.examples]
        return torch.tensor(shares, dtype=torch.float32)

    def joined(self, others: Retained, budget: int, half_life: int | None = None) -> Retained:
        """A sample of both: as many as `budget` bytes of text hold."""
        both = self.examples + others.examples
        seen = max((example.place for example in both), default=0)
        bytes_left, kept = budget, []
        for number in sorted(range(len(both)), key=lambda number: (_rank(both[number], seen, half_life), number)):
            bytes_left -= len(both[number].text)
            if bytes_left < 0:
                break
            kept.append(number)
        return Retained(tuple(both[number] for number in sorted(kept)))

    def renumbered(self, places: Sequence[int]) -> Retained:
        """The same with class c called `places[c]`."""
        return Retained(tuple(example._replace(target=int(places[example.target])) for example in self.examples))

    def without(self, gone: Retained) -> Retained:
        """The same without examples of such texts and classes: of one that came several times, as many."""
        less = Counter((example.text, example.target) for example in gone.examples)
        kept = []
        for example in reversed(self.examples):
            if less[example.text, example.target]:
                less[example.text, example.target] -= 1
            else:
                kept.append(example)
        return Retained(tuple(reversed(kept)))

    def tensors(self) -> Tensors:
        """As a state keeps it: UTF-8 uint8 of all texts in a row; int32 lengths and classes, int64 places."""
        import torch

        raw = bytearray(b"".join(example.text for example in self.examples))
        return {
            TEXTS: torch.frombuffer(raw, dtype=torch.uint8) if raw else torch.zeros(0, dtype=torch.uint8),
            LENGTHS: torch.tensor([len(example.text) for example in self.examples], dtype=torch.int32),
            TARGETS: torch.tensor([example.target for example in self.examples], dtype=torch.int32),
            PLACES: torch.tensor([example.place for example in self.examples], dtype=torch.int64),
        }

    @classmethod
    def of(cls, tensors: Tensors) -> Retained:
        """What `tensors` wrote."""
        raw = tensors[TEXTS].cpu().numpy().tobytes()
        lengths, targets, places = (tensors[name].tolist() for name in (LENGTHS, TARGETS, PLACES))
        ends = list(itertools.accumulate(lengths))
        return cls(
            tuple(
                Example(raw[end - length : end], target, place)
                for end, length, target, place in zip(ends, lengths, targets, places, strict=True)
            )
        )

    @classmethod
    def chunk(cls, texts: Sequence[str], targets: Sequence[int], seen: int) -> Retained:
        """A chunk's examples behind `seen` others."""
        return cls(
            tuple(
                Example(text[:MAX_CHARACTERS].encode("utf-8", "ignore"), target, seen + number)
                for number, (text, target) in enumerate(zip(texts, targets, strict=True))
            )
        )


def _rank(example: Example, seen: int, half_life: int | None) -> float:
    """Exponentially distributed, at a rate that is the example's weight: the smallest are a weighted sample."""
    drawn = hashlib.blake2b(example.text + b"\0" + str(example.place).encode(), digest_size=8).digest()
    uniform = (int.from_bytes(drawn, "little") + 1) / 2.0**64
    return -math.log(uniform) / max(half_life_decay(seen - example.place, half_life), 1e-300)
