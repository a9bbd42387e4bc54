"""Iterative amortized inference for Hugging Face models: read a dataset in chunks, keep a small task state."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from iai_hf.amortizer import Amortizer as Amortizer
    from iai_hf.auto import AutoAmortizer as AutoAmortizer
    from iai_hf.backbones import load_backbone as load_backbone
    from iai_hf.metrics import score as score
    from iai_hf.state import TaskState as TaskState
    from iai_hf.task import Chunk as Chunk
    from iai_hf.task import Prediction as Prediction
    from iai_hf.task import TaskSpec as TaskSpec

# Public names are resolved at first use (PEP 562), so that importing the package does not import torch.
_HOME = {
    "Amortizer": "amortizer",
    "AutoAmortizer": "auto",
    "Chunk": "task",
    "Prediction": "task",
    "TaskSpec": "task",
    "TaskState": "state",
    "load_backbone": "backbones",
    "score": "metrics",
}
__all__ = sorted([*_HOME, "__version__"])


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"iai_hf.{_HOME[name]}"), name)
    raise AttributeError(f"module 'iai_hf' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
