"""CausalLM: a frozen causal language model with a shared prefix. This file and `conditions.py` alone touch caches.

A prefix (demonstrations, or a soft prompt) is encoded once into keys and values. Queries are then packed, with all
their candidate answers, into one row: a block mask lets each query see the prefix and itself, each answer its own
query besides. So nothing is padded, nothing of the prefix is copied or read again, and only the positions that
count go through the language-model head.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from iai_hf.backbones.backbone import Backbone
from iai_hf.backbones.batching import length_buckets
from iai_hf.backbones.conditions import NO_PREFIX, Condition, Entering, Prefix, Sampling
from iai_hf.backbones.low_rank import applied
from iai_hf.backbones.packing import Packed, Reading, Row, packs
from iai_hf.errors import BackboneError, DataError

if TYPE_CHECKING:
    import torch

LEAD = "What is this about?\n"


class Losses(NamedTuple):
    """Of the first answer of each row, float32 `[rows]`: summed negative log-likelihood, and tokens."""

    sums: torch.Tensor
    tokens: torch.Tensor


class CausalLM(Backbone):
    """A frozen causal language model; features come from its middle layer."""

    @cached_property
    def lead(self) -> tuple[int, ...]:
        """A question, behind which a text is read with an eye to its topic and tone."""
        return self.tokens(LEAD)

    def _pool(self, batch: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        # The middle layers are the most linearly readable (measured: clinc150 0.64 with the last layer, 0.78 so), and
        # more so behind a question (0.83; mpqa 0.77 to 0.85): the first position is an attention sink whose huge
        # activation says nothing, so it should not be a text's first word.
        before = len(self.special_tokens[0]) + len(self.lead)
        layers = self.model.base_model(input_ids=batch, attention_mask=mask, output_hidden_states=True).hidden_states
        hidden = layers[len(layers) // 2].float()
        if mask is not None:
            hidden = hidden * mask[..., None]
        sums = hidden[:, before:].sum(1)
        empty = (sums == 0).all(1, keepdim=True)  # no text at all: what the question's end makes of that
        return sums + empty * hidden[:, before - 1]

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
            return NO_PREFIX
        if len(inputs) > self.context:
            raise DataError(f"the prefix has {len(inputs)} tokens; the context of {self.name} is {self.context}")
        with torch.inference_mode():
            output = self.model.base_model(inputs_embeds=inputs[None], past_key_values=DynamicCache(), use_cache=True)
        cache = output.past_key_values
        if not isinstance(cache, DynamicCache):
            raise BackboneError(f"{self.name} keeps no keys and values to share; choose a Transformer decoder")
        layers: list[Any] = cache.layers
        return Prefix(tuple((layer.keys, layer.values) for layer in layers), (len(inputs),))

    def score(self, condition: Condition, rows: Sequence[Row]) -> list[torch.Tensor]:
        """Log-probability of each answer of each row, summed over its tokens: float32 `[answers]` a row.

        Raises:
            DataError: a query that does not fit the context behind the prefix.
        """
        import torch

        rows = self._started(condition, rows)
        for row in rows:
            self.check_room(condition.prefix.part(row.member)[1], len(row.query) + max(map(len, row.answers)))
        scores: list[torch.Tensor] = []
        with torch.inference_mode():
            for first, last in packs([len(row) for row in rows]):
                packed = Packed.of(rows[first:last], self.device)
                with applied(self.model, condition.weights, packed.members[None]):
                    scores += packed.scores(self._forward(packed, condition.prefix))
        return scores

    def losses(self, rows: Sequence[Row], entering: Entering) -> Losses:
        """Losses of the first answers, in one forward pass, differentiable in what enters.

        Of rows that have a `reading` only the positions that are scored go through the model, from `entering.layer` on;
        the keys and values of all others are taken from it as given.

        Raises:
            DataError: a row that does not fit the context.
        """
        from torch.nn.attention import SDPBackend, sdpa_kernel

        prompt, prefix = entering.prompt, entering.prefix
        before: torch.Tensor | Prefix = prefix if prompt is None else self._started_prompt(prompt)
        rows = rows if prompt is not None else self._started(Condition(prefix), rows)
        for row in rows:
            self.check_room(before.length if isinstance(before, Prefix) else len(before), len(row))
        packed = Packed.of(rows, self.device)
        readings = [row.reading for row in rows if row.reading is not None]
        with applied(self.model, entering.low_rank):
            if readings:
                return Losses(*packed.losses(self._forward_scored(packed, readings, entering)))
            # The fused attention kernel's backward pass is slow on short rows: a sixth of all the time.
            with sdpa_kernel(SDPBackend.MATH):
                return Losses(*packed.losses(self._forward(packed, before)))

    def read(self, rows: Sequence[Row], entering: Entering) -> list[Row]:
        """The rows with their `reading` from `entering.layer` on, under what enters; one forward pass, no gradient.

        Raises:
            DataError: a row that does not fit the context.
        """
        import torch

        prefix, layer = entering.prefix, entering.layer
        rows = self._started(Condition(prefix), rows)
        for row in rows:
            self.check_room(prefix.length, len(row))
        found: list[Row] = []
        for first, last in packs([len(row) for row in rows]):
            packed = Packed.of(rows[first:last], self.device)
            positions, visible = self._behind(prefix, packed)
            caught: list[torch.Tensor] = []
            cache: Any = prefix.cache()
            hook = self._layers[layer].register_forward_pre_hook(
                lambda _, given, caught=caught: caught.append(given[0])
            )
            try:
                with torch.no_grad(), applied(self.model, entering.low_rank):
                    self.model.base_model(
                        inputs_embeds=self.model.get_input_embeddings()(packed.ids)[None],
                        position_ids=positions[None],
                        attention_mask=self._mask(visible),
                        past_key_values=cache,
                        use_cache=True,
                    )
            finally:
                hook.remove()
            sizes = [len(row) - len(row.answers) for row in rows[first:last]]
            hidden = caught[0][0].split(sizes)
            kept = [
                [part[0, :, prefix.length :].split(sizes, dim=1) for part in (known.keys, known.values)]
                for known in cache.layers[layer:]
            ]
            for i, row in enumerate(rows[first:last]):
                layers = tuple((keys[i], values[i]) for keys, values in kept)
                found.append(dataclasses.replace(row, reading=Reading(hidden[i], layers)))
        return found

    def next_tokens(self, texts: Sequence[Sequence[int]], entering: Entering | None = None) -> torch.Tensor:
        """Log-probabilities of the token behind each one of the texts, float32 `[tokens, vocabulary]`."""
        import torch

        entering = entering or Entering()
        batch, mask = self._pad(texts)
        inputs = self.model.get_input_embeddings()(batch)
        mask = torch.ones_like(batch) if mask is None else mask
        length, read = 0, entering.prefix.length
        if entering.prompt is not None:
            prompt = self._started_prompt(entering.prompt)
            length = len(prompt)
            inputs = torch.cat([prompt.expand(len(batch), -1, -1), inputs], dim=1)
        whole = torch.cat([torch.ones(len(batch), read + length, dtype=mask.dtype, device=mask.device), mask], dim=1)
        cache = entering.prefix.cache_of([0] * len(batch))
        with applied(self.model, entering.low_rank):
            logits = self.model(
                inputs_embeds=inputs, attention_mask=whole, past_key_values=cache, use_cache=cache is not None
            ).logits
        return logits[:, length:][mask.bool()].float().log_softmax(-1)

    def generate(
        self,
        condition: Condition,
        rows: Sequence[Row],
        max_new_tokens: int,
        stop: str,
        sampling: Sampling | None = None,
    ) -> list[str]:
        """An answer to each query, greedy or sampled, cut at `stop`; queries of like length run together."""
        import torch

        rows, prefix = self._started(condition, rows), condition.prefix
        for row in rows:
            self.check_room(prefix.part(row.member)[1], len(row.query) + max_new_tokens)
        drawn: dict[str, Any] = {"do_sample": False}
        if sampling is not None:
            drawn = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        answers = [""] * len(rows)
        with torch.inference_mode(), torch.random.fork_rng(enabled=sampling is not None):
            if sampling is not None:
                torch.manual_seed(sampling.seed)
            for group in length_buckets([len(row.query) + max_new_tokens for row in rows]):
                longest = max(len(rows[i].query) for i in group)
                numbers = [rows[i].member for i in group]
                read = [prefix.part(number)[1] for number in numbers]
                # Positions of the prefix are in the cache; the ids there only fill the place.
                queries = [rows[i].query for i in group]
                ids = [[self._pad_id] * (max(read) + longest - len(query)) + list(query) for query in queries]
                mask = [
                    [0] * (max(read) - known) + [1] * known + [0] * (longest - len(query)) + [1] * len(query)
                    for query, known in zip(queries, read, strict=True)
                ]
                members = torch.tensor(numbers, device=self.device)[:, None]
                with applied(self.model, condition.weights, members):
                    output = self.model.generate(
                        input_ids=torch.tensor(ids, device=self.device),
                        attention_mask=torch.tensor(mask, device=self.device),
                        past_key_values=prefix.cache_of(numbers),
                        max_new_tokens=max_new_tokens,
                        pad_token_id=self._pad_id,
                        eos_token_id=self._ends(stop),
                        **drawn,
                    )
                texts = self.tokenizer.batch_decode(output[:, max(read) + longest :], skip_special_tokens=True)
                for i, text in zip(group, texts, strict=True):
                    answers[i] = text.split(stop)[0].strip()
        return answers

    def _started_prompt(self, prompt: torch.Tensor) -> torch.Tensor:
        """A soft prompt behind start-of-text, `[length, hidden]` in the model's precision."""
        import torch

        start = torch.tensor(self.special_tokens[0], dtype=torch.long, device=self.device)
        return torch.cat([self.model.get_input_embeddings()(start), prompt.to(self.dtype)])

    def _started(self, condition: Condition, rows: Sequence[Row]) -> Sequence[Row]:
        """The rows behind start-of-text, unless a prefix has it already."""
        start = tuple(self.special_tokens[0])
        if condition.prefix.length or not start:
            return rows
        return [dataclasses.replace(row, query=start + row.query) for row in rows]

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

    def check_room(self, prefix: int, tokens: int) -> None:
        """Raise DataError where a query of `tokens` tokens does not fit behind a prefix of so many."""
        if prefix + tokens > self.context:
            raise DataError(
                f"a query and its answer have {tokens} tokens, the prefix {prefix}; the context of {self.name} "
                f"is {self.context}: shorten the query or lower the token budget of the prefix"
            )

    def _forward(self, packed: Packed, before: Prefix | torch.Tensor) -> torch.Tensor:
        """Logits `[scored positions, vocabulary]` of a pack behind a cached prefix or a prompt that is trained."""
        import torch

        inputs = self.model.get_input_embeddings()(packed.ids)
        shift, cache = 0, None
        if isinstance(before, torch.Tensor):
            length = shift = len(before)
            inputs = torch.cat([before, inputs])
            positions = torch.cat([torch.arange(length, device=self.device), packed.positions + length])
            visible = torch.zeros(len(inputs), len(inputs), dtype=torch.bool, device=self.device)
            visible[:, :length] = True
            visible[:length, :length] = visible[:length, :length].tril()
            visible[length:, length:] = packed.visible
        else:
            cache = before.cache()
            positions, visible = self._behind(before, packed)
        return self.model(
            inputs_embeds=inputs[None],
            position_ids=positions[None],
            attention_mask=self._mask(visible),
            past_key_values=cache,
            use_cache=cache is not None,
            logits_to_keep=packed.scored + shift,
        ).logits[0]

    def _forward_scored(self, packed: Packed, readings: Sequence[Reading], entering: Entering) -> torch.Tensor:
        """As `_forward`, for the scored positions alone and from `entering.layer` on; `readings` tell all else."""
        import torch
        from transformers import DynamicCache

        prefix, layer = entering.prefix, entering.layer
        at = packed.scored.unique()
        hidden = torch.cat([reading.hidden for reading in readings])[at]
        positions, visible = self._behind(prefix, packed)
        again = visible[at].index_fill(1, prefix.length + at, False)  # what is known of the scored ones is not seen
        cached: list[tuple[torch.Tensor | None, torch.Tensor | None]] = [(None, None)] * layer
        for place in range(len(readings[0].layers)):
            before = prefix.layers[layer + place] if prefix.layers else ()
            parts = zip(*(reading.layers[place] for reading in readings), strict=True)
            keys, values = (torch.cat(part, dim=1)[None] for part in parts)
            if before:
                keys, values = torch.cat([before[0], keys], dim=2), torch.cat([before[1], values], dim=2)
            cached.append((keys, values))
        with self._from_layer(layer, hidden):
            return self.model(
                inputs_embeds=hidden[None],
                position_ids=positions[at][None],
                attention_mask=self._mask(torch.cat([again, packed.visible[at][:, at]], dim=1)),
                past_key_values=DynamicCache(cached),
                use_cache=True,
                logits_to_keep=torch.searchsorted(at, packed.scored),
            ).logits[0]

    def _behind(self, prefix: Prefix, packed: Packed) -> tuple[torch.Tensor, torch.Tensor]:
        """Positions of a pack's tokens behind a prefix, and what each sees, bool `[tokens, prefix + tokens]`."""
        import torch

        parts = torch.tensor(prefix.parts, device=self.device)
        several = len(prefix.parts) > 1
        own = packed.members if several else torch.zeros_like(packed.members)
        of_part = torch.arange(len(parts), device=self.device).repeat_interleave(parts)
        seen = own[:, None] == of_part[None]
        return packed.positions + parts[own], torch.cat([seen, packed.visible], dim=1)

    def _mask(self, visible: torch.Tensor) -> torch.Tensor:
        """What is visible, as attention takes it: `[1, 1, queries, keys]`, added to scores."""
        import torch

        mask = torch.zeros(visible.shape, dtype=self.dtype, device=self.device)
        return mask.masked_fill_(~visible, torch.finfo(self.dtype).min)[None, None]

    @cached_property
    def _list_of_layers(self) -> str:
        """What the model calls the list of its layers."""
        from torch import nn

        depth = int(self.model.config.num_hidden_layers)
        for name, part in self.model.base_model.named_children():
            if isinstance(part, nn.ModuleList) and len(part) == depth:
                return name
        raise BackboneError(
            f"{self.name} has no list of {depth} layers to enter half-way; choose 'lora', which needs none"
        )

    @property
    def _layers(self) -> torch.nn.ModuleList:
        layers: torch.nn.ModuleList = getattr(self.model.base_model, self._list_of_layers)
        return layers

    @contextmanager
    def _from_layer(self, first: int, hidden: torch.Tensor) -> Iterator[None]:
        """The model from layer `first` on, which gets `hidden` `[tokens, hidden]`, for the length of a `with` block."""
        base, name, layers = self.model.base_model, self._list_of_layers, self._layers
        hook = layers[first].register_forward_pre_hook(lambda _, given: (hidden[None], *given[1:]))
        setattr(base, name, layers[first:])
        try:
            yield
        finally:
            setattr(base, name, layers)
            hook.remove()
