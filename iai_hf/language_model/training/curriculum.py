"""TextCurriculum: tasks of either kind as texts, for the learners inside the language model."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from iai_hf.backbones.packing import packs
from iai_hf.language_model.training.episodes import TextEpisode, chunks_of, draw
from iai_hf.language_model.training.objective import PrequentialObjective
from iai_hf.task import Chunk, TaskSpec
from iai_hf.training.config import TrainingConfig
from iai_hf.training.curriculum import Curriculum, Evaluation, split
from iai_hf.training.tasks import TextTask

if TYPE_CHECKING:
    from iai_hf.language_model.gradient import Gradient

VALIDATION_CHUNK = 64


class TextCurriculum(Curriculum):
    """Episodes of `tasks` for the amortizer's learner.

    Args:
        unrelated: texts on which a state should change nothing.

    Raises:
        DataError: no task is left to train on, or a validation task is unknown.
    """

    def __init__(
        self, amortizer: Gradient, tasks: list[TextTask], unrelated: Sequence[str], config: TrainingConfig
    ) -> None:
        self.training, self.validation = split(tasks, config)
        self.amortizer, self.unrelated, self.config = amortizer, unrelated, config
        self.learned = amortizer.module
        self.objective = PrequentialObjective(amortizer, config.unrelated_weight)

    def draw(self, number: int, device: torch.device) -> TextEpisode:
        return draw(self.training, self.unrelated, self.config, number)

    def describe(self, episode: TextEpisode) -> str:
        return f"task {episode.task!r} ({sum(map(len, episode.chunks))} examples)"

    def evaluate(self) -> Evaluation | None:
        """Loss a token on held-out queries after up to `longest` examples; as accuracy, how often it is below log 2.

        A token with a loss below log 2 has more than half of the probability: where the mean over an answer is below,
        the answer is most likely right.
        """
        losses = []
        for task in self.validation:
            records = random.Random(f"{self.config.seed} {task.name}").sample(task.records, len(task.records))
            queries = records[: min(self.config.queries, len(records) // 3)]
            stream = records[len(queries) :][: self.config.longest]
            tensors = self.amortizer.initial(TaskSpec("generation"))
            for chunk in chunks_of(stream, VALIDATION_CHUNK):
                tensors, _ = self.amortizer.refine(tensors, TaskSpec("generation"), chunk, 0)
            model, condition = self.amortizer.prompter.model, self.amortizer.condition_of(tensors)
            rows = self.amortizer.rows(_as_chunk(queries))
            with torch.no_grad():
                for first, last in packs([len(row) for row in rows]):
                    found = model.losses(rows[first:last], condition)
                    losses += (found.sums / found.tokens).tolist()
        hits = [loss < math.log(2) for loss in losses]
        return Evaluation(sum(losses) / len(losses), sum(hits) / len(hits)) if losses else None


def _as_chunk(records: Sequence[tuple[str, str]]) -> Chunk:
    return Chunk(tuple(text for text, _ in records), tuple(output for _, output in records))
