"""The contract. Every method (in-context learning, prompt tuning, the iterative head, ...) is a subclass of it.

    state = amortizer.init_state(task)              # theta[0]
    state = amortizer.update(state, chunk)          # theta[i+1] = h_phi(theta[i], B[i])
    prediction = amortizer.predict(state, queries)  # f_gamma(x, theta)

(Mittal et al. 2025, "Iterative Amortized Inference", arXiv 2510.11471.) `init_state`, `update` and `predict` are
pure: they never change the state that they are given. A subclass writes four functions of tensors (`initial`,
`refine`, `prepare`, `answer`); headers, checks, streaming and files are handled here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal
from weakref import WeakKeyDictionary

from typing_extensions import TypeVar

from iai_hf import __version__, hub, shipped
from iai_hf.adapt import adapt
from iai_hf.answering import Answers
from iai_hf.backbones import Backbone
from iai_hf.belonging import check_belongs
from iai_hf.card import amortizer_card
from iai_hf.changes import Watches
from iai_hf.config import Settings, first_names
from iai_hf.edits import Edits
from iai_hf.errors import BackboneError, ConfigError, DataError, StateError
from iai_hf.export import export
from iai_hf.files import CONFIG_FILE, check_own, write_together
from iai_hf.header import FORMAT_VERSION, UNLABELLED, StateHeader
from iai_hf.methods import check_takes_unlabelled, check_task, those
from iai_hf.state import TaskState
from iai_hf.task import MAX_LABELS, Chunk, Kind, Prediction, TaskSpec, check_sets, warn_of_alike
from iai_hf.threads import solving

if TYPE_CHECKING:
    import torch

    from iai_hf.backbones.linear_classifier import LinearClassifier

Config = TypeVar("Config", bound=Settings, default=Any)


class Amortizer(Answers, Edits, Watches, ABC, Generic[Config]):
    """Base class of all methods, of the type of their configuration.

    Attributes:
        method: registered name.
        regime: the paper's: who carries the task information.
        kinds: kinds of task that it can answer.
        reads: what its inputs are.
        config_class: dataclass of its settings.
        default_backbone: used where the user names none.
        answer_settings: settings that only answering depends on, so that they can be changed for a state.
        chunk_free: whether the state is promised to be the same however a stream is cut into chunks.
        takes_unlabelled: whether rows without a label tell it something.
    """

    method: ClassVar[str]
    regime: ClassVar[Literal["parametric", "explicit", "implicit"]]
    kinds: ClassVar[tuple[Kind, ...]] = ("classification", "generation")
    reads: ClassVar[Literal["texts", "numbers"]] = "texts"
    config_class: type[Config]
    default_backbone: ClassVar[str]
    answer_settings: ClassVar[tuple[str, ...]] = ()
    chunk_free: ClassVar[bool] = False
    takes_unlabelled: ClassVar[bool] = False

    def __init__(self, backbone: Backbone, config: Config | None = None) -> None:
        self.check_backbone(backbone)
        self.backbone = backbone
        self.config = config if config is not None else self.config_class()
        self._prepared = WeakKeyDictionary()

    @classmethod
    def check_backbone(cls, backbone: Backbone) -> None:
        """Raise BackboneError where it reads something else than the method."""
        if backbone.reads != cls.reads:
            raise BackboneError(
                f"{cls.method!r} reads {cls.reads}, the backbone {backbone.name} {backbone.reads}; choose another "
                f"method, or leave the backbone out, for {cls.default_backbone}"
            )

    @classmethod
    def summary(cls, state: TaskState) -> dict[str, str]:
        """What else a person may want to know of a state, read from its tensors alone: names and short texts."""
        return {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_prepared": {}}  # another process prepares states anew

    def __setstate__(self, kept: dict[str, Any]) -> None:
        self.__dict__.update(kept, _prepared=WeakKeyDictionary())

    # What a method is made of.

    @abstractmethod
    def initial(self, task: TaskSpec) -> Mapping[str, torch.Tensor]:
        """Tensors of the state before any example."""

    @abstractmethod
    def refine(
        self, tensors: Mapping[str, torch.Tensor], task: TaskSpec, chunk: Chunk, examples: int
    ) -> tuple[Mapping[str, torch.Tensor], Mapping[str, int]]:
        """New tensors after `chunk`, and counts for the header. `tensors` must not be written to.

        `task` already has the chunk's labels, new ones last; `examples` were seen before the chunk.
        """

    def read_ahead(self, chunk: Chunk) -> None:
        """Make what `update` with `chunk` will need but for the model, in a thread beside it; here nothing."""

    def absorb(
        self, tensors: Mapping[str, torch.Tensor], task: TaskSpec, inputs: Sequence[Any]
    ) -> tuple[Mapping[str, torch.Tensor], Mapping[str, int]]:
        """New tensors after inputs that have no label, and counts for the header, of a method that takes them."""
        raise NotImplementedError

    @abstractmethod
    def prepare(self, tensors: Mapping[str, torch.Tensor], task: TaskSpec) -> Any:
        """All of `predict` that does not depend on the query; done once a state and kept while the state lives."""

    @abstractmethod
    def answer(self, prepared: Any, task: TaskSpec, queries: Sequence[Any]) -> Prediction:
        """Answer the queries from what `prepare` made."""

    # The contract.

    @solving()
    def init_state(self, task: TaskSpec | None = None) -> TaskState:
        """The state before any example: learned, or empty.

        Raises:
            DataError: the method can't answer that kind of task, or the task has too many labels.
        """
        task = task or TaskSpec()
        check_task(self, task)
        warn_of_alike((), task.labels)
        header = StateHeader(
            method=self.method,
            config=dataclasses.asdict(self.config),
            amortizer=self.fingerprint,
            backbone=self.backbone.name,
            backbone_revision=self.backbone.revision,
            backbone_fingerprint=self.backbone.fingerprint,
            backbone_source=self.backbone.source,
            weights_digest=self.weights_digest,
            task=task,
        )
        return TaskState(self.initial(task), header)

    @solving()
    def update(self, state: TaskState, chunk: Chunk) -> TaskState:
        """The state refined by one mini-batch; the given state is untouched.

        Raises:
            StateError: the state belongs to another method or backbone.
            DataError: more labels than a state may hold, or lists of them where a text has one, or the other way round.
            ConfigError: the chunk has rows without a label, which the method can't take.
        """
        self.check(state)
        if not isinstance(chunk, Chunk):
            raise DataError(f"got a {type(chunk).__name__} for a chunk; expected a Chunk: `adapt` reads rows")
        check_sets(state.task, chunk.outputs)
        task = state.task.with_labels_of(chunk.outputs)
        check_task(self, task)
        if chunk.unlabelled:
            check_takes_unlabelled(self)
        tensors, found = state.tensors, Counter[str]()
        if chunk.inputs:
            tensors, counts = self.refine(tensors, task, chunk, state.header.examples)
            found.update(counts)
        if chunk.unlabelled:
            tensors, counts = self.absorb(tensors, task, chunk.unlabelled)
            found.update({**counts, UNLABELLED: len(chunk.unlabelled)})
        moved = state.advance(tensors, task, len(chunk), found)
        return TaskState(moved.tensors, self._signed(moved.header))

    @solving()
    def merge(self, states: Sequence[TaskState]) -> TaskState:
        """One state from those of disjoint parts of a task's data, made by this amortizer; labels are joined.

        Raises:
            StateError: fewer than two states, one of another method or backbone, or two that have read the same data.
            ConfigError: the method's states can't be merged.
        """
        if len(states) < 2:
            raise StateError(f"got {len(states)} state(s) to merge; expected at least two")
        for state in states:
            self.check(state)
        if len(kinds := {state.task.kind for state in states}) > 1:
            raise StateError(f"the states are of tasks of the kinds {' and '.join(sorted(kinds))}; merge those of one")
        labels = tuple(dict.fromkeys(label for state in states for label in state.task.labels))
        warn_of_alike((), labels)
        task = TaskSpec(states[0].task.kind, labels, states[0].task.columns)
        check_task(self, task)
        tensors = self.combine([(state.tensors, state.task) for state in states], task)  # refused where none can be
        read = [source for state in states for source in state.header.read]
        if len(set(map(id, states))) < len(states) or len(set(read)) < len(read):
            raise StateError("two of the states have read the same data; merge states of disjoint parts")
        header = dataclasses.replace(
            states[0].header,
            task=task,
            examples=sum(state.header.examples for state in states),
            steps=sum(state.header.steps for state in states),
            counts={
                key: sum(state.header.counts.get(key, 0) for state in states)
                for key in sorted({key for state in states for key in state.header.counts})
            },
            stream=None,
            merged=tuple(dict.fromkeys(read)),
            history=tuple(edit for state in states for edit in state.header.history),
        )
        return TaskState(tensors, self._signed(header))

    def combine(
        self, parts: Sequence[tuple[Mapping[str, torch.Tensor], TaskSpec]], task: TaskSpec
    ) -> Mapping[str, torch.Tensor]:
        """Tensors of the merged state of `task`, whose labels are those of all parts."""
        merging = those(lambda method: method.combine is not Amortizer.combine)
        raise ConfigError(
            f"states of {self.method!r} can't be merged; adapt one of them on the other's data instead, or choose a "
            f"method that merges ({merging})"
        )

    def export_peft(self, tensors: Mapping[str, torch.Tensor], task: TaskSpec, directory: Path) -> None:
        """Write a PEFT adapter's files, for `export`."""
        exporting = those(lambda method: method.export_peft is not Amortizer.export_peft)
        raise ConfigError(
            f"a state of {self.method!r} is no weight, prompt or prefix of a language model, so it has no PEFT form; "
            f"choose a method whose states have one ({exporting}), or keep it as it is"
        )

    def linear_classifier(self, state: TaskState) -> LinearClassifier:
        """The state as a linear map of an encoder's features, merged; for `export`."""
        exporting = those(lambda method: method.linear_classifier is not Amortizer.linear_classifier)
        raise ConfigError(
            f"a state of {self.method!r} is no linear map of an encoder's features, so it has no sentence-transformers "
            f"or ONNX form; choose a method whose states have one ({exporting}), or keep it as it is"
        )

    # In files of their own: the loop that streams a dataset of any length through `update`, and the ways out.
    adapt = adapt
    export = export

    @property
    def max_labels(self) -> int:
        """Labels that a state may have, by the setting of that name where the method has one."""
        return int(getattr(self.config, "max_labels", MAX_LABELS))

    # Identity and files.

    @property
    def weights_digest(self) -> str | None:
        """Digest of learned weights, None for a method that has none."""
        return None

    @cached_property
    def fingerprint(self) -> str:
        """Digest of what decides how a state evolves: method and configuration without `answer_settings`."""
        return self.digest(first_names(self.config_class, self.settings_with(dataclasses.asdict(self.config_class()))))

    def digest(self, settings: Mapping[str, Any]) -> str:
        """Of the method with such settings."""
        return hashlib.sha256(json.dumps([self.method, settings], sort_keys=True).encode()).hexdigest()[:32]

    def settings_with(self, answering: Mapping[str, Any]) -> dict[str, Any]:
        """The configuration with the `answer_settings` of another one."""
        others = {key: answering[key] for key in self.answer_settings if key in answering}
        return {**dataclasses.asdict(self.config), **others}

    def _signed(self, header: StateHeader) -> StateHeader:
        """The header of a state that this amortizer has made: with its fingerprint and its `answer_settings`."""
        ours = {key: getattr(self.config, key) for key in self.answer_settings}
        return dataclasses.replace(header, amortizer=self.fingerprint, config={**header.config, **ours})

    def check(self, state: TaskState) -> None:
        """Raise StateError where `state` was made by another method, configuration or backbone, or is none."""
        check_belongs(self, state)

    def save_pretrained(self, directory: str | Path) -> Path:
        """Write `config.json`: method, settings and the backbone's name, never its weights."""
        directory = Path(directory)
        self.check_folder(directory)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            write_together(directory, self.contents())
        except OSError as error:
            raise StateError(f"can't write the amortizer to {directory}: {error.strerror or error}") from error
        return directory

    @staticmethod
    def check_folder(directory: Path) -> None:
        """Raise StateError where saving would overwrite another thing's `config.json`, e.g. a backbone's."""
        check_own(directory / CONFIG_FILE, ("method", "config", "base_model_name_or_path"), "an amortizer's config")

    def contents(self) -> dict[str, bytes]:
        """What `save_pretrained` writes: each file's bytes by its name."""
        written = {
            "method": self.method,
            "config": dataclasses.asdict(self.config),
            "base_model_name_or_path": self.backbone.name,
            "base_model_revision": self.backbone.revision,
            "backbone_fingerprint": self.backbone.plain.fingerprint,
            "format_version": FORMAT_VERSION,
            "library_version": __version__,
        }
        return {CONFIG_FILE: json.dumps(written, indent=2).encode()}

    def push_to_hub(
        self, repo_id: str, *, tags: Sequence[str] = (), directory: str | Path | None = None, **pushing: Any
    ) -> str:
        """Save the amortizer with its card and upload both, never the backbone; the commit's address.

        Args:
            directory: where it is saved; by default a folder that is gone afterwards, unless the upload fails.
            pushing: `commit_message`, `private`, `token`, `revision`, `create_pr`; see `iai_hf.hub.push`.

        Raises:
            HubError: refused or cut off; what was saved is kept, and the message says how to push it again.
            DataError: README.md was edited both in `directory` and on the Hub.
        """
        described = {"method": self.method, "config": dataclasses.asdict(self.config), "backbone": self.backbone.name}
        card = amortizer_card(described, repo_id, tags)
        chosen = {"only": hub.AMORTIZER_FILES, "contents": shipped.published(self.contents())}
        return hub.publish(self.save_pretrained, repo_id, directory, card=card, **chosen, **pushing)
