"""CapturedStep: a training step as a CUDA graph; small networks are bound by launches, not by arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch


class _Capture(NamedTuple):
    graph: torch.cuda.CUDAGraph
    episode: Any
    loss: torch.Tensor


class CapturedStep:
    """Calls `step`, and from its third call with episodes of the same shapes on replays what it launched.

    The first call of each shape runs as it is, which is the warming up that a capture asks for; the second is captured.

    Args:
        step: of an episode of tensors, lists and tuples; it must not wait for the GPU.
    """

    def __init__(self, step: Callable[[Any], torch.Tensor]) -> None:
        self.step = step
        self.captures: dict[tuple[torch.Size, ...], _Capture | None] = {}

    def __call__(self, episode: Any) -> torch.Tensor:
        """The loss, `[]` on the GPU; it is overwritten by the next call."""
        shapes = tuple(tensor.shape for tensor in _tensors(episode))
        if shapes not in self.captures:
            self.captures[shapes] = None
            return self.step(episode)
        found = self.captures[shapes] or self._captured(episode)
        self.captures[shapes] = found
        for kept, newest in zip(_tensors(found.episode), _tensors(episode), strict=True):
            kept.copy_(newest)
        found.graph.replay()
        return found.loss

    def _captured(self, episode: Any) -> _Capture:
        own = _cloned(episode)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            loss = self.step(own)
        return _Capture(graph, own, loss)


def _tensors(episode: Any) -> Iterator[torch.Tensor]:
    if isinstance(episode, torch.Tensor):
        yield episode
    elif isinstance(episode, (list, tuple)):
        for part in episode:
            yield from _tensors(part)


def _cloned(episode: Any) -> Any:
    if isinstance(episode, torch.Tensor):
        return episode.clone()
    if isinstance(episode, (list, tuple)):
        parts = [_cloned(part) for part in episode]
        return type(episode)(*parts) if hasattr(episode, "_fields") else type(episode)(parts)
    return episode
