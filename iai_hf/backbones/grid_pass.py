"""Passes over the rows of several tasks at once, each task behind a prefix and under low-rank weights of its own.

Rows stand in a grid `[tasks x rows, tokens]`, filled up on the left, so that all answers end together. That wastes a
few positions and fills a GPU, where a pass over a few short rows costs as much as one over hundreds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from iai_hf.backbones.packing import Row


@dataclass(frozen=True, eq=False)
class Grid:
    """Rows of several tasks, as many places a task as the longest list of rows has; the others are empty.

    Attributes:
        ids: int64 `[tasks x rows, tokens]`.
        known: bool `[tasks x rows, tokens]`, false where a row is filled up.
        scored: bool `[tasks x rows, tokens - 1]`, whether the next token is one to be predicted.
        tasks: their number.
    """

    ids: torch.Tensor
    known: torch.Tensor
    scored: torch.Tensor
    tasks: int

    @classmethod
    def of(cls, rows: Sequence[Sequence[Row]], pad_id: int, device: torch.device) -> Grid:
        """Lay out each task's rows, in their order; each is scored on its first answer, or on all of its tokens."""
        import torch

        places = max(map(len, rows))
        longest = max(len(row) for mine in rows for row in mine)
        ids, known, scored = [], [], []
        for mine in rows:
            for row in mine:
                tokens = [*row.query, *(row.answers[0] if row.answers else ())]
                predicted = len(row.answers[0]) if row.answers else len(tokens) - 1
                left = longest - len(tokens)
                ids.append([pad_id] * left + tokens)
                known.append([False] * left + [True] * len(tokens))
                scored.append([False] * (longest - 1 - predicted) + [True] * predicted)
            for _ in range(places - len(mine)):
                ids.append([pad_id] * longest)
                known.append([False] * longest)
                scored.append([False] * (longest - 1))
        parts = [torch.tensor(part).to(device) for part in (ids, known, scored)]
        return cls(ids=parts[0], known=parts[1], scored=parts[2], tasks=len(rows))


@dataclass(frozen=True, eq=False)
class Prefixes:
    """The prefixes of several tasks, filled up on the left to the longest.

    Attributes:
        layers: keys and values, `[tasks, heads, length, head size]` a layer; none where no task has a prefix.
        known: bool `[tasks, length]`.
    """

    layers: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    known: torch.Tensor

    @classmethod
    def encode(cls, model: PreTrainedModel, sources: Sequence[Sequence[int]], pad_id: int) -> Prefixes:
        """The token ids of each task as the model reads them without weights, in one pass."""
        import torch
        from transformers import DynamicCache

        longest = max(map(len, sources))
        filled = [[pad_id] * (longest - len(ids)) + list(ids) for ids in sources]
        known = torch.tensor([[i >= longest - len(ids) for i in range(longest)] for ids in sources], dtype=torch.bool)
        known = known.view(len(sources), longest).to(model.device)
        if not longest:
            return cls((), known)
        cache = DynamicCache()
        with torch.no_grad():
            model.base_model(
                input_ids=torch.tensor(filled, device=model.device),
                position_ids=(known.cumsum(1) - 1).clamp(min=0),
                attention_mask=_mask(model, known[:, :0], known),
                past_key_values=cache,
                use_cache=True,
            )
        layers: Any = cache.layers
        return cls(tuple((layer.keys, layer.values) for layer in layers), known)


@dataclass(frozen=True, eq=False)
class TaskWeights:
    """Low-rank weights of several tasks beside the same layers, by the layer's name in the model.

    Attributes:
        down: `[rank, in]` a layer where all tasks share it, else `[tasks, rank, in]`.
        up: `[tasks, out, rank]` a layer.
        probe: zeros like `up`, added where a token is scored: their gradient is that of `up` at these places alone.
    """

    down: Mapping[str, torch.Tensor]
    up: Mapping[str, torch.Tensor]
    probe: Mapping[str, torch.Tensor] | None = None


def losses(
    model: PreTrainedModel, grid: Grid, prefixes: Prefixes, weights: TaskWeights | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed negative log-likelihood, and tokens, of what is scored of each row, float32 `[tasks, rows]`.

    Differentiable in the weights. Empty places have no loss and no tokens.
    """
    import torch
    from torch.nn.functional import cross_entropy

    found = scored_logits(model, grid, prefixes, weights)
    owner, at = grid.scored.nonzero(as_tuple=True)
    each = cross_entropy(found.float(), grid.ids[owner, at + 1], reduction="none")
    empty = torch.zeros(len(grid.ids), device=each.device)
    sums, tokens = (empty.index_add(0, owner, part) for part in (each, torch.ones_like(each)))
    return sums.view(grid.tasks, -1), tokens.view(grid.tasks, -1)


def scored_logits(model: PreTrainedModel, grid: Grid, prefixes: Prefixes, weights: TaskWeights | None) -> torch.Tensor:
    """Logits `[scored positions, vocabulary]`, row by row."""
    from transformers import DynamicCache

    rows = len(grid.ids) // grid.tasks
    first = int(grid.scored.any(0).nonzero()[0])  # the earliest position that predicts anything
    before = prefixes.known.repeat_interleave(rows, dim=0)
    positions = before.sum(1, keepdim=True) + grid.known.cumsum(1) - 1
    cache: Any = None
    if prefixes.layers:
        cache = DynamicCache(
            [tuple(part.repeat_interleave(rows, dim=0) for part in layer) for layer in prefixes.layers]
        )
    handles = []
    try:
        for name, up in (weights.up if weights is not None else {}).items():
            assert weights is not None
            probe = None if weights.probe is None else weights.probe[name]
            hook = partial(_add, down=weights.down[name], up=up, probe=probe, scored=grid.scored)
            handles.append(model.get_submodule(name).register_forward_hook(hook))
        found: torch.Tensor = model(
            input_ids=grid.ids[:, :-1],
            position_ids=positions.clamp(min=0)[:, :-1],
            attention_mask=_mask(model, before, grid.known[:, :-1]),
            past_key_values=cache,
            use_cache=cache is not None,
            logits_to_keep=grid.ids.shape[1] - 1 - first,
        ).logits
    finally:
        for handle in handles:
            handle.remove()
    return found[grid.scored[:, first:]]


def _mask(model: PreTrainedModel, before: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """What is visible, added to scores, `[rows, 1, tokens, prefix + tokens]`: all known tokens so far.

    What fills a row up sees nothing, all of it alike: with the least number in the place of -inf it is no NaN, which
    would spread.
    """
    import torch

    tokens = known.shape[1]
    earlier = torch.ones(tokens, tokens, dtype=torch.bool, device=known.device).tril()
    visible = torch.cat([before[:, None].expand(-1, tokens, -1), known[:, None] & earlier], dim=2)
    empty = torch.zeros(visible.shape, dtype=model.dtype, device=known.device)
    return empty.masked_fill_(~visible, torch.finfo(model.dtype).min)[:, None]


def _add(
    module: torch.nn.Module,
    inputs: Any,
    output: torch.Tensor,
    *,
    down: torch.Tensor,
    up: torch.Tensor,
    probe: torch.Tensor | None,
    scored: torch.Tensor,
) -> torch.Tensor:
    given = inputs[0].reshape(len(up), -1, inputs[0].shape[-1])  # all tokens of a task in a row
    inner = given @ down.mT
    moved = inner @ up.mT
    if probe is not None:
        moved = moved + (inner * scored.reshape(len(up), -1, 1)) @ probe.mT
    return output + moved.view(output.shape)
