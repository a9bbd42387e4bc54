"""CausalLM: a frozen causal language model with a shared prefix.

A prefix (demonstrations, or a soft prompt) is encoded once into keys and values. Queries are then packed, with all
their candidate answers, into one row: a block mask lets each query see the prefix and itself, each answer its own
query besides. So nothing is padded, nothing of the prefix is copied or read again, and only the positions that
count go through the language-model head. Which models allow that a self-test finds at first use; of all others each
answer is read in a plain pass of its own, prefix and all, which is slower and gives the same.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from iai_hf.backbones import packed_pass, partial_pass, plain_pass, self_test
from iai_hf.backbones.attention import plain_attention
from iai_hf.backbones.backbone import Backbone
from iai_hf.backbones.batching import length_buckets, pass_tokens
from iai_hf.backbones.conditions import NO_PREFIX, Condition, Prefix, Sampling
from iai_hf.backbones.low_rank import applied
from iai_hf.backbones.packing import PACK_TOKENS, Packed, Row, packs
from iai_hf.errors import BackboneError, DataError
from iai_hf.threads import cached_pass, one_at_a_time

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)
FEATURE_PROMPT = "What is this about?\n"


class Losses(NamedTuple):
    """Of the first answer of each row, float32 `[rows]`: summed negative log-likelihood, and tokens."""

    sums: torch.Tensor
    tokens: torch.Tensor


class CausalLM(Backbone):
    """A frozen causal language model; features come from its middle layer."""

    def __init__(self, *args: Any, **options: Any) -> None:
        from transformers import GenerationConfig

        super().__init__(*args, **options)
        # What a folder asks of generation (penalties, beams, caches, ...) would also fill in what a call leaves open.
        own = self.model.generation_config
        self.model.generation_config = GenerationConfig(
            bos_token_id=own.bos_token_id, eos_token_id=own.eos_token_id, pad_token_id=self.pad_id
        )

    @cached_property
    def feature_prompt(self) -> tuple[int, ...]:
        """A question, behind which a text is read with an eye to its topic and tone."""
        return tuple(self.texts.ids([FEATURE_PROMPT])[0])

    @property
    def reading(self) -> dict[str, Any]:
        """As `Backbone.reading`."""
        return {**super().reading, "prompt": FEATURE_PROMPT, "prompt_counts": False, "hidden_state": "middle"}

    @property
    def base(self) -> torch.nn.Module:
        """The model without its language-model head."""
        model: Any = self.model
        words = model.get_input_embeddings()
        # Llama 4 names a part that it does not have.
        parts = [model.base_model] if model.base_model is not model else list(model.children())
        return next(part for part in parts if any(inner is words for inner in part.modules()))

    @property
    def width(self) -> int:
        """Size of the hidden states that features are pooled from."""
        return int(self.model.config.get_text_config().hidden_size)

    @cached_pass
    def _middle_layer(self) -> torch.nn.Module | None:
        depth = int(self.model.config.get_text_config().num_hidden_layers)
        return partial_pass.middle_layer(self.base, depth, self._sample_ids)

    def _pool(self, batch: torch.Tensor, mask: torch.Tensor | None, before: int) -> torch.Tensor:
        # The middle layers are the most linearly readable (measured: clinc150 0.64 with the last layer, 0.78 so), and
        # more so behind a question (0.83; mpqa 0.77 to 0.85): the first position is an attention sink whose huge
        # activation says nothing, so it should not be a text's first word.
        if self._middle_layer is None:
            hidden = partial_pass.middle_of_whole(self.base, batch, mask)
        else:
            hidden = partial_pass.entrance(self.base, self._middle_layer, batch, mask)
        if hidden.shape != (*batch.shape, self.width):
            raise BackboneError(
                f"the middle layer of {self.name} has shape {tuple(hidden.shape)}, not one vector of {self.width} a "
                "token, so that it gives no features; choose another backbone, or 'in-context'"
            )
        hidden = hidden.float()
        if mask is not None:
            hidden = hidden * mask[..., None]
        sums = hidden[:, before:].sum(1)
        empty = (sums == 0).all(1, keepdim=True)  # no text at all: what the question's end makes of that
        return sums + empty * hidden[:, before - 1]

    def tokens(self, text: str) -> tuple[int, ...]:
        """Token ids of a piece of a prompt, without special tokens."""
        return self.texts.piece(text)

    @cached_pass
    def abilities(self) -> self_test.Abilities:
        """How the model can be read, by a self-test of a few short passes.

        Raises:
            BackboneError: not at all.
        """
        found = self_test.abilities(self.model, self.context)
        if not found.packed:
            log.warning(
                "%s can't be read packed: every answer is read with its whole prefix, exact but slower", self.name
            )
        return found

    def embeddings(self, ids: Sequence[int]) -> torch.Tensor:
        """Word embeddings as they enter the model, scaled where it scales them: `[ids, width]`."""
        import torch

        with torch.no_grad():
            return plain_pass.embeddings(self.model, plain_pass.source(self.model, ids, None))

    @one_at_a_time
    def encode_prefix(self, ids: Sequence[int] = (), embeddings: torch.Tensor | None = None) -> Prefix:
        """Encode start-of-text, then soft-prompt `embeddings` `[length, hidden]` or token `ids`, once.

        A model that can't be read packed reads it again with every row.

        Raises:
            DataError: longer than the context.
            BackboneError: the model takes no soft prompt.
        """
        source = self._source(ids, embeddings)
        if len(source) == 0:
            return NO_PREFIX
        if len(source) > self.context:
            raise DataError(f"the prefix has {len(source)} tokens; the context of {self.name} is {self.context}")
        if not self.abilities.packed:
            return Prefix((), (len(source),), (source,))
        return packed_pass.encode(self.model, source)

    @one_at_a_time
    def score(self, condition: Condition, rows: Sequence[Row]) -> list[torch.Tensor]:
        """Log-probability of each answer of each row, summed over its tokens: float32 `[answers]` a row.

        Raises:
            DataError: a query that does not fit the context behind the prefix.
        """
        import torch

        rows = self._started(condition, rows)
        for row in rows:
            self.check_room(condition.prefix.part(row.adapter_index)[1], len(row.query) + max(map(len, row.answers)))
        scores: list[torch.Tensor] = []
        with torch.inference_mode():
            if not self.abilities.packed:
                return plain_pass.scores(self.model, condition, rows)
            for first, last in packs([len(row) for row in rows], pass_tokens(self.device, PACK_TOKENS)):
                packed = Packed.of(rows[first:last], self.device)
                with applied(self.model, condition.weights, packed.adapter_indices[None]):
                    scores += packed.scores(packed_pass.logits(self.model, packed, condition.prefix))
        return scores

    @one_at_a_time
    def losses(self, rows: Sequence[Row], condition: Condition) -> Losses:
        """Losses of the first answers, in one forward pass, differentiable in the condition's weights or prompt.

        Of prefilled rows only the positions that are scored go through the model, from `condition.first_layer` on; the
        keys and values of all others are taken as given.

        Raises:
            DataError: a row that does not fit the context.
        """
        caches = [row.hidden_cache for row in rows if row.hidden_cache is not None]
        if not caches and condition.prompt is None:
            rows = self._started(condition, rows)
        before = self._before(condition)
        for row in rows:
            self.check_room(before.length if isinstance(before, Prefix) else len(before), len(row))
        if not self.abilities.packed:
            source = before.source(0) if isinstance(before, Prefix) else before
            return Losses(*plain_pass.losses(self.model, source, rows, condition.weights))
        packed = Packed.of(rows, self.device)
        with applied(self.model, condition.weights):
            if caches:
                return Losses(*packed.losses(partial_pass.logits(self.model, packed, caches, condition)))
            with plain_attention():
                return Losses(*packed.losses(packed_pass.logits(self.model, packed, before)))

    @one_at_a_time
    def prefill(self, rows: Sequence[Row], condition: Condition) -> Sequence[Row]:
        """The rows with their `hidden_cache` from `condition.first_layer` on; one forward pass, no gradient.

        Rows are left without, to be read whole, where the model can't be entered at that layer.

        Raises:
            DataError: a row that does not fit the context.
        """
        layer = condition.first_layer
        if layer not in self._prefills:
            self._prefills[layer] = self.abilities.packed and self_test.can_prefill(self.model, self.context, layer)
        if not self._prefills[layer]:
            return rows
        started = self._started(condition, rows)
        for row in started:
            self.check_room(condition.prefix.length, len(row))
        return partial_pass.prefill(self.model, started, condition)

    @cached_property
    def _prefills(self) -> dict[int, bool]:
        """Whether rows can be prefilled up to a layer, of those that were asked for."""
        return {}

    @one_at_a_time
    def next_tokens(self, texts: Sequence[Sequence[int]], condition: Condition) -> torch.Tensor:
        """Log-probabilities of the token behind each one of the texts, float32 `[tokens, vocabulary]`."""
        import torch

        before = self._before(condition)
        if self.abilities.packed:
            packed = Packed.of([Row(tuple(ids)) for ids in texts], self.device)
            everywhere = dataclasses.replace(packed, scored=torch.arange(len(packed.ids), device=self.device))
            with applied(self.model, condition.weights):
                return packed_pass.logits(self.model, everywhere, before).float().log_softmax(-1)
        source = before.source(0) if isinstance(before, Prefix) else before
        lines = [plain_pass.Line(source, ids, len(ids)) for ids in texts]
        return torch.cat(plain_pass.logits(self.model, lines, condition.weights)).float().log_softmax(-1)

    def _before(self, condition: Condition) -> Prefix | torch.Tensor:
        """What is read before every row: a cached prefix, or a soft prompt with start-of-text before it."""
        return condition.prefix if condition.prompt is None else self._source((), condition.prompt)

    @one_at_a_time
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

        from iai_hf.backbones.sampling import processors

        rows, prefix = self._started(condition, rows), condition.prefix
        for row in rows:
            self.check_room(prefix.part(row.adapter_index)[1], len(row.query) + max_new_tokens)
        steps = processors(sampling)
        answers, ends, cut = [""] * len(rows), self._ends(stop), 0
        with torch.inference_mode():
            for group in self._answered_together(prefix, rows, max_new_tokens):
                inputs, adapter_indices, read = self._prompts(prefix, [rows[i] for i in group])
                with applied(self.model, condition.weights, adapter_indices):
                    output = self.model.generate(
                        **inputs,
                        max_new_tokens=max_new_tokens,
                        eos_token_id=ends,
                        do_sample=False,
                        logits_processor=steps,
                    )
                for i, ids in zip(group, output[:, read:].tolist(), strict=True):
                    answers[i] = self.texts.until(ids, stop)
                    cut += not set(ends).intersection(ids)
        if cut:
            log.warning("%d of %d answers were cut at max_new_tokens, %d", cut, len(rows), max_new_tokens)
        return answers

    def _answered_together(self, prefix: Prefix, rows: Sequence[Row], new: int) -> list[list[int]]:
        """Rows that generate together: of like length; of the same where what fills them up is seen."""
        packed, tokens = self.abilities.packed, pass_tokens(self.device)
        if packed and not packed_pass.has_windows(self.model):
            return length_buckets([len(row.query) + new for row in rows], tokens)
        alike: dict[int, list[int]] = {}
        for i, row in enumerate(rows):
            alike.setdefault(len(row.query) + (0 if packed else prefix.part(row.adapter_index)[1]), []).append(i)
        return [
            [places[i] for i in group]
            for length, places in alike.items()
            for group in length_buckets([length + new] * len(places), tokens)
        ]

    def _prompts(self, prefix: Prefix, rows: Sequence[Row]) -> tuple[dict[str, Any], torch.Tensor, int]:
        """What transformers generates from, its tokens' adapter indices, and how many ids come before what is new."""
        import torch

        if not self.abilities.packed:
            lines = [plain_pass.Line(prefix.source(row.adapter_index), row.query, 0, row.adapter_index) for row in rows]
            inputs, adapter_indices = plain_pass.padded(self.model, lines)
            known = adapter_indices.shape[1] if "input_ids" in inputs else 0  # of embeddings nothing comes back
            return inputs | {"attention_mask": torch.ones_like(adapter_indices)}, adapter_indices, known
        longest = max(len(row.query) for row in rows)
        indices = [row.adapter_index for row in rows]
        read = [prefix.part(index)[1] for index in indices]
        # Positions of the prefix are in the cache; the ids there only fill the place.
        ids = [[self.pad_id] * (max(read) + longest - len(row.query)) + list(row.query) for row in rows]
        mask = [
            [0] * (max(read) - known) + [1] * known + [0] * (longest - len(row.query)) + [1] * len(row.query)
            for row, known in zip(rows, read, strict=True)
        ]
        prompts: dict[str, Any] = {
            "input_ids": torch.tensor(ids, device=self.device),
            "attention_mask": torch.tensor(mask, device=self.device),
            "past_key_values": prefix.cache_of(indices),
        }
        return prompts, torch.tensor(indices, device=self.device)[:, None], max(read) + longest

    def _source(self, ids: Sequence[int], prompt: torch.Tensor | None) -> torch.Tensor:
        """Start-of-text, then token ids, int64 `[length]`, or a soft prompt: embeddings `[length, width]`."""
        if prompt is not None and not self.abilities.soft:
            raise BackboneError(
                f"{self.name} reads more of a token than its embedding, so it takes no soft prompt; choose "
                "'in-context', 'lora' or 'lm-state'"
            )
        return plain_pass.source(self.model, [*self.special_tokens[0], *ids], prompt)

    def _started(self, condition: Condition, rows: Sequence[Row]) -> Sequence[Row]:
        """The rows behind start-of-text, unless a prefix has it already."""
        start = tuple(self.special_tokens[0])
        if condition.prefix.length or not start:
            return rows
        return [dataclasses.replace(row, query=start + row.query) for row in rows]

    def _ends(self, stop: str) -> list[int]:
        """Ids of all tokens that end an answer: those that end a text, and those with `stop` in their own."""
        return sorted(self.texts.holding(stop) | set(self.text_ends))

    @property
    def text_ends(self) -> list[int]:
        own: Any = self.model.generation_config.eos_token_id
        named = [*(own if isinstance(own, list) else [own]), self.tokenizer.eos_token_id]
        return sorted({int(i) for i in named if i is not None})

    def check_room(self, prefix: int, tokens: int) -> None:
        """Raise DataError where a query of `tokens` tokens does not fit behind a prefix of so many."""
        if prefix + tokens > self.context:
            raise DataError(
                f"a query and its answer have {tokens} tokens, the prefix {prefix}; the context of {self.name} "
                f"is {self.context}: shorten the query or lower the token budget of the prefix"
            )
