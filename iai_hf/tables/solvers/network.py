"""UpdateNetwork: h_phi as a Transformer over observations and over what is refined (theta tokens, or queries)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import nn

from iai_hf.backbones.numeric import NumericBackbone

PLACE = 0.5  # size of a place's embedding at first, about that of what is embedded
USUAL = 16  # examples in a chunk, which count as none more and none fewer


class NetworkSizes(NamedTuple):
    """What a network is made for: sizes of the task, its own, and the number of steps of its training.

    Attributes:
        counting: it is told the size of a chunk too, and sees inputs through the predictor's features.
    """

    backbone: NumericBackbone
    inputs: int
    outputs: int
    hidden: int
    layers: int
    horizon: int
    counting: bool = False


class UpdateNetwork(nn.Module):
    """Sums up a chunk for each refined token, and proposes a change from such a summary.

    Proposals are zero at first, so that a solver starts as what it stands on.

    Args:
        observed: numbers an observation holds; 0 where the signal has none.
        refined: numbers that are known of a refined token.
        proposed: numbers that are proposed for it.
        places: refined tokens that are told apart by their place (theta); 0 for a set of any size (queries).
        counts: it is told how many chunks were read before, up to its horizon, as it has seen no more.
    """

    def __init__(
        self, sizes: NetworkSizes, observed: int, refined: int, proposed: int, places: int, *, counts: bool
    ) -> None:
        super().__init__()
        hidden = sizes.hidden
        self.horizon, self.hidden = sizes.horizon, hidden
        self.observe = nn.Linear(observed, hidden, dtype=torch.float32) if observed else None
        self.embed = nn.Linear(refined, hidden, dtype=torch.float32)
        self.place = nn.Parameter(PLACE * torch.randn(places, hidden, dtype=torch.float32)) if places else None
        self.counting = sizes.counting
        self.step = nn.Linear(1 + sizes.counting, hidden, dtype=torch.float32) if counts else None
        self.encoder = sizes.backbone.build(hidden, sizes.layers)
        self.propose = nn.Linear(hidden, proposed, dtype=torch.float32)
        nn.init.zeros_(self.propose.weight)
        nn.init.zeros_(self.propose.bias)

    def forward(
        self, observed: torch.Tensor | None, refined: torch.Tensor, steps: torch.Tensor, examples: int
    ) -> torch.Tensor:
        """Summaries `[tasks, tokens, hidden]`.

        Args:
            observed: `[tasks, chunk, observed]`, None without observations.
            refined: `[tasks, tokens, refined]`.
            steps: `[tasks]`, chunks read so far.
            examples: in this chunk.
        """
        tokens = self.embed(refined)
        if self.step is not None:
            tokens = tokens + self.step(self._told(steps, examples))[:, None]
        if self.place is not None:
            tokens = tokens + self.place
        context = tokens.shape[1] if self.place is not None else 0  # parts of one theta see each other, queries do not
        if self.observe is not None and observed is not None:
            tokens = torch.cat([self.observe(observed), tokens], 1)
            context += observed.shape[1]
        return self.encoder(tokens, context)[:, -refined.shape[1] :]

    def _told(self, steps: torch.Tensor, examples: int) -> torch.Tensor:
        """Logarithms of the step and, where it counts, of the size of the chunk, `[tasks, 1 or 2]`."""
        found = steps.clamp(max=self.horizon - 1).log1p()[:, None]
        if not self.counting:
            return found
        return torch.cat([found, torch.full_like(found, math.log(examples / USUAL))], 1)
