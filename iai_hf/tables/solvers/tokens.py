"""ThetaTokens: how parameters become tokens, from 10 of them to 100,000."""

from __future__ import annotations

import math

import torch


class ThetaTokens:
    """Cuts theta `[tasks, features, outputs]` into at most `most` tokens of whole rows.

    A row is all that one feature says to the outputs, so a token is a group of features; what a token holds grows
    with theta, the cost of attention does not.
    """

    def __init__(self, features: int, outputs: int, most: int = 32) -> None:
        self.features, self.outputs = features, outputs
        self.rows = math.ceil(features / most)
        self.count = math.ceil(features / self.rows)

    @property
    def size(self) -> int:
        """Numbers a token."""
        return self.rows * self.outputs

    def split(self, theta: torch.Tensor) -> torch.Tensor:
        """`[tasks, features, outputs]` to `[tasks, count, size]`, the last token filled with zeros."""
        missing = self.count * self.rows - self.features
        whole = torch.nn.functional.pad(theta, (0, 0, 0, missing))
        return whole.reshape(theta.shape[0], self.count, self.size)

    def join(self, tokens: torch.Tensor) -> torch.Tensor:
        """The inverse of `split`."""
        whole = tokens.reshape(tokens.shape[0], self.count * self.rows, self.outputs)
        return whole[:, : self.features]
