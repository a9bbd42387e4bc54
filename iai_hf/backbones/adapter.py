"""FeatureAdapter: low-rank weights of a backbone, meta-learned for its features and the same for all tasks.

`W + up @ down` (LoRA, Hu et al. 2021, arXiv 2106.09685) takes the place of each adapted weight once, at load, so that a
query costs what it cost. Only the adapted layers are copied: the plain backbone stays as it is, and shares the rest.
"""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from iai_hf.backbones.low_rank import LowRank
from iai_hf.errors import ConfigError
from iai_hf.files import ADAPTER_FILE, CONFIG_FILE, write_together

if TYPE_CHECKING:
    import torch

    from iai_hf.backbones.backbone import Backbone

ADAPTER = "feature-adapter"  # what `config.json` beside one says in the place of a method


@dataclass(frozen=True, eq=False)
class FeatureAdapter:
    """Low-rank weights, and what they belong to.

    Attributes:
        low_rank: by the linear layer's name in the model.
        backbone_fingerprint: of the plain backbone that they were trained on.
    """

    low_rank: LowRank
    backbone_fingerprint: str

    @cached_property
    def digest(self) -> str:
        """Of all weights, wherever they lie."""
        import torch

        digest = hashlib.sha256(self.backbone_fingerprint.encode())
        for name, up in sorted(self.low_rank.up.items()):
            for part in (up, self.low_rank.down[name]):
                digest.update(name.encode() + part.to("cpu", torch.float16).contiguous().numpy().tobytes())
        return digest.hexdigest()[:32]

    def save(self, folder: Path, backbone: str) -> None:
        """Write `adapter.safetensors`, float16, and a `config.json` that names the backbone."""
        import torch
        from safetensors.torch import save

        tensors = {f"{name}.up": up for name, up in self.low_rank.up.items()}
        tensors |= {f"{name}.down": down for name, down in self.low_rank.down.items()}
        halves = {name: tensor.detach().to("cpu", torch.float16).contiguous() for name, tensor in tensors.items()}
        metadata = {"format": "pt", "backbone_fingerprint": self.backbone_fingerprint}
        described = {
            "method": ADAPTER,
            "config": {},
            "base_model_name_or_path": backbone,
            "backbone_fingerprint": self.backbone_fingerprint,
        }
        folder.mkdir(parents=True, exist_ok=True)
        config = json.dumps(described, indent=2).encode()
        write_together(folder, {ADAPTER_FILE: save(halves, metadata), CONFIG_FILE: config})

    @classmethod
    def load(cls, folder: Path) -> FeatureAdapter:
        """Read what `save` wrote.

        Raises:
            ConfigError: none there, a damaged one, or one with numbers that are not finite.
        """
        from safetensors import SafetensorError, safe_open

        path = folder / ADAPTER_FILE
        try:
            with safe_open(path, "pt") as file:
                fingerprint = (file.metadata() or {})["backbone_fingerprint"]
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            up = {name.removesuffix(".up"): part for name, part in tensors.items() if name.endswith(".up")}
            down = {name: tensors[f"{name}.down"] for name in up}
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise ConfigError(
                f"{path} is no readable feature adapter ({type(error).__name__}: {error}); expected a folder written "
                "by scripts/train_amortizer.py, or the name of a shipped one"
            ) from error
        unfit = [name for name, part in tensors.items() if not part.isfinite().all()]
        if unfit or not up:
            raise ConfigError(f"{path}: {', '.join(unfit[:3]) or 'no weight'} is not finite; restore it from a copy")
        return cls(LowRank(down, up), fingerprint)

    def merged(self, backbone: Backbone) -> Backbone:
        """The backbone with the adapter in its weights; the given one is untouched.

        Raises:
            ConfigError: the adapter belongs to another backbone.
        """
        import torch

        if backbone.fingerprint != self.backbone_fingerprint:
            raise ConfigError(
                f"the feature adapter belongs to a backbone with fingerprint {self.backbone_fingerprint[:8]}, this is "
                f"{backbone.name} ({backbone.fingerprint[:8]}); use that one, or adapter=None"
            )
        with backbone.lock:  # no pass is under way, whose hooks would be copied
            model = copy.deepcopy(backbone.model, {id(part): part for part in _tensors(backbone.model)})
        with torch.no_grad():
            for name, up in self.low_rank.up.items():
                layer = model.get_submodule(name)
                weight: torch.Tensor = layer.weight
                change = up.to(weight.device, torch.float32) @ self.low_rank.down[name].to(weight.device, torch.float32)
                moved = (weight.float() + change).to(weight.dtype)
                layer.weight = torch.nn.Parameter(moved, requires_grad=False)
        return backbone.variant(self.digest, model=model)


def _tensors(model: torch.nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]
