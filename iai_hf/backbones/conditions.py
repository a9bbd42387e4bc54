"""Conditions: what a frozen language model answers and is trained under: prefixes, low-rank weights, soft prompts."""

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
        parts: tokens of the prefix of each `Row.adapter_index`, laid one behind the other; a single part is all rows'.
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

    def part(self, adapter_index: int) -> tuple[int, int]:
        """Where the part of an adapter begins, and its length."""
        place = self._place(adapter_index)
        return sum(self.parts[:place]), self.parts[place]

    def source(self, adapter_index: int) -> torch.Tensor:
        """What is read again for an adapter, empty where nothing comes before."""
        import torch

        return self.sources[self._place(adapter_index)] if self.sources else torch.zeros(0, dtype=torch.long)

    def _place(self, adapter_index: int) -> int:
        return adapter_index if len(self.parts) > 1 else 0

    def cache(self) -> DynamicCache:
        """All parts, for one packed row; the cache may be appended to, the prefix itself stays as it is."""
        from transformers import DynamicCache

        return DynamicCache(self.layers)

    def cache_of(self, adapter_indices: Sequence[int]) -> DynamicCache | None:
        """A row for each index with its part, on the left filled up to the longest; None where there is no prefix."""
        from torch.nn.functional import pad
        from transformers import DynamicCache

        if not self.length:
            return None
        if len(self.parts) == 1:
            return DynamicCache(
                [tuple(t.expand(len(adapter_indices), -1, -1, -1) for t in layer) for layer in self.layers]
            )
        import torch

        longest = max(self.part(index)[1] for index in adapter_indices)

        def row(tensor: torch.Tensor, index: int) -> torch.Tensor:
            first, length = self.part(index)
            return pad(tensor[:, :, first : first + length], (0, 0, longest - length, 0))

        return DynamicCache(
            [tuple(torch.cat([row(t, index) for index in adapter_indices]) for t in layer) for layer in self.layers]
        )


NO_PREFIX = Prefix((), (0,))


def joined(prefixes: Sequence[Prefix]) -> Prefix:
    """The prefixes of several adapters as one; where all are the same one, that."""
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
    """What the frozen model answers under, or is trained under.

    Attributes:
        prefix: before every query, read without the weights; where it is empty, start-of-text is.
        weights: low-rank weights beside its layers: none, one for all rows, or one for each `Row.adapter_index`.
        prompt: a soft prompt `[length, hidden]` that is trained, in the place of a prefix.
        first_layer: the first one that the weights change; rows may be prefilled up to there.
    """

    prefix: Prefix = NO_PREFIX
    weights: tuple[LowRank, ...] = ()
    prompt: torch.Tensor | None = None
    first_layer: int = 0


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
