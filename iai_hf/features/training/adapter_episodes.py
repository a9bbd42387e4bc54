"""Episodes for a feature adapter: texts and label names as they are, since their features are what is learned.

Classes are drawn, merged and renamed as in `episodes`; an episode follows from (seed, number) alone.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from iai_hf.features.frozen_features import verbalize
from iai_hf.features.heads import TEMPLATES
from iai_hf.features.training.episodes import log_uniform
from iai_hf.training.config import TrainingConfig
from iai_hf.training.tasks import TextTask

MOST_CLASSES = 60
BALANCED = 0.5  # share of episodes with classes of even frequency; the others keep the task's own
TEMPLATED = 0.3  # share of episodes whose names stand in a sentence
MEANINGLESS = [*"abcdefghijklmnopqrstuvwxyz", *map(str, range(60))]


@dataclass(frozen=True, eq=False)
class AdapterEpisode:
    """A stream and its queries.

    Attributes:
        texts, targets: of the stream, then of the queries; int64 `[n + q]`.
        length: n.
        names: one a class, as they are put.
        task: where it comes from.
    """

    texts: tuple[str, ...]
    targets: torch.Tensor
    length: int
    names: tuple[str, ...]
    task: str

    @property
    def parts(self) -> tuple[int, ...]:
        """Sizes of the chunks after which the loss is taken: about an eighth and a third of the stream, and all."""
        ends = sorted({max(2, self.length // 8), max(3, self.length // 3), self.length})
        return tuple(end - start for start, end in zip([0, *ends], ends, strict=False))


def draw_texts(tasks: Sequence[TextTask], config: TrainingConfig, number: int) -> AdapterEpisode:
    """Episode `number` of the run."""
    chance = random.Random(f"{config.seed} {number}")
    task = tasks[chance.randrange(len(tasks))]
    of_label: dict[str, list[str]] = {}
    for record in task.records:
        of_label.setdefault(record.output, []).append(record.input)
    labels = chance.sample(sorted(of_label), len(of_label))
    if len(labels) > 3 and chance.random() < config.subset:
        labels = labels[: log_uniform(chance, 2, len(labels))]
    labels = labels[:MOST_CLASSES]
    class_of, names = _named(labels, config, chance)
    wanted = log_uniform(chance, config.shortest, config.longest) + config.queries
    pool = [(text, label) for label in labels for text in of_label[label]]
    if chance.random() < BALANCED:
        pools = {label: chance.sample(of_label[label], len(of_label[label])) for label in labels}
        drawn: list[tuple[str, str]] = []
        while len(drawn) < min(wanted, len(pool)):
            label = chance.choice([label for label in labels if pools[label]])
            drawn.append((pools[label].pop(), label))
    else:
        drawn = chance.sample(pool, min(wanted, len(pool)))
    length = len(drawn) - min(config.queries, len(drawn) // 2)
    targets = torch.tensor([class_of[label] for _, label in drawn])
    return AdapterEpisode(tuple(text for text, _ in drawn), targets, length, names, task.name)


def _named(
    labels: Sequence[str], config: TrainingConfig, chance: random.Random
) -> tuple[dict[str, int], tuple[str, ...]]:
    """Each label's class, and the classes' names: some merged ("a or b"), meaningless, or within a sentence."""
    names = [verbalize(label) for label in labels]
    class_of = {label: number for number, label in enumerate(labels)}
    if len(labels) >= 4 and chance.random() < config.merge:
        groups = chance.randint(2, len(labels) // 2)
        group = [*range(groups), *(chance.randrange(groups) for _ in range(len(labels) - groups))]
        class_of = dict(zip(labels, group, strict=True))
        names = [
            " or ".join(name for name, g in zip(names, group, strict=True) if g == number) for number in range(groups)
        ]
    kind = chance.random()
    if kind < config.hidden_names and len(names) <= len(MEANINGLESS):
        names = chance.sample(MEANINGLESS, len(names))
    elif kind < config.hidden_names + TEMPLATED:
        template = chance.choice(TEMPLATES)
        names = [template.format(name) for name in names]
    return class_of, tuple(names)
