"""iterative: the paper's three regimes on features. Each is its head (`heads/`) under the contract."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, cast

from iai_hf.backbones import load_backbone
from iai_hf.backbones.cached import CachedBackbone
from iai_hf.config import ABSENT, APART, read_config, require
from iai_hf.errors import ConfigError, StateError
from iai_hf.features.adapted_features import AdaptedFeaturesConfig
from iai_hf.features.calibrated import ScoresObservations, ScoresSample
from iai_hf.features.converging import Converging
from iai_hf.features.editing import EditableDepth, EditableFeatures
from iai_hf.features.exported_features import ExportedFeatures
from iai_hf.features.frozen_features import Config, FrozenFeatures, FrozenFeaturesConfig, targets_of
from iai_hf.features.heads import (
    ExplicitHead,
    Head,
    ImplicitHead,
    MultiLabelExplicitHead,
    MultiLabelImplicitHead,
    MultiLabelParametricHead,
    ParametricHead,
)
from iai_hf.features.heads.calibration import MOST
from iai_hf.features.parts import part_of
from iai_hf.features.unlabelled import TakesUnlabelled
from iai_hf.features.watched import WatchedFeatures, check_same_meaning
from iai_hf.signals import SIGNALS, Signal
from iai_hf.task import Chunk, Kind, TaskSpec, Tensors

if TYPE_CHECKING:
    import torch

    from iai_hf.state import TaskState
    from iai_hf.training.config import TrainingConfig
    from iai_hf.training.curriculum import Curriculum, Sources

log = logging.getLogger(__name__)
SAMPLE = {ABSENT: 0, **APART}  # metadata of numbers of kept examples


@dataclass(frozen=True)
class IterativeConfig(AdaptedFeaturesConfig):
    """Settings of `iterative`.

    Attributes:
        signal: what an update takes from a chunk: "data", "gradient" or "both".
        calibration_examples: features of so many examples are kept, so that answers can come with a stated error.
            States of before there was any have 0.
        converged_examples: once many labels are known so many are kept instead, in 8 bits, to which regression is
            fitted that answers beside the stream's linear map; where calibration_examples is 0 none are. States of
            before there was any have 0.
    """

    signal: Signal = "both"
    calibration_examples: int = field(default=MOST, metadata=SAMPLE)
    converged_examples: int = field(default=1000, metadata=SAMPLE)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_size(self.calibration_examples)
        number = self.converged_examples
        require(number >= 0, f"converged_examples is {number}; expected 0 or more")
        require(self.signal in SIGNALS, f"signal is {self.signal!r}; expected {', '.join(SIGNALS)}")


@dataclass(frozen=True)
class IterativeExplicitConfig(FrozenFeaturesConfig):
    """Settings of `iterative-explicit`.

    Attributes:
        calibration_examples: as of `iterative`; by default none, since they would be most of the state.
    """

    calibration_examples: int = field(default=0, metadata=SAMPLE)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_size(self.calibration_examples)


@dataclass(frozen=True)
class IterativeImplicitConfig(FrozenFeaturesConfig):
    """Settings of `iterative-implicit`.

    Attributes:
        budget: examples that the state may keep, 2 bytes a feature each.
    """

    budget: int = field(default=1024, metadata=APART)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.budget > 0, f"budget is {self.budget}; expected 1 or more")


def check_size(calibration_examples: int) -> None:
    """Raise ConfigError where it is negative."""
    require(calibration_examples >= 0, f"calibration_examples is {calibration_examples}; expected 0 or more")


class _OnTasks(EditableFeatures[Config]):
    """What they learn from: a head from features that are computed once; an adapter, which changes them, from texts.

    A task with any number of labels a text has a head of its own, which is not learned: `make_multi_label_head`.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("classification", "multi-label")

    @abstractmethod
    def make_multi_label_head(self) -> Head:
        """The head of the same regime for any number of labels a text."""

    @cached_property
    def multi_label_head(self) -> Head:
        """What `make_multi_label_head` makes, made once."""
        return self.make_multi_label_head().requires_grad_(False)

    def head_of(self, task: TaskSpec) -> Head:
        return self.multi_label_head if task.kind == "multi-label" else self.head

    @classmethod
    def curriculum(cls, config: TrainingConfig, sources: Sources) -> tuple[FrozenFeatures, Curriculum]:
        from iai_hf.features.training import AdapterCurriculum, FeatureCurriculum, load_tasks
        from iai_hf.training.curriculum import task_files
        from iai_hf.training.tasks import load_text_tasks

        files = task_files(config.tasks, sources.data_dir)
        backbone = load_backbone(config.backbone, device=sources.device)
        adapts = config.learns == "adapter"
        settings = {**config.settings, "weights": None, **({"adapter": None} if adapts else {})}
        used = backbone if adapts else CachedBackbone(backbone, sources.cache_dir)
        amortizer = cls(used, read_config(cls.config_class, settings))
        if adapts:
            return amortizer, AdapterCurriculum(amortizer, load_text_tasks(files, config.max_task_examples), config)
        return amortizer, FeatureCurriculum(amortizer, load_tasks(files, amortizer, config.max_task_examples), config)


