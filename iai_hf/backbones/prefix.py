"""Prefix: keys and values of what comes before every query, encoded once; those of several states side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import DynamicCache


@dataclass(frozen=True, eq=False)
class Prefix:
    """What is read before a query.

    Attributes:
        layers: keys and values, `[1, heads, length, head size]` a layer; none where nothing comes before.
        parts: tokens of each member's own prefix, laid one behind the other; a single part is every member's.
    """

    layers: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    parts: tuple[int, ...]

    @property
    def length(self) -> int:
        """Tokens of all parts."""
        return sum(self.parts)

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(keys.nbytes + values.nbytes for keys, values in self.layers)

    def part(self, member: int) -> tuple[int, int]:
        """Where a member's part begins, and its length."""
        place = member if len(self.parts) > 1 else 0
        return sum(self.parts[:place]), self.parts[place]

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
    return Prefix(layers, tuple(prefix.length for prefix in prefixes))
