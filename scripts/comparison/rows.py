"""The rows of the comparison: our methods, with weights and without, on frozen and learned features; cheap rivals."""

from __future__ import annotations

from typing import Any

from comparison.baselines import BASELINES
from comparison.tasks import MAX_TOKENS
from iai_hf import AutoAmortizer
from iai_hf.amortizer import Amortizer
from iai_hf.backbones import Backbone
from iai_hf.errors import ConfigError

ITERATIVE: dict[str, tuple[str, dict[str, Any]]] = {
    "iterative": ("iterative", {"adapter": None}),
    "iterative, learned features": ("iterative", {}),
    "iterative, data": ("iterative", {"adapter": None, "signal": "data"}),
    "iterative, gradient": ("iterative", {"adapter": None, "signal": "gradient"}),
    "iterative-explicit": ("iterative-explicit", {"adapter": None}),
    "iterative-implicit": ("iterative-implicit", {"adapter": None}),
}
ROWS = (*ITERATIVE, *(f"{name}, untrained" for name in ITERATIVE), *BASELINES)


def amortizer_of(row: str, backbone: Backbone) -> Amortizer:
    """The method of a row, with shipped weights or untrained.

    Raises:
        ConfigError: no weights are shipped for it.
    """
    plain = row.removesuffix(", untrained")
    method, settings = ITERATIVE[plain]
    config = {**settings, "max_tokens": MAX_TOKENS}
    if plain != row:
        config["weights"] = None
    amortizer = AutoAmortizer.from_pretrained(method, backbone=backbone, config=config)
    adapts = "adapter" not in settings
    if (plain == row and amortizer.config.weights is None) or (adapts and amortizer.config.adapter is None):
        raise ConfigError(f"no weights are shipped for {row!r} on {backbone.name}; train them, or leave the row out")
    return amortizer
