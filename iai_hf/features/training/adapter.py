"""Meta-training of a feature adapter: the paper's greedy objective, through the streaming head itself.

The head refines its state over an episode's chunks in closed form; the loss of held-out queries after each goes through
that closed form, as in R2-D2 (Bertinetto et al. 2019, arXiv 1805.08136) and MetaOptNet (Lee et al. 2019, arXiv
1904.03758), into the features of stream, queries and label names, and so into the adapter. Nothing of the head is
learned here. A penalty on how far queries' features move keeps what the backbone knows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from iai_hf.amortizer import Amortizer
from iai_hf.backbones.adapter import FeatureAdapter
from iai_hf.backbones.low_rank import LowRank
from iai_hf.features.frozen_features import FrozenFeatures, verbalize
from iai_hf.features.heads import TEMPLATES
from iai_hf.features.training.adapter_episodes import AdapterEpisode, draw_texts
from iai_hf.features.training.episodes import whole
from iai_hf.features.training.objective import HeadObjective
from iai_hf.features.training.tasks import FeatureTask
from iai_hf.training.config import TrainingConfig
from iai_hf.training.curriculum import Curriculum, Evaluation, split
from iai_hf.training.tasks import TextTask

VALIDATION_TEXTS = 600  # of a task
VALIDATION_ORDERS = 2
ANCHORS = 24  # queries whose moves are penalised
BEFORE_ANY = 0.5  # weight of the loss by names alone


class AdapterModule(nn.Module):
    """Low-rank weights beside linear layers, at first without effect.

    Args:
        sizes: in and out of each layer by its name in the model.
    """

    def __init__(self, sizes: dict[str, tuple[int, int]], rank: int) -> None:
        super().__init__()
        self.names = tuple(sizes)
        generator = torch.Generator().manual_seed(0)
        self.down = nn.ParameterList(
            torch.randn(rank, inputs, generator=generator) / math.sqrt(inputs) for inputs, _ in sizes.values()
        )
        self.up = nn.ParameterList(torch.zeros(outputs, rank) for _, outputs in sizes.values())
        self.places = list(range(2 * len(sizes)))
        for place, weight in enumerate([*self.down, *self.up]):
            self.register_buffer(f"average_{place}", weight.detach().clone())

    def low_rank(self, dtype: torch.dtype, average: bool = False) -> LowRank:
        """The weights, or their average over steps, for `applied`."""
        weights = [self.get_buffer(f"average_{place}") for place in self.places] if average else [*self.down, *self.up]
        cast = [weight.to(dtype) for weight in weights]
        half = len(self.names)
        return LowRank(dict(zip(self.names, cast[:half], strict=True)), dict(zip(self.names, cast[half:], strict=True)))

    def stepped(self, memory: float) -> None:
        """Move the average towards the weights; `memory` is how much of it stays."""
        with torch.no_grad():
            for place, weight in enumerate([*self.down, *self.up]):
                self.get_buffer(f"average_{place}").lerp_(weight, 1 - memory)


class AdapterObjective(nn.Module):
    """Loss of an adapter on an episode.

    Args:
        head: at its initial value; it is not trained.
        amortizer: whose features and whose head they are; neither is trained.
        moved_weight: of the mean 1 - cos between queries' features with and without the adapter.
    """

    def __init__(self, adapter: AdapterModule, amortizer: FrozenFeatures, moved_weight: float) -> None:
        super().__init__()
        self.adapter, self.moved_weight = adapter, moved_weight
        self.max_tokens = amortizer.config.max_tokens or amortizer.backbone.window
        self._frozen = (amortizer,)  # in a tuple, so that it is no part of what is trained

    def features(self, texts: Sequence[str], average: bool = False) -> torch.Tensor:
        """Differentiable features under the adapter, or its average, float32 `[texts, d]`, as the head sees them."""
        (amortizer,) = self._frozen
        backbone = amortizer.backbone
        weights = (self.adapter.low_rank(backbone.dtype, average),)
        return amortizer.projected(backbone.differentiable_features(texts, self.max_tokens, weights).vectors)

    def forward(self, episode: AdapterEpisode) -> torch.Tensor:
        """Mean over the loss steps of the queries' negative log-likelihood in units of log C, and the penalty."""
        (amortizer,) = self._frozen
        head = amortizer.head
        features = self.features([*episode.texts, *episode.names])
        stream, rest = features[: episode.length], features[episode.length :]
        queries, names = rest[: len(rest) - len(episode.names)], rest[len(rest) - len(episode.names) :]
        targets, answers = episode.targets[: episode.length], episode.targets[episode.length :]
        state = dict(head.grow(head.initial(features.shape[1]), names.detach().expand(len(TEMPLATES), -1, -1)))
        state["names"] = names  # with their gradient
        losses = [BEFORE_ANY * nn.functional.cross_entropy(head.logits(head.prepare(state), queries), answers)]
        sizes = list(episode.parts)
        for chunk, own in zip(stream.split(sizes), targets.split(sizes), strict=True):
            state = dict(head.refine(state, chunk, own))
            losses.append(nn.functional.cross_entropy(head.logits(head.prepare(state), queries), answers))
        loss = torch.stack(losses).mean() / math.log(max(len(names), 2))
        if not self.moved_weight:
            return loss
        anchors = list(episode.texts[episode.length :][:ANCHORS])
        before = amortizer.projected(amortizer.backbone.features(anchors, self.max_tokens).vectors)
        return loss + self.moved_weight * (1 - nn.functional.cosine_similarity(queries[:ANCHORS], before)).mean()