class Iterative(
    Converging[IterativeConfig],
    WatchedFeatures[IterativeConfig],
    TakesUnlabelled[IterativeConfig],
    EditableDepth[IterativeConfig],
    ExportedFeatures[IterativeConfig],
    _OnTasks[IterativeConfig],
):
    """Parametric: the state is a linear classifier's parameters (see `iai_hf.features.heads.parametric`)."""

    method = "iterative"
    regime = "parametric"
    config_class = IterativeConfig

    def make_module(self) -> Head:
        return ParametricHead(self.config.signal)

    def make_multi_label_head(self) -> Head:
        return MultiLabelParametricHead(self.config.signal)

    def initial(self, task: TaskSpec) -> Tensors:
        """As `FrozenFeatures.initial`.

        Raises:
            ConfigError: there is a depth, and several labels a text.
        """
        if task.kind == "multi-label" and self.config.depth:
            raise ConfigError(
                f"{self.method!r} with a depth, here {self.config.depth}, takes one label a text; set depth=0 for more"
            )
        return super().initial(task)

    def leave_one_out(self, state: TaskState, chunk: Chunk) -> torch.Tensor:
        """Log probabilities `[n, C]` of examples that the state has read, each as if it alone had not been.

        They are those of the head on frozen features; of several labels a text each label's log odds.

        Raises:
            StateError: the state belongs to another backbone, or has read fewer examples of a label.
            ConfigError: the state forgets.
            DataError: the state knows too few labels.
        """
        import torch

        if self.config.half_life is not None:
            raise ConfigError(
                f"a state with half_life={self.config.half_life} holds its examples with weights that are not known, "
                "so that none can be left out; adapt one without half_life"
            )
        check_same_meaning(state.tensors, "no longer counts the examples before, so that none can be left out")
        if self.config.depth:
            log.warning("the state has a depth; what is left out is judged by its head on frozen features alone")
        self.prepared(state)
        tensors = part_of("", state.tensors)
        targets = targets_of(chunk, state.task)
        several = targets.ndim == 2
        given = targets.sum(0) if several else torch.bincount(targets, minlength=len(state.task.labels))
        missing = given - tensors["counts"].round()
        if float(missing.max()) > 0:
            label = int(missing.argmax())
            raise StateError(
                f"the state has read {int(tensors['counts'][label].round())} examples of "
                f"{state.task.labels[label]!r}, the data have {int(missing[label])} more; adapt it on these data first"
            )
        head = cast("ParametricHead", self.head_of(state.task))
        if len(chunk) > float(head.examples(tensors)) + 0.5:
            raise StateError(
                f"the state has read {int(head.examples(tensors))} examples, the data have {len(chunk)}; adapt it on "
                "these data first"
            )
        features, _ = self.features(chunk.inputs)
        with torch.no_grad():
            if not head.may_hold(tensors, features, targets):
                raise StateError(
                    "the state can't have read all of these examples with these labels, so that they can't be left "
                    "out; adapt it on these data first"
                )
            found = head.held_out(tensors, features, targets)
        return found if several else found.log_softmax(1)

    def absorb(self, tensors: Tensors, task: TaskSpec, inputs: Sequence[str]) -> tuple[Tensors, Mapping[str, int]]:
        """As `TakesUnlabelled.absorb`; with a depth they are refused, since the sample has frozen features alone.

        Raises:
            ConfigError: there is a depth, or texts have several labels.
        """
        if self.config.depth:
            raise ConfigError(
                f"{self.method!r} can't take rows without a label (unlabelled ones, or queries that inform each other) "
                f"where it has a depth, here {self.config.depth}; leave them out, or set depth=0"
            )
        return super().absorb(tensors, task, inputs)


class IterativeExplicit(
    ScoresSample[IterativeExplicitConfig],
    WatchedFeatures[IterativeExplicitConfig],
    TakesUnlabelled[IterativeExplicitConfig],
    _OnTasks[IterativeExplicitConfig],
):
    """Explicit: the state is a compact code, the predictor is learned (see `iai_hf.features.heads.explicit`)."""

    method = "iterative-explicit"
    regime = "explicit"
    config_class = IterativeExplicitConfig

    def make_module(self) -> Head:
        return ExplicitHead()

    def make_multi_label_head(self) -> Head:
        return MultiLabelExplicitHead()


class IterativeImplicit(
    ScoresObservations[IterativeImplicitConfig],
    WatchedFeatures[IterativeImplicitConfig],
    _OnTasks[IterativeImplicitConfig],
):
    """Implicit: the state is observations, queries' logits are refined by them (see `heads/implicit.py`)."""

    method = "iterative-implicit"
    regime = "implicit"
    config_class = IterativeImplicitConfig

    def make_module(self) -> Head:
        return ImplicitHead(self.config.budget)

    def make_multi_label_head(self) -> Head:
        return MultiLabelImplicitHead(self.config.budget)
