"""TextCurriculum: tasks of either kind as texts, for the learners inside the language model."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from iai_hf.backbones.packed_pass import has_windows
from iai_hf.backbones.packing import packs
from iai_hf.data import Record
from iai_hf.errors import ConfigError
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
HeldOut = tuple[list[Record], list[Record]]  # a stream, and queries
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
            _check_side_by_side(amortizer)
            self.together = SideBySideObjective(amortizer, config.unrelated_weight)
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
        held_out = [self._held_out(task) for task in self.validation]
        losses = self._apart(held_out) if self.together is None else self._losses_together(self.together, held_out)
        hits = [loss < math.log(2) for loss in losses]
        return Evaluation(sum(losses) / len(losses), sum(hits) / len(hits)) if losses else None

    def _apart(self, held_out: Sequence[HeldOut]) -> list[float]:
        """Losses of all queries, each task read as it is when the method is used."""
        losses: list[float] = []
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
        return losses

    def _losses_together(self, together: SideBySideObjective, held_out: Sequence[HeldOut]) -> list[float]:
        """Losses of all queries at each of the `POINTS`."""
        if not held_out:
            return []
        streams = together.streams([chunks_of(stream, len(stream)) for stream, _ in held_out])
        queries = [[together.row(record.input, record.output) for record in asked] for _, asked in held_out]
        return [loss for found in together.held_out(streams, queries, POINTS) for loss in found.cpu().tolist()]

    def _held_out(self, task: TextTask) -> HeldOut:
        """A validation task's stream, and its queries."""
        records = random.Random(f"{self.config.seed} {task.name}").sample(task.records, len(task.records))
        count = min(self.config.queries, len(records) // 3)
        return records[count:][: self.config.longest], records[:count]


def _check_side_by_side(amortizer: Gradient) -> None:
    model = amortizer.prompter.model
    if not amortizer.groups or not model.abilities.packed or has_windows(model.model):
        raise ConfigError(
            "side_by_side is for lora and lm-state on models that are read packed and look back without a window, not "
            f"for {amortizer.method!r} on {amortizer.backbone.name}; leave it out"
        )


def _as_chunk(records: Sequence[Record]) -> Chunk:
    return Chunk(tuple(record.input for record in records), tuple(record.output for record in records))
