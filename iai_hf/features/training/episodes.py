"""Episodes: streams of random tasks, made from the given ones so that no two are alike.

A task's classes are drawn, merged into new ones, given uneven frequencies and permuted; stream length and chunk size
are drawn over orders of magnitude; label names are replaced by meaningless ones in some. An episode follows from
(seed, number) alone, so that a run can be resumed exactly and split over processes.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from iai_hf.features.training.tasks import FeatureTask
from iai_hf.training.config import TrainingConfig
from iai_hf.training.curriculum import FEWEST_EXAMPLES

FREQUENCY_SPREAD = 1.0  # standard deviation of log class frequencies, in episodes with uneven ones


@dataclass(frozen=True, eq=False)
class FeatureEpisode:
    """A stream and its queries.

    Attributes:
        features, targets: of the stream, `[n, d]` and `[n]`.
        sizes: of its chunks, their sum is n.
        loss_steps: numbers of the chunks after which the loss is taken, ascending.
        names: `[templates, C, d]`.
        queries, answers: held out, `[q, d]` and `[q]`.
        task: where it comes from.
    """

    features: torch.Tensor
    targets: torch.Tensor
    sizes: tuple[int, ...]
    loss_steps: tuple[int, ...]
    names: torch.Tensor
    queries: torch.Tensor
    answers: torch.Tensor
    task: str

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.names.shape[1]


def draw(
    tasks: Sequence[FeatureTask], meaningless: torch.Tensor, config: TrainingConfig, number: int
) -> FeatureEpisode:
    """Episode `number` of the run; `meaningless` holds features of meaningless names, `[templates, many, d]`."""
    chance = random.Random(f"{config.seed} {number}")
    generator = torch.Generator().manual_seed(chance.randrange(2**31))
    task = tasks[chance.randrange(len(tasks))]
    mapping, names = _classes(task, meaningless, config, chance, generator)
    targets = mapping[task.targets]
    usable = (targets >= 0).nonzero()[:, 0]
    usable = usable[torch.randperm(len(usable), generator=generator)]
    if chance.random() < config.imbalance:
        usable = _uneven(usable, targets, names.shape[1], generator)
    if len(usable) < FEWEST_EXAMPLES:
        return draw(tasks, meaningless, config, number + 10**9)
    length = log_uniform(chance, config.shortest, config.longest)
    length = min(length, len(usable) - min(config.queries, len(usable) // 2))
    chunk_size = max(log_uniform(chance, *config.chunk_sizes), -(-length // config.most_steps))
    sizes = [chunk_size] * (length // chunk_size) + [length % chunk_size] * (length % chunk_size > 0)
    steps = len(sizes)
    loss_steps = {steps} | {log_uniform(chance, 1, steps) for _ in range(config.losses_per_episode - 1)}
    stream, held_out = usable[:length], usable[length : length + config.queries]
    return FeatureEpisode(
        task.features[stream],
        targets[stream],
        tuple(sizes),
        tuple(sorted(loss_steps)),
        names,
        task.features[held_out],
        targets[held_out],
        task.name,
    )


def whole(task: FeatureTask, config: TrainingConfig, seed: int) -> FeatureEpisode:
    """An unchanged task in an order of its own, for evaluation: with a loss after 16, 64, 256, 1,024, ... examples."""
    order = torch.randperm(len(task), generator=torch.Generator().manual_seed(seed))
    held_out = min(4 * config.queries, len(task) // 3)
    stream, queries = order[held_out:][: config.longest], order[:held_out]
    sizes, loss_steps = [min(16, len(stream))], [1]
    while (seen := sum(sizes)) < len(stream):
        mark = 4 * 16 * 4 ** (len(loss_steps) - 1)
        size = min(max(mark // 4, 48), mark - seen, len(stream) - seen)
        sizes.append(size)
        if seen + size == mark:
            loss_steps.append(len(sizes))
    return FeatureEpisode(
        task.features[stream],
        task.targets[stream],
        tuple(sizes),
        tuple(loss_steps),
        task.names,
        task.features[queries],
        task.targets[queries],
        task.name,
    )


def _classes(
    task: FeatureTask,
    meaningless: torch.Tensor,
    config: TrainingConfig,
    chance: random.Random,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """From the task's class numbers to the episode's, int64 `[labels]`, -1 for none; and names `[templates, C, d]`."""
    count = len(task.labels)
    chosen = torch.randperm(count, generator=generator)
    if count > 3 and chance.random() < config.subset:
        chosen = chosen[: log_uniform(chance, 2, count)]
    mapping = torch.full((count,), -1)
    mapping[chosen] = torch.arange(len(chosen))
    names = task.names[:, chosen]
    if len(chosen) >= 4 and chance.random() < config.merge:
        groups = chance.randint(2, len(chosen) // 2)
        group = torch.cat([torch.arange(groups), torch.randint(groups, (len(chosen) - groups,), generator=generator)])
        mapping[chosen] = group
        names = torch.stack([names[:, group == number].mean(1) for number in range(groups)], dim=1)
    if names.shape[1] <= meaningless.shape[1] and chance.random() < config.hidden_names:
        chosen = torch.randperm(meaningless.shape[1], generator=generator)
        names = meaningless[:, chosen[: names.shape[1]]]
    return mapping, names


def _uneven(usable: torch.Tensor, targets: torch.Tensor, classes: int, generator: torch.Generator) -> torch.Tensor:
    """Examples thinned out, class by class, to random frequencies."""
    keep = (FREQUENCY_SPREAD * torch.randn(classes, generator=generator)).exp()
    keep = keep / keep.max()
    return usable[torch.rand(len(usable), generator=generator) < keep[targets[usable]]]


def log_uniform(chance: random.Random, least: int, most: int) -> int:
    """A whole number from `least` to `most`, of any order of magnitude alike."""
    return min(most, int(math.exp(chance.uniform(math.log(least), math.log(most + 1)))))
