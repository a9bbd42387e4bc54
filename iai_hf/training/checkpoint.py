"""Checkpoints of a training run: weights, Adam's moments and the position, in one safetensors file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from iai_hf.errors import StateError
from iai_hf.files import write_whole

CHECKPOINT_FILE = "checkpoint.safetensors"


@dataclass(frozen=True)
class Progress:
    """Where a run is: steps done, the best evaluation so far and its step, and all evaluations.

    The last evaluation has `at_limit` where the run's time ended between two regular ones; a run that goes on drops it.
    """

    step: int = 0
    best: float = float("inf")
    best_step: int = 0
    history: tuple[dict[str, Any], ...] = ()

    @property
    def seconds(self) -> float:
        """That it took until the last evaluation."""
        return float(self.history[-1]["seconds"]) if self.history else 0.0


def save_checkpoint(
    folder: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    best: dict[str, torch.Tensor],
    progress: Progress,
    run: str,
) -> None:
    """Write the run's state whole. `run` identifies configuration and backbone."""
    from safetensors.torch import save

    tensors = {f"model.{name}": tensor.detach().cpu() for name, tensor in module.state_dict().items()}
    tensors |= {f"best.{name}": tensor.detach().cpu() for name, tensor in best.items()}
    for number, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": value.detach().cpu() for name, value in values.items()}
    metadata = {"run": run, "progress": json.dumps(asdict(progress))}
    contiguous = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    write_whole(folder / CHECKPOINT_FILE, save(contiguous, metadata))


def read_progress(folder: Path) -> Progress:
    """Where a run is that has a checkpoint in the folder; without one at its beginning.

    Raises:
        StateError: a damaged checkpoint.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / CHECKPOINT_FILE
    if not path.is_file():
        return Progress()
    try:
        with safe_open(path, "pt") as file:
            return _progress(file.metadata() or {})
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise StateError(f"{path} is no readable checkpoint ({error}); start the run anew") from error


def _progress(metadata: dict[str, str]) -> Progress:
    values = json.loads(metadata["progress"])
    return Progress(**{**values, "history": tuple(values["history"])})


def load_checkpoint(
    folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer, run: str
) -> tuple[dict[str, torch.Tensor], Progress]:
    """Restore module and optimiser in place; the best weights and the progress are returned.

    Raises:
        StateError: no checkpoint, a damaged one, or one of another configuration or backbone.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / CHECKPOINT_FILE
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata.get("run") != run:
            raise StateError(
                f"{path} belongs to a run with another configuration or backbone; use the same to resume, or another "
                "output folder"
            )
        parts: dict[str, dict[str, torch.Tensor]] = {"model": {}, "best": {}, "optimizer": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = tensor
        module.load_state_dict(parts["model"])
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in parts["optimizer"].items():
            number, _, key = name.partition(".")
            state.setdefault(int(number), {})[key] = tensor
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        return parts["best"], _progress(metadata)
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError, TypeError) as error:
        raise StateError(f"{path} is no readable checkpoint ({error}); start the run anew") from error
