"""Learned: base of the methods with meta-learned numbers, which come from shipped weights or a run's folder."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from typing_extensions import TypeVar

from iai_hf import shipped
from iai_hf.amortizer import Amortizer
from iai_hf.backbones import Backbone
from iai_hf.config import Settings
from iai_hf.errors import ConfigError
from iai_hf.files import CONFIG_FILE, WEIGHTS_FILE
from iai_hf.shipped import AUTO, WHENCE

if TYPE_CHECKING:
    import torch

    from iai_hf.training.config import TrainingConfig
    from iai_hf.training.curriculum import Curriculum, Sources

log = logging.getLogger(__name__)


class LearnedConfig(Settings, Protocol):
    """What is needed of the configuration of a method with meta-learned numbers."""

    @property
    def weights(self) -> str | None:
        """Where they are; see `Learned`."""


Config = TypeVar("Config", bound=LearnedConfig, default=Any)


class Learned(Amortizer[Config]):
    """A subclass makes its `module` and the curriculum that trains it; its configuration has `weights`.

    `weights` is the name of shipped ones, a folder or a repository, see `shipped.locate`; None for the module at its
    initial value, a known solver; "auto" for the shipped ones that belong to the backbone, where there are any.
    """

    def __init__(self, backbone: Backbone, config: Config | None = None) -> None:
        super().__init__(backbone, config)
        self.module = self.make_module().requires_grad_(False)
        source = self.config.weights
        if source == AUTO:
            source = shipped.find(self.method, self.config, backbone)
            self.config = dataclasses.replace(self.config, weights=source)
        if source is None:
            log.info("%s: untrained, no learned weights", self.method)
        else:
            where = shipped.locate(source)
            self._load(where.folder)
            self.config = dataclasses.replace(self.config, weights=where.name)
            log.info("%s: learned weights of %s", self.method, where.name)

    @abstractmethod
    def make_module(self) -> torch.nn.Module:
        """What is learned, at its initial value."""

    @classmethod
    @abstractmethod
    def curriculum(cls, config: TrainingConfig, sources: Sources) -> tuple[Learned, Curriculum]:
        """The untrained amortizer of a run's configuration, and what it is to learn from.

        Raises:
            ConfigError, DataError: a setting or a task that is not known.
        """

    def digest(self, settings: Mapping[str, Any]) -> str:
        """Of the method with such settings, and of the learned weights; where these came from does not matter."""
        values = {key: value for key, value in settings.items() if key not in WHENCE}
        digest = hashlib.sha256(json.dumps([self.method, values], sort_keys=True).encode())
        for name, tensor in sorted(self.module.state_dict().items()):
            digest.update(name.encode() + tensor.numpy().tobytes())
        return digest.hexdigest()[:32]

    @property
    def weights_digest(self) -> str | None:
        """Digest of the learned weights, None where there are none."""
        if self.config.weights is None:
            return None
        digest = hashlib.sha256()
        for name, tensor in sorted(self.module.state_dict().items()):
            digest.update(name.encode() + tensor.numpy().tobytes())
        return digest.hexdigest()[:32]

    def contents(self) -> dict[str, bytes]:
        """`config.json`, and the learned weights, `model.safetensors`, whose digest it tells; never the backbone's."""
        from safetensors.torch import save

        weights = save(self.module.state_dict(), {"format": "pt"})
        return {WEIGHTS_FILE: weights, CONFIG_FILE: shipped.described(super().contents()[CONFIG_FILE], weights)}

    def _load(self, folder: Path) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import load

        path = folder / WEIGHTS_FILE
        made, content = shipped.read(folder)
        known = self.backbone.plain.has_fingerprint(
            made["backbone_fingerprint"], earlier=made.get("format_version", 1) == 1
        )
        if made["method"] != self.method or not known:
            raise ConfigError(
                f"the weights in {folder} belong to {made['method']!r} on {made['base_model_name_or_path']} "
                f"({made['backbone_fingerprint'][:8]}), this is {self.method!r} on {self.backbone.name} "
                f"({self.backbone.fingerprint[:8]}); use those, or train others (scripts/train_amortizer.py)"
            )
        try:
            weights = load(content)
            unfit = [name for name, tensor in weights.items() if not tensor.isfinite().all()]
            if unfit:
                raise ConfigError(f"{path}: {', '.join(unfit)} is not finite; restore it from a copy, or train anew")
            self.module.load_state_dict(weights)
        except (OSError, SafetensorError, RuntimeError) as error:
            raise ConfigError(
                f"{path} holds no weights for {self.method!r} ({str(error).splitlines()[0]}); expected a folder "
                "written by scripts/train_amortizer.py with the same method and settings"
            ) from error
