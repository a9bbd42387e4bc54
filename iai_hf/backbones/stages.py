"""Stages: what a pooled vector goes through before it is scaled to unit length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

if TYPE_CHECKING:
    import torch


class Stage(Protocol):
    """A map of vectors, float32 `[texts, in]` to `[texts, out]`; its text tells it from others.

    Attributes:
        kind: what it is, in a word.
    """

    kind: ClassVar[str]

    def __call__(self, vectors: torch.Tensor) -> torch.Tensor:
        """The vectors after it."""

    def size(self, size: int) -> int:
        """Size of a vector after it, of `size` before it."""


@dataclass(frozen=True)
class UnitLength:
    """Each vector divided by its length."""

    kind: ClassVar[str] = "normalize"

    def __call__(self, vectors: torch.Tensor) -> torch.Tensor:
        from torch.nn.functional import normalize

        return normalize(vectors, dim=-1)

    def size(self, size: int) -> int:
        """As before it."""
        return size

    def __str__(self) -> str:
        return "unit"


@dataclass(frozen=True, eq=False)
class Dense:
    """A linear layer, float32: `weight` `[out, in]`, `bias` `[out]`."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    activation: torch.nn.Module
    kind: ClassVar[str] = "dense"

    def __call__(self, vectors: torch.Tensor) -> torch.Tensor:
        from torch.nn.functional import linear

        found: torch.Tensor = self.activation(linear(vectors, self.weight, self.bias))
        return found

    def size(self, size: int) -> int:
        """That of the layer."""
        return len(self.weight)

    def __str__(self) -> str:
        import torch

        flat = torch.cat([part.reshape(-1) for part in (self.weight, self.bias) if part is not None])
        sample = flat[:: max(len(flat) // 64, 1)].to(torch.bfloat16).tolist()
        return f"{tuple(self.weight.shape)} {self.activation} {sample}"


@dataclass(frozen=True, eq=False)
class Standardize:
    """Each dimension about its `mean` and divided by its `deviation`, float32 `[size]` each."""

    mean: torch.Tensor
    deviation: torch.Tensor
    kind: ClassVar[str] = "standardize"

    def __call__(self, vectors: torch.Tensor) -> torch.Tensor:
        return (vectors - self.mean) / self.deviation

    def size(self, size: int) -> int:
        """As before it."""
        return size

    def __str__(self) -> str:
        return self.kind  # its numbers follow from the backbone
