"""Plain passes: each answer is read in one sequence with its prefix and its query, as any causal model can.

No cache, mask or positions are given. Shorter sequences are filled up on the right, which a model that reads from left
to right does not see.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from iai_hf.backbones.batching import length_buckets, pass_tokens
from iai_hf.backbones.low_rank import LowRank, applied

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from iai_hf.backbones.conditions import Condition
    from iai_hf.backbones.packing import Row

UNCHANGED = -1  # adapter index of tokens that are read without low-rank weights


class Line(NamedTuple):
    """A sequence to read.

    Attributes:
        before: ids int64 `[length]` or embeddings `[length, width]`, which are read without low-rank weights.
        tokens: ids behind it.
        scored: so many of the last tokens' logits are asked for.
        adapter_index: whose low-rank weights `tokens` are read with.
    """

    before: torch.Tensor
    tokens: Sequence[int]
    scored: int
    adapter_index: int = 0

    def __len__(self) -> int:
        return len(self.before) + len(self.tokens)


def lines_of(row: Row, before: torch.Tensor) -> list[Line]:
    """A line an answer, whose last token is predicted, never read."""
    return [Line(before, row.query + answer[:-1], len(answer), row.adapter_index) for answer in row.answers]


def scores(model: PreTrainedModel, condition: Condition, rows: Sequence[Row]) -> list[torch.Tensor]:
    """As `CausalLM.score`."""
    import torch

    lines = [line for row in rows for line in lines_of(row, condition.prefix.source(row.adapter_index))]
    answers = [answer for row in rows for answer in row.answers]
    sums = torch.zeros(len(lines), device=model.device, dtype=torch.float32)
    for group in length_buckets([len(line) for line in lines], pass_tokens(model.device)):
        found = logits(model, [lines[i] for i in group], condition.weights)
        for i, one in zip(group, found, strict=True):
            sums[i] = -_loss(one, answers[i])
    return list(sums.split([len(row.answers) for row in rows]))


def losses(
    model: PreTrainedModel, before: torch.Tensor, rows: Sequence[Row], weights: Sequence[LowRank]
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `CausalLM.losses`: negative log-likelihood and tokens of each row's first answer, float32 `[rows]`."""
    import torch

    lines = [lines_of(row, before)[0] for row in rows]
    found = logits(model, lines, weights)
    sums = [_loss(one, row.answers[0]) for one, row in zip(found, rows, strict=True)]
    return torch.stack(sums), torch.tensor([line.scored for line in lines], device=model.device, dtype=torch.float32)


def _loss(logits: torch.Tensor, answer: Sequence[int]) -> torch.Tensor:
    """Summed negative log-likelihood of an answer whose tokens have these logits `[tokens, vocabulary]`."""
    import torch
    from torch.nn.functional import cross_entropy

    return cross_entropy(logits.float(), torch.tensor(answer, device=logits.device), reduction="sum")


def logits(model: PreTrainedModel, lines: Sequence[Line], weights: Sequence[LowRank]) -> list[torch.Tensor]:
    """Logits at the last `scored` tokens of each line, `[scored, vocabulary]`, from one forward pass."""
    import torch

    inputs, adapter_indices = padded(model, lines)
    at = [torch.arange(len(line) - line.scored, len(line), device=model.device) for line in lines]
    asked = torch.cat(at).unique()
    options: dict[str, Any] = {}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        options["logits_to_keep"] = asked
        at = [torch.searchsorted(asked, places) for places in at]
    with applied(model, weights, adapter_indices):
        found = model(**inputs, use_cache=False, **options).logits
    return [found[i, places] for i, places in enumerate(at)]


def padded(model: PreTrainedModel, lines: Sequence[Line]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """A model's `input_ids`, or `inputs_embeds` where one has embeddings; adapter indices `[lines, longest]`."""
    import torch
    from torch.nn.functional import pad

    soft = any(line.before.is_floating_point() for line in lines)
    longest = max(map(len, lines))
    whole, adapter_indices = [], []
    for line in lines:
        tokens = torch.tensor(list(line.tokens), dtype=torch.long, device=model.device)
        before = line.before.to(model.device)
        if soft:
            tokens = embeddings(model, tokens)
            before = embeddings(model, before)
        one = torch.cat([before, tokens])
        whole.append(pad(one, (0, 0) * (one.ndim - 1) + (0, longest - len(line))))
        owner = [UNCHANGED] * len(line.before) + [line.adapter_index] * (longest - len(line.before))
        adapter_indices.append(torch.tensor(owner, device=model.device))
    return {"inputs_embeds" if soft else "input_ids": torch.stack(whole)}, torch.stack(adapter_indices)


def embeddings(model: PreTrainedModel, given: torch.Tensor) -> torch.Tensor:
    """Embeddings `[length, width]` of ids; embeddings as they are, in the model's precision."""
    found: torch.Tensor = given.to(model.dtype) if given.is_floating_point() else model.get_input_embeddings()(given)
    return found


def source(model: PreTrainedModel, ids: Sequence[int], soft: torch.Tensor | None) -> torch.Tensor:
    """What comes before a row: token ids int64 `[length]`; embeddings where a soft prompt `[length, width]` follows."""
    import torch

    found = torch.tensor(list(ids), dtype=torch.long, device=model.device)
    return found if soft is None else torch.cat([embeddings(model, found), soft.to(model.device, model.dtype)])
