"""CausalLM: a frozen causal language model with a shared prefix. The one file that touches caches and embeddings.

A prefix (demonstrations, or a soft prompt) is encoded once into keys and values. Queries are then packed, with all
their candidate answers, into one row: a block mask lets each query see the prefix and itself, each answer its own
query besides. So nothing is padded, nothing of the prefix is copied or read again, and only the positions that
count go through the language-model head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from iai_hf.backbones.backbone import Backbone
from iai_hf.backbones.batching import BATCH_TOKENS
from iai_hf.errors import BackboneError, DataError

if TYPE_CHECKING:
    import torch
    from transformers import DynamicCache


@dataclass(frozen=True, eq=False)
class Prefix:
    """Keys and values of what comes before every query, `[1, heads, length, head size]` a layer."""

    layers: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    length: int

    @property
    def nbytes(self) -> int:
        return sum(keys.nbytes + values.nbytes for keys, values in self.layers)

    def cache(self, copies: int = 1) -> DynamicCache:
        """A cache that may be appended to; the prefix itself stays as it is."""
        from transformers import DynamicCache

        return DynamicCache([tuple(part.expand(copies, -1, -1, -1) for part in layer) for layer in self.layers])


@dataclass(frozen=True)
class Row:
    """A query with its candidate answers, as token ids."""

    query: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.query) + sum(map(len, self.answers))


class CausalLM(Backbone):
    """A frozen causal language model; features come from its middle layer."""

    def _pool(self, batch: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        # The middle layers are the most linearly readable, and the first position is an attention sink whose huge
        # activation says nothing of the text (measured: clinc150 0.64 with the last layer, 0.78 so).
        layers = self.model.base_model(input_ids=batch, attention_mask=mask, output_hidden_states=True).hidden_states
        hidden = layers[len(layers) // 2].float()
        if mask is not None:
            hidden = hidden * mask[..., None]
        sums = hidden[:, 1:].sum(1)
        only = (sums == 0).all(1, keepdim=True)  # a text of one token has nothing but its first position
        return sums + only * hidden[:, 0]

    def tokens(self, text: str) -> tuple[int, ...]:
        """Token ids of a piece of a prompt, without special tokens."""
        return tuple(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    @property
    def embedding_weight(self) -> torch.Tensor:
        """Word embeddings `[vocabulary, hidden]`."""
        return self.model.get_input_embeddings().weight

    def encode_prefix(self, ids: Sequence[int] = (), embeddings: torch.Tensor | None = None) -> Prefix:
        """Encode start-of-text, then soft-prompt `embeddings` `[length, hidden]` or token `ids`, once.

        Raises:
            DataError: longer than the context.
            BackboneError: the model keeps no keys and values.
        """
        import torch
        from transformers import DynamicCache

        start = self.special_tokens[0]
        embed = self.model.get_input_embeddings()
        ids_tensor = torch.tensor([*start, *ids], dtype=torch.long, device=self.device)
        inputs = embed(ids_tensor)
        if embeddings is not None:
            inputs = torch.cat([inputs, embeddings.to(inputs)])
        if len(inputs) == 0:
            return Prefix((), 0)
        if len(inputs) > self.context:
            raise DataError(f"the prefix has {len(inputs)} tokens; the context of {self.name} is {self.context}")
        with torch.inference_mode():
            output = self.model.base_model(inputs_embeds=inputs[None], past_key_values=DynamicCache(), use_cache=True)
        cache = output.past_key_values
        if not isinstance(cache, DynamicCache):
            raise BackboneError(f"{self.name} keeps no keys and values to share; choose a Transformer decoder")
        layers: list[Any] = cache.layers
        return Prefix(tuple((layer.keys, layer.values) for layer in layers), len(inputs))

    def score(self, prefix: Prefix, rows: Sequence[Row]) -> list[torch.Tensor]:
        """Log-probability of each answer of each row, summed over its tokens: float32 `[answers]` a row.

        Raises:
            DataError: a query that does not fit the context behind the prefix.
        """
        import torch

        for row in rows:
            self.check_room(prefix, len(row.query) + max(map(len, row.answers)))
        scores: list[torch.Tensor] = []
        with torch.inference_mode():
            for first, last in _packs([len(row) for row in rows]):
                packed = _Packed.of(rows[first:last], self.device)
                logits = self._forward(packed, prefix)
                scores += packed.scores(logits)
        return scores

    def loss(self, embeddings: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
        """Mean negative log-likelihood a row of the first answers behind a soft prompt `[length, hidden]`.

        Differentiable in `embeddings`; the model is frozen.
        """
        import torch

        start = torch.tensor(self.special_tokens[0], dtype=torch.long, device=self.device)
        embed = self.model.get_input_embeddings()
        prompt = torch.cat([embed(start), embeddings.to(self.dtype)])
        packed = _Packed.of(rows, self.device)
        logits = self._forward(packed, prompt)
        return -torch.stack([score[0] for score in packed.scores(logits)]).mean()

    def generate(self, prefix: Prefix, queries: Sequence[tuple[int, ...]], max_new_tokens: int, stop: str) -> list[str]:
        """Greedy answers, cut at `stop`; queries of like length run together."""
        import torch

        from iai_hf.backbones.batching import length_buckets

        for query in queries:
            self.check_room(prefix, len(query) + max_new_tokens)
        answers = [""] * len(queries)
        for group in length_buckets([len(query) + max_new_tokens for query in queries]):
            longest = max(len(queries[i]) for i in group)
            pads = [longest - len(queries[i]) for i in group]
            # Positions of the prefix are in the cache; the ids there only fill the place.
            ids = [
                [self._pad_id] * (prefix.length + pad) + list(queries[i]) for i, pad in zip(group, pads, strict=True)
            ]
            mask = [[1] * prefix.length + [0] * pad + [1] * (longest - pad) for pad in pads]
            with torch.inference_mode():
                output = self.model.generate(
                    input_ids=torch.tensor(ids, device=self.device),
                    attention_mask=torch.tensor(mask, device=self.device),
                    past_key_values=prefix.cache(len(group)) if prefix.length else None,
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    pad_token_id=self._pad_id,
                    eos_token_id=self._ends(stop),
                )
            texts = self.tokenizer.batch_decode(output[:, prefix.length + longest :], skip_special_tokens=True)
            for i, text in zip(group, texts, strict=True):
                answers[i] = text.split(stop)[0].strip()
        return answers

    def _ends(self, stop: str) -> list[int]:
        """Ids of all tokens that end an answer: the model's own, and those with `stop` in their text."""
        if stop not in self._stops:
            pieces = self.tokenizer.batch_decode([[i] for i in range(len(self.tokenizer))])
            own = self.model.generation_config.eos_token_id
            ends = {i for i, piece in enumerate(pieces) if stop in piece}
            self._stops[stop] = sorted(ends | set(own if isinstance(own, list) else [] if own is None else [own]))
        return self._stops[stop]

    @cached_property
    def _stops(self) -> dict[str, list[int]]:
        return {}

    def check_room(self, prefix: Prefix, tokens: int) -> None:
        """Raise DataError where a query of `tokens` tokens does not fit behind the prefix."""
        if prefix.length + tokens > self.context:
            raise DataError(
                f"a query and its answer have {tokens} tokens, the prefix {prefix.length}; the context of {self.name} "
                f"is {self.context}: shorten the query or lower the token budget of the prefix"
            )

    def _forward(self, packed: _Packed, before: Prefix | torch.Tensor) -> torch.Tensor:
        """Logits `[scored positions, vocabulary]` of a pack behind a cached prefix or a prompt that is trained."""
        import torch

        inputs = self.model.get_input_embeddings()(packed.ids)
        if isinstance(before, torch.Tensor):
            length, shift, cache = len(before), len(before), None
            inputs = torch.cat([before, inputs])
            positions = torch.cat([torch.arange(length, device=self.device), packed.positions + length])
            visible = torch.zeros(len(inputs), len(inputs), dtype=torch.bool, device=self.device)
            visible[:, :length] = True
            visible[:length, :length] = visible[:length, :length].tril()
            visible[length:, length:] = packed.visible
        else:
            length, shift, cache = before.length, 0, before.cache()
            positions = packed.positions + length
            seen = torch.ones(len(inputs), length, dtype=torch.bool, device=self.device)
            visible = torch.cat([seen, packed.visible], dim=1)
        mask = torch.zeros(visible.shape, dtype=self.dtype, device=self.device)
        mask.masked_fill_(~visible, torch.finfo(self.dtype).min)
        return self.model(
            inputs_embeds=inputs[None],
            position_ids=positions[None],
            attention_mask=mask[None, None],
            past_key_values=cache,
            use_cache=cache is not None,
            logits_to_keep=packed.scored + shift,
        ).logits[0]