class AdapterCurriculum(Curriculum):
    """Episodes of `tasks` for a feature adapter of the amortizer's backbone.

    Raises:
        DataError: no task is left to train on, or a validation task is unknown.
    """

    learned: AdapterModule
    objective: AdapterObjective

    def __init__(self, amortizer: FrozenFeatures, tasks: list[TextTask], config: TrainingConfig) -> None:
        self.training, self.validation = split([task for task in tasks if task.kind == "classification"], config)
        self.config = config
        self.plain = amortizer.backbone.plain
        self.learned = AdapterModule(self.plain.linear_layers, config.adapter_rank)
        self.objective = AdapterObjective(self.learned, amortizer, config.moved_weight)
        self._scores = HeadObjective(amortizer.head)

    def stepped(self, step: int) -> None:
        self.learned.stepped(min(self.config.averaging, step / (step + 10)))

    def draw(self, number: int, device: torch.device) -> AdapterEpisode:
        return draw_texts(self.training, self.config, number)

    def describe(self, episode: AdapterEpisode) -> str:
        return f"task {episode.task!r} ({episode.length} examples, {len(episode.names)} classes)"

    def evaluate(self) -> Evaluation | None:
        with torch.no_grad():
            known = [self._as_features(task) for task in self.validation]
        orders = ((task, seed) for task in known for seed in range(VALIDATION_ORDERS))
        return self._scores.evaluate(whole(task, self.config, seed) for task, seed in orders)

    def save(self, amortizer: Amortizer, output: Path) -> None:
        """Write the feature adapter alone."""
        self.adapter().save(output, amortizer.backbone.name)

    def adapter(self) -> FeatureAdapter:
        """What was learned."""
        return FeatureAdapter(self.learned.low_rank(torch.float32, average=True), self.plain.fingerprint)

    def _as_features(self, task: TextTask) -> FeatureTask:
        records = task.records[:: max(len(task) // VALIDATION_TEXTS, 1)][:VALIDATION_TEXTS]
        labels = tuple(sorted({record.output for record in records}))
        class_of = {label: place for place, label in enumerate(labels)}
        features = self.objective.features([record.input for record in records], average=True)
        names = self.objective.features([verbalize(label) for label in labels], average=True)
        targets = torch.tensor([class_of[record.output] for record in records])
        return FeatureTask(task.name, features, targets, names.expand(len(TEMPLATES), -1, -1), labels)
