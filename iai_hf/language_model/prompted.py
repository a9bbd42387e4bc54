"""Prompted: base of the methods whose queries are answered by the language model itself, under a condition."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import TypeVar

from iai_hf.amortizer import Amortizer
from iai_hf.backbones import Backbone
from iai_hf.language_model.label_sets import THRESHOLD, label_logits
from iai_hf.language_model.prompting import PromptConfig, Prompter, Question
from iai_hf.task import Chunk, Kind, Prediction, TaskSpec
from iai_hf.threads import computing

if TYPE_CHECKING:
    import torch

    from iai_hf.backbones.conditions import Condition, Sampling
    from iai_hf.state import TaskState

log = logging.getLogger(__name__)


Config = TypeVar("Config", bound=PromptConfig, default=Any)


class Prompted(Amortizer[Config]):
    """A subclass says what condition a state puts the model under."""

    answer_settings = ("calibrate", "max_new_tokens")
    kinds: ClassVar[tuple[Kind, ...]] = ("classification", "multi-label", "generation")
    default_backbone = "HuggingFaceTB/SmolLM2-135M-Instruct"

    def __init__(self, backbone: Backbone, config: Config | None = None) -> None:
        super().__init__(backbone, config)
        _ = self.prompter  # a backbone that can't be prompted is refused here, not at the first query

    @cached_property
    def prompter(self) -> Prompter:
        return Prompter(self.backbone, self.config)

    @abstractmethod
    def prepare(self, tensors: Mapping[str, torch.Tensor], task: TaskSpec) -> Condition:
        """What the model answers under."""

    def counted(self, task: TaskSpec, chunk: Chunk) -> dict[str, int]:
        """Outputs of a chunk that no answer can be, for the header; the log tells each reason once."""
        if task.kind != "generation":
            return {}
        cut, changed = self.prompter.unanswerable(chunk.outputs)
        if cut and "cut" not in self._warned:
            longest = max(cut, key=lambda output: len(self.prompter.answer(output)))
            log.warning(
                "an output is longer than max_new_tokens, %d, where answers are cut: %r...; max_new_tokens=%d "
                "would do, also for a state that stands",
                self.config.max_new_tokens,
                longest[:40],
                len(self.prompter.answer(longest)),
            )
        if changed and "changed" not in self._warned:
            log.warning(
                "the tokenizer of %s can't write an output as it is: %r is answered as %r at best",
                self.backbone.name,
                changed[0][:40],
                self.prompter.decode_answer(self.prompter.answer(changed[0]))[:40],
            )
        self._warned.update(["cut"] * bool(cut) + ["changed"] * bool(changed))
        return {"outputs_cut": len(cut), "outputs_changed": len(changed)}

    @cached_property
    def _warned(self) -> set[str]:
        return set()

    def in_order(self, task: TaskSpec, chunk: Chunk) -> Chunk:
        """The chunk with the labels of each set as they are written: in the order that the task knows them."""
        if not chunk.label_sets:
            return chunk
        place = {label: number for number, label in enumerate(task.labels)}
        return replace(chunk, outputs=tuple(tuple(sorted(several, key=place.__getitem__)) for several in chunk.outputs))

    def answer(self, prepared: Condition, task: TaskSpec, queries: Sequence[str]) -> Prediction:
        if task.kind == "generation":
            return Prediction(tuple(self.prompter.generate(prepared, [self.prompter.row(text) for text in queries])))
        return Prediction.joined(self._chosen(prepared, [task] * len(queries), queries, [0] * len(queries)))

    def _chosen(
        self, condition: Condition, tasks: Sequence[TaskSpec], queries: Sequence[str], indices: Sequence[int]
    ) -> list[Prediction]:
        """Of queries whose answers are labels, all one or all several, from a task and an adapter's index each."""
        import torch

        labels = [task.labels for task in tasks]
        questions = [Question(*of) for of in zip(queries, labels, indices, strict=True)]
        if tasks[0].kind == "multi-label":
            found = label_logits(self.prompter, condition, questions)
            return [
                Prediction.from_label_logits(logits[None], torch.full_like(logits, THRESHOLD), names)
                for logits, names in zip(found, labels, strict=True)
            ]
        scores = self.prompter.scores(condition, questions)
        return [Prediction.from_logits(row[None].cpu(), names) for row, names in zip(scores, labels, strict=True)]

    def answer_each(
        self, prepared: Sequence[Condition], tasks: Sequence[TaskSpec], queries: Sequence[str]
    ) -> list[Prediction]:
        """One forward pass for all states that are asked the same kind of task."""
        from iai_hf.backbones.conditions import Condition, joined

        answers: dict[int, Prediction] = {}
        groups: dict[tuple[int, str], list[int]] = {}
        for i, (condition, task) in enumerate(zip(prepared, tasks, strict=True)):
            groups.setdefault((len(condition.weights), task.kind), []).append(i)
        for (_, kind), group in groups.items():
            distinct = {id(prepared[i]): prepared[i] for i in group}
            adapter_index = {key: place for place, key in enumerate(distinct)}
            mixed = Condition(
                joined([condition.prefix for condition in distinct.values()]),
                tuple(weights for condition in distinct.values() for weights in condition.weights),
            )
            indices = [adapter_index[id(prepared[i])] for i in group]
            asked = [queries[i] for i in group]
            if kind == "generation":
                rows = [self.prompter.row(text, (), index) for text, index in zip(asked, indices, strict=True)]
                found = [Prediction((text,)) for text in self.prompter.generate(mixed, rows)]
            else:
                found = self._chosen(mixed, [tasks[i] for i in group], asked, indices)
            answers.update(zip(group, found, strict=True))
        return [answers[i] for i in range(len(queries))]

    @computing()
    def generate(self, state: TaskState, queries: Sequence[str], sampling: Sampling | None = None) -> list[str]:
        """Free text for each query, whatever the kind of task: greedy, or sampled.

        Raises:
            StateError, DataError: as `predict`.
        """
        rows = [self.prompter.row(text) for text in self.checked_queries(queries, state.task)]
        return self.prompter.generate(self.prepared(state), rows, sampling)
