"""Windows, length buckets and padding: which token sequences go through the backbone together."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

BATCH_TOKENS = 1024  # padded tokens a forward pass; larger ones leave the cache of a CPU core
GPU_TIMES = 8  # as many at once on a GPU, where a pass costs its start


def pass_tokens(device: torch.device, tokens: int = BATCH_TOKENS) -> int:
    """Tokens that a forward pass on the device should have, where a CPU's should have `tokens`."""
    return tokens if device.type == "cpu" else GPU_TIMES * tokens


def split_windows(ids: Sequence[int], size: int) -> list[Sequence[int]]:
    """Cut a token sequence into consecutive windows of at most `size`, as even as they come."""
    count = max(-(-len(ids) // size), 1)
    bounds = [round(i * len(ids) / count) for i in range(count + 1)]
    return [ids[start:end] for start, end in pairwise(bounds)]


def text_windows(
    texts: Sequence[Sequence[int]], before: Sequence[Sequence[int]], after: Sequence[int], longest: int
) -> tuple[list[int], list[list[int]]]:
    """Windows of token sequences, each behind what is before its text: whose each is, and its tokens."""
    owners: list[int] = []
    windows: list[list[int]] = []
    for owner, (ahead, text) in enumerate(zip(before, texts, strict=True)):
        for window in split_windows(text, longest - len(ahead) - len(after)):
            owners.append(owner)
            windows.append([*ahead, *window, *after])
    return owners, windows


def length_buckets(lengths: Sequence[int], tokens: int = BATCH_TOKENS, same: bool = False) -> list[list[int]]:
    """Group positions of like lengths so that a group, padded to its longest, has at most `tokens` tokens.

    A single sequence longer than that makes a group of its own. Every position occurs once.

    Args:
        same: only positions of one and the same length make a group, so that nothing is padded.
    """
    groups: list[list[int]] = []
    for position in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        fits = groups and (len(groups[-1]) + 1) * lengths[position] <= tokens
        if fits and not (same and lengths[groups[-1][0]] != lengths[position]):
            groups[-1].append(position)
        else:
            groups.append([position])
    return groups


def padded(
    sequences: Sequence[Sequence[int]], pad_id: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Right-padded ids, int64 `[sequences, longest]`, and their mask, None where nothing had to be padded."""
    import torch

    longest = max(map(len, sequences))
    ids = torch.tensor([[*ids, *[pad_id] * (longest - len(ids))] for ids in sequences]).to(device)
    if all(len(ids) == longest for ids in sequences):
        return ids, None
    mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in sequences])
    return ids, mask.to(device)
