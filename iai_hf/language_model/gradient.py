"""Gradient: base of the methods whose update is a step along the loss gradient of a chunk, from a learned start."""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from typing_extensions import TypeVar

from iai_hf.backbones.batching import BATCH_TOKENS
from iai_hf.backbones.packing import packs
from iai_hf.config import APART, renamed, require
from iai_hf.errors import DataError
from iai_hf.language_model.prompted import Prompted
from iai_hf.language_model.prompting import PromptConfig
from iai_hf.learned import Learned
from iai_hf.task import Chunk, TaskSpec

if TYPE_CHECKING:
    import torch

    from iai_hf.backbones.conditions import Condition
    from iai_hf.backbones.packing import Row
    from iai_hf.language_model.learners import Learner

PREFILL_ROWS = 64  # at most: steps on later ones take what was prefilled before the first step as given
PREFILL_TOKENS = 4096


@dataclass(frozen=True)
class GradientConfig(PromptConfig):
    """Settings that all gradient methods share.

    Attributes:
        learning_rate, learning_rate_exponent: step size before meta-training, in step i times i ** exponent; learned
            weights have theirs.
        batch_size: examples a gradient step.
        passes: times that steps are taken on the examples that were prefilled together, before they are let go.
        weights: learned start and step sizes: the name of shipped ones, or a folder; None for the plain method; "auto"
            for the shipped ones that belong to the backbone, where there are any.
    """

    learning_rate: float = 1e-3
    learning_rate_exponent: float = renamed(0.0, former="decay")
    batch_size: int = 8
    passes: int = field(default=1, metadata=APART)
    weights: str | None = field(default=None, metadata=APART)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("learning_rate", "batch_size", "passes"):
            require(getattr(self, name) > 0, f"{name} is {getattr(self, name)}; expected more than 0")
        exponent = self.learning_rate_exponent
        require(exponent <= 0, f"learning_rate_exponent is {exponent}; expected 0 or less")


class Retained(NamedTuple):
    """What a state keeps of its examples as they are.

    Attributes:
        tensors: of the state.
        trained_on: places in the chunk of the examples on which steps are taken: those that were not kept.
        left_out: examples that were passed over, as they alone are too long.
    """

    tensors: Mapping[str, torch.Tensor]
    trained_on: Sequence[int]
    left_out: int = 0


Config = TypeVar("Config", bound=GradientConfig, default=Any)


