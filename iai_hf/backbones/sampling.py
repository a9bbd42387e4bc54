"""Sampling from a generator of its own: with Gumbel noise on its scores, the likeliest token is a draw.

transformers draws from torch's global generator, which all threads share.
"""

from __future__ import annotations

import torch
from transformers import LogitsProcessor, LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from iai_hf.backbones.conditions import Sampling


class GumbelNoise(LogitsProcessor):
    """Adds to scores `[rows, vocabulary]` what makes their argmax a draw from their softmax."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        waits = torch.empty(scores.shape, dtype=torch.float32).exponential_(generator=self._generator)
        return scores - waits.log().to(scores.device)


def processors(sampling: Sampling | None) -> LogitsProcessorList:
    """What greedy decoding passes its scores through, so that it samples; nothing where it should not."""
    if sampling is None:
        return LogitsProcessorList()
    steps = [TemperatureLogitsWarper(sampling.temperature), TopPLogitsWarper(sampling.top_p)]
    return LogitsProcessorList([*steps, GumbelNoise(sampling.seed)])
