"""TaskState: what an amortizer has made of a task so far. A value: named tensors and a typed header."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from iai_hf import __version__, hub, shipped
from iai_hf.errors import DataError, StateError
from iai_hf.evaluation_file import read_evaluation
from iai_hf.files import CONFIG_FILE, STATE_FILE, check_own, write_together
from iai_hf.header import FORMAT_VERSION, StateHeader, StreamPosition
from iai_hf.methods import methods
from iai_hf.task import LABELLED, Prediction, TaskSpec

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class TaskState:
    """The task information `theta` of the paper: the only thing that adapting changes.

    `tensors` maps names to tensors, which nobody writes to; `header` tells what they belong to.

    Raises:
        StateError: a number is not finite, so that every answer would be NaN.
    """

    tensors: Mapping[str, torch.Tensor]
    header: StateHeader

    def __post_init__(self) -> None:
        object.__setattr__(self, "tensors", MappingProxyType(dict(self.tensors)))
        broken = [name for name, tensor in self.tensors.items() if not _finite(tensor)]
        if broken:
            raise StateError(
                f"a state behind {self.header.examples:,} examples has numbers that are not finite, in "
                f"{', '.join(broken)}; if it was read from a file, restore that from a copy; if it was just made, what "
                "was saved before stands: look for inputs that are out of all proportion, lower the learning rate "
                "where there is one, or load the backbone in float32"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return TaskState, (dict(self.tensors), self.header)  # between processes; on disk a state is safetensors

    @property
    def task(self) -> TaskSpec:
        """Kind and labels of the task."""
        return self.header.task

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def digest(self) -> str:
        """Of all that its answers depend on: tensors, task, and who made it; not of where backbone or data lie."""
        header = self.header
        settings = {key: value for key, value in header.config.items() if key not in shipped.WHENCE}
        made = [
            header.amortizer,
            settings,
            header.backbone_fingerprint,
            dataclasses.asdict(header.task),
            header.examples,
        ]
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors.items()}
        return _digest(plain, json.dumps(made, sort_keys=True))

    def advance(
        self, tensors: Mapping[str, torch.Tensor], task: TaskSpec, examples: int, counts: Mapping[str, int]
    ) -> TaskState:
        """The state after one more chunk of `examples` examples; `counts` are added to those so far."""
        totals = {key: self.header.counts.get(key, 0) + counts.get(key, 0) for key in {*self.header.counts, *counts}}
        header = dataclasses.replace(
            self.header,
            task=task,
            examples=self.header.examples + examples,
            steps=self.header.steps + 1,
            counts=totals,
            stream=None,  # a chunk of no stream; `at` notes where it stood in one
        )
        return TaskState(tensors, header)

    def __repr__(self) -> str:
        known = f"{len(self.task.labels)} labels, " if self.task.kind in LABELLED else ""
        return (
            f"TaskState({self.header.method}, {self.task.kind}, {known}{self.header.examples:,} examples, "
            f"{self.nbytes:,} bytes)"
        )

    def at(self, position: StreamPosition, dataset: str | None = None) -> TaskState:
        """The same state, with its position in the stream noted, and the Hub id of the dataset where it has one."""
        known = self.header.datasets
        named = known if dataset is None or dataset in known else (*known, dataset)
        return TaskState(self.tensors, dataclasses.replace(self.header, stream=position, datasets=named))

    def behind_its_stream(self) -> TaskState:
        """The same state without a position in a stream; what data it has read stays noted."""
        return TaskState(self.tensors, dataclasses.replace(self.header, stream=None, merged=self.header.read))

    def having_read(self, content: str) -> TaskState:
        """The same state, with the digest of rows noted that it is going to read."""
        merged = tuple(dict.fromkeys((*self.header.merged, content)))
        return TaskState(self.tensors, dataclasses.replace(self.header, merged=merged))

    def to(self, device: torch.device | str) -> TaskState:
        """The same state with its tensors on another device."""
        return TaskState({name: tensor.to(device) for name, tensor in self.tensors.items()}, self.header)

    def save_pretrained(self, directory: str | Path) -> Path:
        """Write `state.safetensors` (all of the state) and `config.json` (its header, for reading by eye).

        Each file is written beside its place and moved there whole, so that a crash leaves the old one; of several
        threads that save into one folder, the last one's files stand there.

        Raises:
            StateError: the folder can't be made or written, is full, or holds another thing's `config.json`.
        """
        directory = Path(directory)
        check_folder(directory)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            write_together(directory, self.contents())
        except OSError as error:
            raise StateError(
                f"can't write the state to {directory}: {error.strerror or error}; "
                "what stood there before is untouched: free space or choose another folder"
            ) from error
        return directory

    def contents(self) -> dict[str, bytes]:
        """What `save_pretrained` writes: each file's bytes by its name."""
        from safetensors.torch import save

        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(self.tensors.items())}
        header = self.header.to_json()
        metadata = {
            "format": "iai_hf.state",
            "format_version": str(FORMAT_VERSION),
            "library_version": __version__,
            "header": header,
            "digest": _digest(tensors, header),
        }
        readable = {**json.loads(header), "format_version": FORMAT_VERSION, "library_version": __version__}
        described = json.dumps(readable, indent=2, ensure_ascii=False).encode()
        return {STATE_FILE: save(tensors, metadata), CONFIG_FILE: described}

    def to_bytes(self) -> bytes:
        """The whole state as one value, e.g. of a table's cell; `from_bytes` reads it."""
        return self.contents()[STATE_FILE]

    def published(self) -> TaskState:
        """The same state as the Hub gets it: of folders here, which mean nothing elsewhere, the name alone."""
        config, backbone = shipped.public(self.header.config), hub.public(self.header.backbone)
        header = dataclasses.replace(self.header, backbone=backbone, config=config)
        return TaskState(self.tensors, header)

    @classmethod
    def from_pretrained(cls, directory: str | Path, **downloading: Any) -> TaskState:
        """Read a state from a folder, a `state.safetensors` file, or a repository on the Hub.

        Args:
            directory: where it is; a name that is no path here is taken for a Hub id.
            downloading: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`.

        Raises:
            StateError: no state there, or truncated, tampered with, or written by a newer version.
            HubError: the repository can't be had.
        """
        path = Path(directory)
        if not path.exists() and hub.is_repository_id(str(directory)):
            path = hub.fetch(str(directory), **downloading)
        path = path / STATE_FILE if path.is_dir() else path
        if not path.is_file():
            method = "; that is a method, of which a state is to be made first" if str(directory) in methods() else ""
            raise StateError(
                f"no task state at {directory}: expected a folder with {STATE_FILE}, as `iai adapt` writes{method}"
            )
        try:
            content = path.read_bytes()  # at once: a run that is under way may replace the file at any moment
        except OSError as error:
            raise _unreadable(str(path), error) from error
        return cls.from_bytes(content, str(path))

    @classmethod
    def from_bytes(cls, content: bytes, place: str = "the value") -> TaskState:
        """Read what `to_bytes` made.

        Args:
            place: where it comes from, for messages.

        Raises:
            StateError: it is no state, truncated, tampered with, or written by a newer version.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            tensors = load(content)
            length = int.from_bytes(content[:8], "little")
            metadata = json.loads(content[8 : 8 + length]).get("__metadata__", {})
            version = metadata.get("format_version", "")
            if metadata.get("format") != "iai_hf.state" or not version.isdecimal():
                raise StateError(f"{place} is a safetensors file but no task state; expected one from `iai adapt`")
            if int(version) > FORMAT_VERSION:
                raise StateError(
                    f"{place} has format {version}, written by iai_hf {metadata.get('library_version')}; this is "
                    f"{__version__}, which reads up to {FORMAT_VERSION}: pip install --upgrade iai-hf"
                )
            if metadata["digest"] != _digest(tensors, metadata["header"]):
                raise StateError(f"{place} is damaged: its digest does not match its content; restore it from a copy")
            return cls(tensors, StateHeader.from_json(metadata["header"]))
        except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, DataError) as error:
            raise _unreadable(place, error) from error

    def predict(
        self,
        queries: Sequence[Any],
        *,
        config: Mapping[str, Any] | None = None,
        transductive: bool = False,
        coverage: float | None = None,
        abstain: float | None = None,
        **loading: Any,
    ) -> Prediction:
        """Answer queries with the amortizer that made the state, on its backbone, kept from call to call.

        Args:
            transductive, coverage, abstain: see `Amortizer.predict`.
            config: settings of answering that differ from the state's, e.g. `max_new_tokens`.
            loading: see `AutoAmortizer.for_state`. Other ones than in the call before load the backbone anew.
        """
        from iai_hf.restore import kept  # imported here, as it brings the backbones

        amortizer = kept(self, config, loading)
        return amortizer.predict(self, queries, transductive=transductive, coverage=coverage, abstain=abstain)

    def without(
        self, data: Any, *, config: Mapping[str, Any] | None = None, loading: Mapping[str, Any] = {}, **options: Any
    ) -> TaskState:
        """The state without examples that it has read, by the amortizer that made it; see `Amortizer.forget`.

        Args:
            config, loading: see `predict`.
            options: see `Amortizer.forget`.
        """
        from iai_hf.restore import kept  # imported here, as it brings the backbones

        found: TaskState = kept(self, config, loading).forget(self, data, **options)
        return found

    def push_to_hub(
        self,
        repo_id: str,
        *,
        tags: Sequence[str] = (),
        license: str | None = None,
        directory: str | Path | None = None,
        **pushing: Any,
    ) -> str:
        """Save the state with its card and upload both; the commit's address.

        Args:
            license: of the state, as the Hub names it, e.g. "cc-by-4.0".
            directory: where it is saved, and where an evaluation may stand; by default a folder that is gone
                afterwards, unless the upload fails.
            pushing: `commit_message`, `private`, `token`, `revision`, `create_pr`; see `iai_hf.hub.push`.

        Raises:
            HubError: refused or cut off; what was saved is kept, and the message says how to push it again.
            DataError: README.md was edited both in `directory` and on the Hub.
        """
        from iai_hf.card import state_card  # imported here, as it brings the backbones

        evaluation = read_evaluation(Path(directory), self.digest) if directory is not None else None
        card = state_card(self.header, self.nbytes, repo_id, tags, evaluation, license)
        chosen = {"only": hub.STATE_FILES, "ignore": () if evaluation else hub.EVALUATION_FILES}
        contents = self.published().contents()
        return hub.publish(self.save_pretrained, repo_id, directory, card=card, contents=contents, **chosen, **pushing)


def _finite(tensor: torch.Tensor) -> bool:
    """Whether all numbers are, by their sum where that tells: one pass, and nothing made of the tensor's size."""
    return math.isfinite(float(tensor.detach().sum())) or bool(tensor.isfinite().all())


def check_folder(directory: Path) -> None:
    """Raise StateError where saving a state would overwrite another thing's `config.json`, e.g. an amortizer's."""
    check_own(directory / CONFIG_FILE, ("method", "amortizer", "backbone", "task"), "the config.json of a task state")


def _unreadable(place: str, error: Exception) -> StateError:
    return StateError(f"{place} is no readable task state ({type(error).__name__}: {error}); restore it from a copy")


def _digest(tensors: Mapping[str, torch.Tensor], header: str) -> str:
    import torch

    digest = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
