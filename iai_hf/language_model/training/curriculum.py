"""TextCurriculum: tasks of either kind as texts, for the learners inside the language model."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from iai_hf.backbones.packing import packs
from iai_hf.data import Record
from iai_hf.errors import ConfigError
from iai_hf.language_model.lora import LoRA
from iai_hf.language_model.training.episodes import TextEpisode, chunks_of, draw, draw_together
from iai_hf.language_model.training.objective import PrequentialObjective
from iai_hf.language_model.training.side_by_side import SideBySideObjective
from iai_hf.task import Chunk, TaskSpec
from iai_hf.training.config import TrainingConfig
from iai_hf.training.curriculum import Curriculum, Evaluation, split
from iai_hf.training.tasks import TextTask

if TYPE_CHECKING:
    from iai_hf.language_model.gradient import Gradient

VALIDATION_CHUNK = 64
POINTS = (0, 1, 3, 7)  # gradient steps behind the demonstrations


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
        amortizer.fold_step_scales()  # step sizes are learned from those on that the method takes untrained
        self.learned = amortizer.module
        self.together: SideBySideObjective | None = None
        if config.side_by_side > 1:
            self.together = SideBySideObjective(_low_rank(amortizer), config.unrelated_weight)
        self.objective = self.together or PrequentialObjective(amortizer, config.unrelated_weight)

    def draw(self, number: int, device: torch.device) -> TextEpisode | tuple[TextEpisode, ...]:
        if self.together is None:
            return draw(self.training, self.unrelated, self.config, number)
        return draw_together(self.training, self.unrelated, self.config, number)

    def describe(self, episode: TextEpisode | tuple[TextEpisode, ...]) -> str:
        each = [episode] if isinstance(episode, TextEpisode) else episode
        return ", ".join(f"task {one.task!r} ({sum(map(len, one.chunks))} examples)" for one in each)

    def evaluate(self) -> Evaluation | None:
        """Loss a token on held-out queries after up to `longest` examples; as accuracy, how often it is below log 2.

        A token with a loss below log 2 has more than half of the probability: where the mean over an answer is below,
        the answer is most likely right. Side by side the means are over `POINTS` of the streams, the first ones too.
        """
        losses: list[float] = []
        held_out = [self._held_out(task) for task in self.validation]
        if self.together is not None and held_out:
            together = self.together
            streams = together.streams([chunks_of(stream, len(stream)) for stream, _ in held_out])
            queries = [[together.row(*record) for record in asked] for _, asked in held_out]
            for found in together.held_out(streams, queries, POINTS):
                losses += found.cpu().tolist()
            held_out = []
        for stream, queries in held_out:
            tensors = self.amortizer.initial(TaskSpec("generation"))
            for chunk in chunks_of(stream, VALIDATION_CHUNK):
                tensors, _ = self.amortizer.refine(tensors, TaskSpec("generation"), chunk, 0)
            model, condition = self.amortizer.prompter.model, self.amortizer.condition_of(tensors)
            rows = self.amortizer.rows(_as_chunk(queries))
            with torch.no_grad():
                for first, last in packs([len(row) for row in rows]):
                    found = model.losses(rows[first:last], condition)
                    losses += (found.sums / found.tokens).cpu().tolist()
        hits = [loss < math.log(2) for loss in losses]
        return Evaluation(sum(losses) / len(losses), sum(hits) / len(hits)) if losses else None

    def _held_out(self, task: TextTask) -> tuple[list[Record], list[Record]]:
        """A validation task's stream, and its queries."""
        records = random.Random(f"{self.config.seed} {task.name}").sample(task.records, len(task.records))
        count = min(self.config.queries, len(records) // 3)
        return records[count:][: self.config.longest], records[:count]


def _low_rank(amortizer: Gradient) -> LoRA:
    if not isinstance(amortizer, LoRA) or not amortizer.prompter.model.abilities.packed:
        raise ConfigError(
            f"side_by_side is for lora and lm-state on models that are read packed, not for {amortizer.method!r} on "
            f"{amortizer.backbone.name}; leave it out"
        )
    return amortizer


def _as_chunk(records: Sequence[tuple[str, str]]) -> Chunk:
    return Chunk(tuple(text for text, _ in records), tuple(output for _, output in records))
