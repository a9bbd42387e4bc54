"""Conditions: what a frozen language model answers or is trained under: prefixes, low-rank weights, soft prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from iai_hf.backbones.low_rank import LowRank
from iai_hf.config import require, whole_number

if TYPE_CHECKING:
    import torch
    from transformers import DynamicCache


@dataclass(frozen=True, eq=False)
class Prefix:
    """Keys and values of what is read before a query, encoded once; those of several states side by side.

    A model that can't be read packed keeps none: there `sources` are read again with every query.

    Attributes:
        layers: keys and values, `[1, heads, length, head size]` a layer; none where nothing comes before.
        parts: tokens of each member's own prefix, laid one behind the other; a single part is every member's.
        sources: of each part, ids int64 `[length]` or embeddings `[length, width]`, in the place of `layers`.
    """

    layers: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    parts: tuple[int, ...]
    sources: tuple[torch.Tensor, ...] = ()

    @property
    def length(self) -> int:
        """Tokens of all parts."""
        return sum(self.parts)

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values, or of what is read again."""
        kept = sum(keys.nbytes + values.nbytes for keys, values in self.layers)
        return kept + sum(source.nbytes for source in self.sources)

    def part(self, member: int) -> tuple[int, int]:
        """Where a member's part begins, and its length."""
        place = self._place(member)
        return sum(self.parts[:place]), self.parts[place]

    def source(self, member: int) -> torch.Tensor:
        """What is read again for a member, empty where nothing comes before."""
        import torch

        return self.sources[self._place(member)] if self.sources else torch.zeros(0, dtype=torch.long)

    def _place(self, member: int) -> int:
        return member if len(self.parts) > 1 else 0

    def cache(self) -> DynamicCache:
        """All parts, for one packed row; the cache may be appended to, the prefix itself stays as it is."""
        from transformers import DynamicCache

        return DynamicCache(self.layers)

    def cache_of(self, members: Sequence[int]) -> DynamicCache | None:
        """A row for each member with its own part, on the left filled up to the longest; None where nothing is."""
        from torch.nn.functional import pad
        from transformers import DynamicCache

        if not self.length:
            return None
        if len(self.parts) == 1:
            return DynamicCache([tuple(t.expand(len(members), -1, -1, -1) for t in layer) for layer in self.layers])
        import torch

        longest = max(self.part(member)[1] for member in members)

        def row(tensor: torch.Tensor, member: int) -> torch.Tensor:
            first, length = self.part(member)
            return pad(tensor[:, :, first : first + length], (0, 0, longest - length, 0))

        return DynamicCache(
            [tuple(torch.cat([row(t, member) for member in members]) for t in layer) for layer in self.layers]
        )


NO_PREFIX = Prefix((), (0,))


def joined(prefixes: Sequence[Prefix]) -> Prefix:
    """The prefixes of several members as one; where all are the same one, that."""
    import torch

    if all(prefix is prefixes[0] for prefix in prefixes):
        return prefixes[0]
    depth = max(len(prefix.layers) for prefix in prefixes)
    known = [prefix for prefix in prefixes if prefix.layers]
    layers = tuple(
        (torch.cat([p.layers[i][0] for p in known], dim=2), torch.cat([p.layers[i][1] for p in known], dim=2))
        for i in range(depth)
    )
    sources = tuple(prefix.source(0) for prefix in prefixes) if any(prefix.sources for prefix in prefixes) else ()
    return Prefix(layers, tuple(prefix.length for prefix in prefixes), sources)


@dataclass(frozen=True, eq=False)
class Condition:
    """What the frozen model answers under.

    Attributes:
        prefix: before every query; where it is empty, start-of-text is.
        weights: low-rank weights beside its layers: none, one for all rows, or one for each `Row.member`.
    """

    prefix: Prefix
    weights: tuple[LowRank, ...] = ()


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn where an answer is not the likeliest one; from `seed` alone.

    Raises:
        ConfigError: a temperature or a share of probability that nothing can be drawn with.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        require(
            0 < self.temperature < math.inf,
            f"temperature is {self.temperature}; expected above 0: for the likeliest answer leave sampling out",
        )
        require(0 < self.top_p <= 1, f"top_p is {self.top_p}; expected above 0, at most 1")
        whole_number("seed", self.seed, at_least=0)


@dataclass(frozen=True, eq=False)
class Entering:
    """What enters the model while it is trained.

    Attributes:
        prompt: a soft prompt `[length, hidden]`.
        weights: low-rank weights.
        prefix: what the plain model has read before every row.
        layer: the first one that is changed.
    """

    prompt: torch.Tensor | None = None
    weights: LowRank | None = None
    prefix: Prefix = NO_PREFIX
    layer: int = 0

    @property
    def low_rank(self) -> tuple[LowRank, ...]:
        """The weights, if there are any."""
        return () if self.weights is None else (self.weights,)
