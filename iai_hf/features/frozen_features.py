"""Amortizers on features: the backbone turns texts into vectors, a head (`heads/`) does the rest."""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast, get_args

from typing_extensions import TypeVar

from iai_hf import shipped
from iai_hf.backbones import Backbone
from iai_hf.backbones.adapter import ADAPTER, FeatureAdapter
from iai_hf.backbones.stages import Standardize
from iai_hf.backbones.standardizing import standardized
from iai_hf.config import ABSENT, APART, require
from iai_hf.errors import BackboneError
from iai_hf.features.heads import TEMPLATES, Head
from iai_hf.files import ADAPTER_FILE
from iai_hf.learned import AUTO, Learned
from iai_hf.posterior import half_life_decay
from iai_hf.task import LABEL_LIMIT, MAX_LABELS, Chunk, Kind, Prediction, TaskSpec, Tensors

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)
Projection = Literal["orthogonal", "gaussian"]


@dataclass(frozen=True)
class FrozenFeaturesConfig:
    """Settings of every amortizer on frozen features.

    Attributes:
        max_tokens: read only so many tokens of a text; None reads all of it.
        max_features: wider features are projected to this size, at random, so that a state stays small.
        weights: learned weights of the head: the name of shipped ones, or a folder; None for the untrained head;
            "auto" for the shipped ones that belong to the backbone, where there are any.
        half_life: for streams that drift: examples after which what was seen counts half; None never forgets.
        adapter: learned features: the name of a shipped feature adapter, or a folder; None for the backbone's own;
            "auto" for the shipped one that belongs to the backbone, where there is one. States of before there were
            any have none.
        max_labels: that a state may have, each of which takes its part of the state (`bytes_a_label`); more are
            refused, so that an id or free text taken for a label does not fill the memory. May be changed for a state.
        watch: notice where the stream changes (`iai_hf.changes`), and go on from there (`features/watched.py`).
        standardize: give every dimension of a feature a scale of its own (`iai_hf.backbones.standardizing`); "auto"
            does so where two dimensions would drown the others, as in most causal language models.
        projection: how wider features are projected: "orthogonal" keeps the most of what tells texts apart; "gaussian"
            is that of states that were saved before there was a choice.
    """

    max_tokens: int | None = field(default=None, metadata=APART)
    max_features: int = 512
    weights: str | None = field(default=AUTO, metadata=APART)
    half_life: int | None = field(default=None, metadata=APART)
    adapter: str | None = field(default=AUTO, metadata={ABSENT: None, **APART})
    standardize: bool | str = field(default=AUTO, metadata={ABSENT: False})
    projection: Projection = field(default="orthogonal", metadata={ABSENT: "gaussian", **APART})
    watch: bool = field(default=False, metadata={ABSENT: False, **APART})
    max_labels: int = field(default=MAX_LABELS, metadata={ABSENT: MAX_LABELS, **APART})

    def __post_init__(self) -> None:
        known = 2 <= self.max_labels <= LABEL_LIMIT
        require(known, f"max_labels is {self.max_labels}; expected 2 to {LABEL_LIMIT}")
        require(self.max_tokens is None or self.max_tokens > 0, f"max_tokens is {self.max_tokens}; expected 1 or more")
        require(self.half_life is None or self.half_life > 0, f"half_life is {self.half_life}; expected 1 or more")
        require(
            not (self.watch and self.half_life is not None),
            f"watch is set, which forgets after a change and only then, and half_life is {self.half_life}; give one",
        )
        require(self.max_features > 0, f"max_features is {self.max_features}; expected 1 or more")
        known = self.standardize in (True, False, AUTO)
        require(known, f"standardize is {self.standardize!r}; expected true, false or {AUTO!r}")
        known = self.projection in get_args(Projection)
        require(known, f"projection is {self.projection!r}; expected {' or '.join(get_args(Projection))}")


Config = TypeVar("Config", bound=FrozenFeaturesConfig, default=Any)