@dataclass(frozen=True, eq=False)
class _Packed:
    """Rows in one sequence. Answer token `targets[i]` is predicted at position `scored[i]`, for answer `owner[i]`."""

    ids: torch.Tensor
    positions: torch.Tensor
    visible: torch.Tensor
    scored: torch.Tensor
    targets: torch.Tensor
    owner: torch.Tensor
    answers: tuple[int, ...]  # answers a row

    @classmethod
    def of(cls, rows: Sequence[Row], device: torch.device) -> _Packed:
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
            answers=tuple(len(row.answers) for row in rows),
        )

    def scores(self, logits: torch.Tensor) -> list[torch.Tensor]:
        """Summed log-probability of each answer, float32 `[answers]` a row."""
        import torch

        picked = logits.float().log_softmax(-1).gather(1, self.targets[:, None])[:, 0]
        sums = torch.zeros(sum(self.answers), device=logits.device).index_add(0, self.owner, picked)
        return list(sums.split(list(self.answers)))


def _packs(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Consecutive rows that fit into one forward pass, as `(first, last)` bounds."""
    packs: list[tuple[int, int]] = []
    first = total = 0
    for i, length in enumerate(lengths):
        if total and total + length > BATCH_TOKENS:
            packs.append((first, i))
            first, total = i, 0
        total += length
    return [*packs, (first, len(lengths))] if lengths else []
