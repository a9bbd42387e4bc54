"""Packing: many queries with their answers in one sequence, each seeing only what belongs to it; nothing is padded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

PACK_TOKENS = 256  # of a forward pass: attention costs the square of a pack


@dataclass(frozen=True, eq=False)
class HiddenCache:
    """A row's tokens inside the model, from a layer on; an answer's last token is predicted, never read.

    Attributes:
        hidden: at the entrance of that layer, `[tokens, hidden]`.
        layers: keys and values of that layer and all after it, `[heads, tokens, head size]`.
    """

    hidden: torch.Tensor
    layers: tuple[tuple[torch.Tensor, torch.Tensor], ...]


@dataclass(frozen=True)
class Row:
    """A query with its candidate answers, as token ids.

    Attributes:
        adapter_index: which of a condition's prefixes and low-rank weights it is read with, where there are several.
        hidden_cache: of a prefilled row.
    """

    query: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...] = ()
    adapter_index: int = 0
    hidden_cache: HiddenCache | None = None

    def __len__(self) -> int:
        return len(self.query) + sum(map(len, self.answers))


@dataclass(frozen=True, eq=False)
class Packed:
    """Rows in one sequence. Answer token `targets[i]` is predicted at position `scored[i]`, for answer `owner[i]`."""

    ids: torch.Tensor
    positions: torch.Tensor
    visible: torch.Tensor
    scored: torch.Tensor
    targets: torch.Tensor
    owner: torch.Tensor
    adapter_indices: torch.Tensor  # of each token's row
    answers: tuple[int, ...]  # answers a row

    @classmethod
    def of(cls, rows: Sequence[Row], device: torch.device) -> Packed:
        """Pack rows, in their order."""
        import torch

        ids: list[int] = []
        positions: list[int] = []
        query_of: list[int] = []  # row of each token
        branch_of: list[int] = []  # answer of each token, -1 in a query
        scored: list[int] = []
        targets: list[int] = []
        owner: list[int] = []
        answer = 0
        for number, row in enumerate(rows):
            ids += row.query
            positions += range(len(row.query))
            query_of += [number] * len(row.query)
            branch_of += [-1] * len(row.query)
            last = len(ids) - 1
            for tokens in row.answers:
                # The last token of an answer is predicted, never read.
                scored += [last, *range(len(ids), len(ids) + len(tokens) - 1)]
                targets += tokens
                owner += [answer] * len(tokens)
                ids += tokens[:-1]
                positions += range(len(row.query), len(row.query) + len(tokens) - 1)
                query_of += [number] * (len(tokens) - 1)
                branch_of += [answer] * (len(tokens) - 1)
                answer += 1
        query, branch = torch.tensor(query_of), torch.tensor(branch_of)
        same = query[:, None] == query[None]
        visible = (same & ((branch[None] == -1) | (branch[:, None] == branch[None]))).tril()
        return cls(
            ids=torch.tensor(ids, device=device),
            positions=torch.tensor(positions, device=device),
            visible=visible.to(device),
            scored=torch.tensor(scored, device=device),
            targets=torch.tensor(targets, device=device),
            owner=torch.tensor(owner, device=device),
            adapter_indices=torch.tensor([row.adapter_index for row in rows])[query].to(device),
            answers=tuple(len(row.answers) for row in rows),
        )

    def scores(self, logits: torch.Tensor) -> list[torch.Tensor]:
        """Summed log-probability of each answer, float32 `[answers]` a row."""

        picked = logits.float().log_softmax(-1).gather(1, self.targets[:, None])[:, 0]
        return list(self._sums(picked).split(list(self.answers)))

    def losses(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Negative log-likelihood and tokens of each answer, float32 `[answers]`."""
        import torch

        losses = torch.nn.functional.cross_entropy(logits.float(), self.targets, reduction="none")
        return self._sums(losses), self._sums(torch.ones_like(losses))

    def _sums(self, values: torch.Tensor) -> torch.Tensor:
        """Sums over the tokens of each answer."""
        import torch

        return torch.zeros(sum(self.answers), device=values.device, dtype=torch.float32).index_add(
            0, self.owner, values
        )


def packs(lengths: Sequence[int], tokens: int = PACK_TOKENS, most: int | None = None) -> list[tuple[int, int]]:
    """Bounds `(first, last)` of consecutive rows that go together: `most` at most, with `tokens` at most or alone."""
    packs: list[tuple[int, int]] = []
    first = total = 0
    for i, length in enumerate(lengths):
        if total and (total + length > tokens or i - first == most):
            packs.append((first, i))
            first, total = i, 0
        total += length
    return [*packs, (first, len(lengths))] if lengths else []
