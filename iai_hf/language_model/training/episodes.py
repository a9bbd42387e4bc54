"""Episodes of texts: streams of random tasks, changed so that a task can't be known by heart.

Labels are permuted among each other or replaced by other words, inputs and outputs change places, class subsets,
stream lengths and chunk sizes are drawn. An episode follows from (seed, number) alone.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from iai_hf.data import Record
from iai_hf.task import Chunk
from iai_hf.training.config import TrainingConfig
from iai_hf.training.tasks import TextTask

UNRELATED_TEXTS = 3
MOST_LABELS = 20  # of a task with more, an episode has a random subset
LENGTHS = 4  # classes of texts of like length
LONGEST_SWAPPED = 80  # characters: longer inputs make no sense as outputs


@dataclass(frozen=True)
class TextEpisode:
    """A stream in chunks, unrelated texts, and the task's name."""

    chunks: tuple[Chunk, ...]
    unrelated: tuple[str, ...]
    task: str


def draw(tasks: Sequence[TextTask], unrelated: Sequence[str], config: TrainingConfig, number: int) -> TextEpisode:
    """Episode `number` of the run."""
    chance = random.Random(f"{config.seed} {number}")
    task = tasks[chance.randrange(len(tasks))]
    records = _changed(task, config, chance, tasks[chance.randrange(len(tasks))].first_words)
    length = min(len(records), int(math.exp(chance.uniform(math.log(config.shortest), math.log(config.longest + 1)))))
    records = chance.sample(records, length)
    least, most = config.chunk_sizes
    size = int(math.exp(chance.uniform(math.log(least), math.log(most + 1))))
    return TextEpisode(
        chunks_of(records, min(size, most)),
        tuple(chance.sample(unrelated, min(UNRELATED_TEXTS, len(unrelated)))),
        task.name,
    )


def draw_together(
    tasks: Sequence[TextTask], unrelated: Sequence[str], config: TrainingConfig, number: int
) -> tuple[TextEpisode, ...]:
    """Episodes of `config.side_by_side` tasks with texts of like length, in streams of one length, a chunk each.

    So little of a batch of all is filled up. No task occurs twice, unless there are fewer.
    """
    chance = random.Random(f"{config.seed} {number}")
    count = config.side_by_side
    drawn = chance.sample(tasks, min(len(tasks), LENGTHS * count))
    drawn += chance.choices(tasks, k=max(count - len(drawn), 0))
    drawn.sort(key=lambda task: task.mean_length)
    first = chance.randint(0, LENGTHS - 1) * (len(drawn) - count) // max(LENGTHS - 1, 1)
    longest = math.exp(chance.uniform(math.log(config.shortest), math.log(config.longest + 1)))
    found = []
    for task in drawn[first : first + count]:
        records = _changed(task, config, chance, tasks[chance.randrange(len(tasks))].first_words)
        records = chance.sample(records, min(len(records), int(longest)))
        unlike = tuple(chance.sample(unrelated, min(UNRELATED_TEXTS, len(unrelated))))
        found.append(TextEpisode(chunks_of(records, len(records)), unlike, task.name))
    return tuple(found)


def chunks_of(records: Sequence[Record], size: int) -> tuple[Chunk, ...]:
    """Consecutive chunks of `size` records."""
    parts = [records[first : first + size] for first in range(0, len(records), size)]
    return tuple(Chunk(tuple(r.input for r in part), tuple(r.output for r in part)) for part in parts)


def _changed(task: TextTask, config: TrainingConfig, chance: random.Random, words: Sequence[str]) -> list[Record]:
    """The task's records, labels subsampled, permuted or renamed, or inputs and outputs swapped."""
    records = list(task.records)
    if task.kind == "generation":
        if chance.random() < config.swap and all(len(record.input) <= LONGEST_SWAPPED for record in records):
            return [Record(record.output, record.input) for record in records]
        return records
    labels = list(task.labels)
    if len(labels) > MOST_LABELS:
        labels = chance.sample(labels, chance.randint(2, MOST_LABELS))
    names = list(labels)
    kind = chance.random()
    if kind < config.permuted_names:
        names = chance.sample(labels, len(labels))
    elif kind < config.permuted_names + config.hidden_names:
        names = chance.sample(words, len(labels)) if len(words) >= len(labels) else names
    renamed = dict(zip(labels, names, strict=True))
    return [Record(record.input, renamed[record.output]) for record in records if record.output in renamed]
