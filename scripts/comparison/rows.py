"""The rows of the comparison: our methods, with weights and without, on frozen and learned features; cheap rivals.

Rows with unlabelled text read, before the first example, 2,000 texts from the end of the stream without their labels:
up to 1,024 examples these are other texts than the labelled ones.
"""

from __future__ import annotations

from typing import Any

from comparison.baselines import RIVALS
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
LEARNED = "iterative, learned features"
UNLABELLED = {  # row -> the row that it is without unlabelled text, and whether that is of the task itself
    "iterative, 2,000 unlabelled": ("iterative", True),
    f"{LEARNED}, 2,000 unlabelled": (LEARNED, True),
    f"{LEARNED}, 2,000 unlabelled of another task": (LEARNED, False),
    "iterative-explicit, 2,000 unlabelled": ("iterative-explicit", True),
}
ROWS = (*ITERATIVE, *UNLABELLED, *(f"{name}, untrained" for name in ITERATIVE), *RIVALS)


def amortizer_of(row: str, backbone: Backbone) -> Amortizer:
    """The method of a row, with shipped weights or untrained.

    Raises:
        ConfigError: no weights are shipped for it.
    """
    row = UNLABELLED[row][0] if row in UNLABELLED else row
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