class FrozenFeatures(Learned[Config]):
    """Base class: a subclass names its `regime` and makes its head."""

    kinds: ClassVar[tuple[Kind, ...]] = ("classification",)
    answer_settings = ("max_labels",)
    default_backbone = "sentence-transformers/all-MiniLM-L6-v2"

    def __init__(self, backbone: Backbone, config: Config | None = None) -> None:
        self.check_backbone(backbone)
        config = config if config is not None else self.config_class()
        source = shipped.find(ADAPTER, None, backbone) if config.adapter == AUTO else config.adapter
        self.feature_adapter: FeatureAdapter | None = None
        if source is not None:
            source, folder = shipped.locate(source, ADAPTER_FILE)
            self.feature_adapter = FeatureAdapter.load(folder)
            backbone = self.feature_adapter.merged(backbone)
            log.info("%s: features learned by %s", self.method, source)
        standing = backbone
        if any(isinstance(stage, Standardize) for stage in backbone.pipeline.stages):
            raise BackboneError(
                f"the features of {backbone.name} are standardized already; give the backbone that it is a variant of "
                "(`backbone.plain`)"
            )
        if config.standardize:
            backbone = standardized(standing, always=config.standardize is True)
        if backbone.hidden_size <= config.max_features:
            config = replace(config, projection="gaussian")  # as it was saved before: nothing is projected
        super().__init__(backbone, replace(config, adapter=source, standardize=backbone is not standing))

    @abstractmethod
    def make_module(self) -> Head:
        """The head at its initial value."""

    @property
    def head(self) -> Head:
        """What is learned."""
        return cast("Head", self.module)

    def head_of(self, task: TaskSpec) -> Head:
        """The head that answers a task; that which is learned is of classifications."""
        return self.head

    @property
    def feature_size(self) -> int:
        """Size of the features that the head sees."""
        return min(self.backbone.hidden_size, self.config.max_features)

    def features(self, texts: Sequence[str]) -> tuple[torch.Tensor, int]:
        """Features of texts, float32 `[texts, feature_size]`, and how many texts were cut at `max_tokens`."""
        found = self.backbone.features(texts, self.config.max_tokens)
        return self.projected(found.vectors), found.cut

    def read_ahead(self, chunk: Chunk) -> None:
        for texts in filter(None, (chunk.inputs, chunk.unlabelled)):
            self.backbone.read_ahead(texts, self.config.max_tokens)

    def projected(self, vectors: torch.Tensor) -> torch.Tensor:
        """Features as the head sees them, of the backbone's `[texts, hidden_size]`."""
        return vectors if self._projection is None else vectors @ self._projection

    def name_features(self, labels: Sequence[str]) -> torch.Tensor:
        """Features of label names, in each of the ways that they are put, `[templates, labels, feature_size]`."""
        texts = [template.format(verbalize(label)) for template in TEMPLATES for label in labels]
        return self.features(texts)[0].unflatten(0, (len(TEMPLATES), len(labels)))

    def bytes_a_label(self, task: TaskSpec) -> int:
        """Bytes of a state that each label takes."""
        head = self.head_of(task)
        rows = (tensor for name, tensor in head.initial(self.feature_size).items() if name in head.per_class)
        return sum(math.prod(tensor.shape[1:]) * tensor.itemsize for tensor in rows)

    def initial(self, task: TaskSpec) -> Mapping[str, torch.Tensor]:
        if self.config.max_labels > MAX_LABELS:
            each = self.bytes_a_label(task)
            whole = f"{self.config.max_labels:,} of them {self.config.max_labels * each / 1e6:,.1f} MB"
            log.info("a label takes %s bytes of a state, %s, however many rows there are", f"{each:,}", whole)
        return self._grown(self.head_of(task).initial(self.feature_size), task)

    def refine(
        self, tensors: Mapping[str, torch.Tensor], task: TaskSpec, chunk: Chunk, examples: int
    ) -> tuple[Mapping[str, torch.Tensor], Mapping[str, int]]:
        features, cut = self.features(chunk.inputs)
        targets = targets_of(chunk, task)
        tensors = {**self.absorbed(tensors, task, features, targets), **self.sampled(task, chunk, features, targets)}
        return tensors, {"texts_cut": cut} if self.config.max_tokens else {}

    def sampled(self, task: TaskSpec, chunk: Chunk, features: torch.Tensor, targets: torch.Tensor) -> Tensors:
        """What a state keeps of a chunk's examples beside the head's tensors, `[n, d]` and `[n]`; here nothing."""
        return {}

    def absorbed(self, tensors: Tensors, task: TaskSpec, features: torch.Tensor, targets: torch.Tensor) -> Tensors:
        """The head's tensors after examples with such features `[n, feature_size]` and targets as of `targets_of`."""
        import torch

        head = self.head_of(task)
        with torch.no_grad():
            if self.config.half_life is not None:
                tensors = head.faded(tensors, half_life_decay(len(targets), self.config.half_life))
            return head.refine(self._grown(tensors, task), features, targets)

    def prepare(self, tensors: Mapping[str, torch.Tensor], task: TaskSpec) -> Any:
        import torch

        with torch.no_grad():
            return self.head_of(task).prepare(tensors)

    def answer(self, prepared: Any, task: TaskSpec, queries: Sequence[str]) -> Prediction:
        import torch

        features, _ = self.features(queries)
        with torch.no_grad():
            return self.head_of(task).predicted(prepared, features, task.labels)

    def combine(
        self, parts: Sequence[tuple[Mapping[str, torch.Tensor], TaskSpec]], task: TaskSpec
    ) -> Mapping[str, torch.Tensor]:
        import torch

        class_of = {label: place for place, label in enumerate(task.labels)}
        head = self.head_of(task)
        aligned = [
            head.aligned(
                tensors, torch.tensor([class_of[label] for label in part.labels], dtype=torch.long), len(class_of)
            )
            for tensors, part in parts
        ]
        with torch.no_grad():
            return head.merge(aligned)

    def _grown(self, tensors: Mapping[str, torch.Tensor], task: TaskSpec) -> Mapping[str, torch.Tensor]:
        import torch

        new = task.labels[len(tensors["counts"]) :]
        if not new:
            return tensors
        with torch.no_grad():
            return self.head_of(task).grow(tensors, self.name_features(new))

    @cached_property
    def _projection(self) -> torch.Tensor | None:
        """Random projection `[hidden, max_features]`, where the backbone is wider than that.

        With orthonormal columns hardly more is lost than the dimensions that go; Gaussian ones distort what stays too
        (SmolLM2, 576 to 512 dimensions, held-out tasks, 64 examples: 60.6 whole, 59.9 orthogonal, 57.4 Gaussian).
        """
        import torch

        wide, size = self.backbone.hidden_size, self.config.max_features
        if wide <= size:
            return None
        generator = torch.Generator().manual_seed(0)
        if self.config.projection == "gaussian":
            return torch.randn(wide, size, generator=generator, dtype=torch.float32) / size**0.5
        columns, triangle = torch.linalg.qr(torch.randn(wide, size, generator=generator, dtype=torch.float64))
        columns = columns * triangle.diagonal().sign()  # the factorization alone leaves signs open
        return (columns * (wide / size) ** 0.5).float()


def targets_of(chunk: Chunk, task: TaskSpec) -> torch.Tensor:
    """Numbers of a chunk's classes among the task's labels, int64 `[n]`; of lists of labels which, bool `[n, C]`."""
    import torch

    class_of = {label: place for place, label in enumerate(task.labels)}
    if task.kind == "multi-label":
        own = torch.zeros(len(chunk), len(class_of), dtype=torch.bool)
        pairs = [(row, class_of[label]) for row, output in enumerate(chunk.outputs) for label in output]
        if pairs:
            own[tuple(torch.tensor(pairs).T)] = True
        return own
    return torch.tensor([class_of[output] for output in chunk.outputs])


def verbalize(label: str) -> str:
    """A label's name as words, e.g. "comp sys mac" of "comp.sys.mac"."""
    return label.translate(str.maketrans("_-./", "    ")).strip() or label
