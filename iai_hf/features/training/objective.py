"""The paper's greedy objective: roll the state to step i without gradient, go on with it, ask held-out queries."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

import torch
from torch import nn

from iai_hf.features.heads import Head
from iai_hf.features.training.episodes import FeatureEpisode
from iai_hf.task import Tensors
from iai_hf.training.curriculum import Evaluation


class HeadObjective(nn.Module):
    """Loss of a head on an episode.

    Args:
        unroll: updates that the gradient goes through; the state before them is taken as given.
    """

    def __init__(self, head: Head, unroll: int = 1) -> None:
        super().__init__()
        self.head, self.unroll = head, unroll

    def forward(self, episode: FeatureEpisode) -> torch.Tensor:
        """Mean over the loss steps of the negative log-likelihood of the queries, in units of log C."""
        unit = math.log(max(episode.classes, 2))
        # Covariances can't be factored in half precision, whatever the run's mixed precision is.
        with torch.autocast(episode.features.device.type, enabled=False):
            found = self.logits(episode)
            return torch.stack([nn.functional.cross_entropy(logits, episode.answers) / unit for logits in found]).mean()

    def evaluate(self, episodes: Iterable[FeatureEpisode]) -> Evaluation | None:
        """Mean over the loss steps of whole tasks; None without a task."""
        losses, hits = [], []
        with torch.no_grad():
            for episode in episodes:
                for logits in self.logits(episode):
                    loss = nn.functional.cross_entropy(logits, episode.answers)
                    losses.append(float(loss) / math.log(max(episode.classes, 2)))
                    hits.append(float((logits.argmax(1) == episode.answers).float().mean()))
        return Evaluation(sum(losses) / len(losses), sum(hits) / len(hits)) if losses else None

    def logits(self, episode: FeatureEpisode) -> list[torch.Tensor]:
        """Logits of the queries, `[q, C]`, after each loss step."""
        head, size = self.head, episode.features.shape[1]
        with torch.no_grad():
            empty = {name: tensor.to(episode.names.device) for name, tensor in head.initial(size).items()}
            tensors = head.grow(empty, episode.names)
        recent: deque[tuple[Tensors, torch.Tensor, torch.Tensor]] = deque(maxlen=self.unroll)
        sizes = list(episode.sizes)
        chunks = zip(episode.features.split(sizes), episode.targets.split(sizes), strict=True)
        found = []
        for step, (features, targets) in enumerate(chunks, start=1):
            recent.append((tensors, features, targets))
            if step in episode.loss_steps:
                # Names are part of theta[0], which no update changes: their gradient need not be stopped.
                state = {**recent[0][0], "names": head.mixed_names(episode.names).to(torch.float16)}
                for _, past_features, past_targets in recent:
                    state = dict(head.refine(state, past_features, past_targets))
                found.append(head.logits(head.prepare(state), episode.queries))
                tensors = {name: tensor.detach() for name, tensor in state.items()}
            else:
                with torch.no_grad():
                    tensors = head.refine(tensors, features, targets)
            if step == episode.loss_steps[-1]:
                break
        return found