class Gradient(Prompted[Config], Learned[Config]):
    """A subclass makes the learner and says how a task's own weights enter the model."""

    @property
    def learner(self) -> Learner:
        """What is learned."""
        return cast("Learner", self.module)

    @property
    def step_scales(self) -> Mapping[str, float]:
        """What step sizes that were not learned are multiplied by, by the tensor's name; none by default."""
        return {}

    @property
    def groups(self) -> Mapping[str, Sequence[str]]:
        """Linear layers by their names in the model that have low-rank weights, by the group of these.

        The learner's tensors are `down_GROUP` and `up_GROUP`. By default there are none.
        """
        return {}

    @property
    def scale(self) -> float:
        """What low-rank weights are multiplied by."""
        return 1.0

    def fold_step_scales(self) -> None:
        """Take `step_scales` into the learner's step sizes, from where they are learned on."""
        for name, scale in self.step_scales.items():
            self.learner.rates[name].data += math.log(scale)
        self.__dict__["step_scales"] = {}

    @abstractmethod
    def make_module(self) -> Learner:
        """The learner at its initial value."""

    @abstractmethod
    def condition(
        self, own: Mapping[str, torch.Tensor], shared: Mapping[str, torch.Tensor], retained: Mapping[str, torch.Tensor]
    ) -> Condition:
        """What the model is trained under, differentiable in the task's own weights and the shared ones."""

    def condition_of(self, tensors: Mapping[str, torch.Tensor]) -> Condition:
        """As `condition`, of a state's tensors."""
        learner = self.learner
        return self.condition(learner.task_weights(tensors), learner.shared_weights(), self.retained(tensors))

    def retain(self, retained: Mapping[str, torch.Tensor], chunk: Chunk, steps: int) -> Retained:
        """What a state keeps of its examples as they are, after a chunk; `steps` were taken before it."""
        return Retained(retained, list(range(len(chunk))))

    def retained(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """What a state keeps of its examples as they are, among its tensors."""
        return {}

    def divergence(self, condition: Condition, texts: Sequence[str], length: int) -> torch.Tensor:
        """Mean divergence KL(plain || adapted) of the next token on the beginnings of texts, in nats.

        The plain model reads them behind the same prefix.
        """
        import torch

        from iai_hf.backbones.conditions import Condition

        model = self.prompter.model
        ids = [model.tokens(text[: 20 * length])[:length] for text in texts]
        with torch.no_grad():
            plain = model.next_tokens(ids, Condition(condition.prefix))
        adapted = model.next_tokens(ids, condition)
        return (plain.exp() * (plain - adapted)).sum(-1).mean()

    def initial(self, task: TaskSpec) -> Mapping[str, torch.Tensor]:
        return {**self.learner.stored(self.learner.initial()), **self.retained({})}

    def refine(
        self, tensors: Mapping[str, torch.Tensor], task: TaskSpec, chunk: Chunk, examples: int
    ) -> tuple[Mapping[str, torch.Tensor], Mapping[str, int]]:
        import torch

        chunk, limit = self.in_order(task, chunk), self.config.max_tokens
        cuts = sum(self.prompter.query(text)[1] for text in chunk.inputs) if limit else 0
        shared = self.learner.shared_weights()
        moved = self.learner.loaded(tensors, self.backbone.device)
        retained, trained_on, left_out = self.retain(self.retained(tensors), chunk, int(moved["steps"]))
        rows = self.rows(chunk)
        for group in prefill_groups([rows[i] for i in trained_on]):
            prefilled = self.prefill(group, self.condition(self.learner.task_weights(moved), shared, retained))
            for batch in itertools.chain(*(self.batches(prefilled) for _ in range(self.config.passes))):
                leaves = {name: own.detach().requires_grad_() for name, own in self.learner.task_weights(moved).items()}
                with torch.enable_grad():
                    losses = self.prompter.model.losses(batch, self.condition(leaves, shared, retained))
                    loss = (losses.sums / losses.tokens).mean()
                if not loss.isfinite():
                    raise DataError(
                        f"the loss is {loss.item()} on a batch behind example {examples}; the state is as it was "
                        "before the chunk: look at its texts, or lower learning_rate"
                    )
                gradients = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
                moved = self.learner.refined(moved, gradients, len(batch) / self.config.batch_size, self.step_scales)
        counts = self.counted(task, chunk) | ({"texts_cut": cuts} if limit else {})
        if left_out:
            counts["demonstrations_left_out"] = left_out
        return {**self.learner.stored(moved), **retained}, counts

    def rows(self, chunk: Chunk) -> list[Row]:
        """The examples of a chunk, each with its answer."""
        return [self.prompter.row(text, [output]) for text, output in zip(chunk.inputs, chunk.outputs, strict=True)]

    def batches(self, rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
        """Rows in their order, as many as make one gradient step; fewer where they are long."""
        bounds = packs([len(row) for row in rows], BATCH_TOKENS, self.config.batch_size)
        return (rows[first:last] for first, last in bounds)

    def prefill(self, rows: Sequence[Row], condition: Condition) -> Sequence[Row]:
        """The rows with what is read of them once for all steps on them; here nothing is."""
        return rows


def prefill_groups(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    """Rows in their order, so many as are prefilled at once: a hidden cache is a few kB a token."""
    bounds = packs([len(row) for row in rows], PREFILL_TOKENS, PREFILL_ROWS)
    return (rows[first:last] for first, last in bounds)
