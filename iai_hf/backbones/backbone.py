"""Backbone: a frozen pretrained transformer that turns texts into one feature vector each."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from iai_hf.backbones.batching import length_buckets, split_windows
from iai_hf.errors import BackboneError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MAX_WINDOW = 1024  # attention costs the square of a window, so longer contexts are read in several


class Features(NamedTuple):
    """Pooled features of a batch of texts.

    Attributes:
        vectors: float32 `[texts, hidden]`, unit length.
        tokens: tokens read, special ones included, padding not.
        cut: texts of which only the first `max_tokens` tokens were read.
    """

    vectors: torch.Tensor
    tokens: int
    cut: int


class Backbone:
    """A frozen encoder. `CausalLM` adds what only a language model can do."""

    def __init__(
        self,
        name: str,
        revision: str | None,
        tokenizer: PreTrainedTokenizerBase,
        model: PreTrainedModel,
        pooling: str = "mean",
    ) -> None:
        self.name, self.revision, self.tokenizer, self.pooling = name, revision, tokenizer, pooling
        self.model = model.eval().requires_grad_(False)
        self.device: torch.device = model.device
        self.share = (0, 1)  # this process's number among those that read together, and how many they are

    def __deepcopy__(self, memo: dict[int, Any]) -> Backbone:
        return self  # it is frozen: scikit-learn copies an estimator's parameters, which would be the weights each time

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.model.dtype

    @property
    def hidden_size(self) -> int:
        """Size of a feature vector."""
        return int(self.model.config.hidden_size)

    def split_over_processes(self) -> None:
        """Read texts together with the other processes of `accelerate launch`, each its share of the batches.

        All processes must then ask for the same features in the same order, and all get all of them, equal to what a
        single process computes.
        """
        from accelerate import PartialState

        processes = PartialState()
        self.share = (processes.process_index, processes.num_processes)

    @cached_property
    def context(self) -> int:
        """Longest sequence of tokens, special ones included, that the model can attend to."""
        limits = [getattr(self.model.config, "max_position_embeddings", None), self.tokenizer.model_max_length]
        # Position tables of the RoBERTa family are offset by the padding index.
        offset = 2 if self.model.config.model_type in ("roberta", "xlm-roberta", "camembert") else 0
        known = [int(limit) for limit in limits if limit and limit < 10**9]
        return min(known) - offset if known else MAX_WINDOW

    @cached_property
    def special_tokens(self) -> tuple[list[int], list[int]]:
        """Ids that the tokenizer puts before and after a text, e.g. ([CLS], [SEP])."""
        bare = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        full = self.tokenizer("a")["input_ids"]
        first = next(i for i in range(len(full)) if full[i : i + len(bare)] == bare)
        return full[:first], full[first + len(bare) :]

    @property
    def lead(self) -> tuple[int, ...]:
        """Ids that a text is read behind, and that are no part of its feature."""
        return ()

    @cached_property
    def fingerprint(self) -> str:
        """Digest of architecture, vocabulary and a sample of every weight, alike for float32 and bfloat16 loading."""
        import torch

        config = self.model.config
        digest = hashlib.sha256(f"{config.model_type} {config.hidden_size} {len(self.tokenizer)}".encode())
        for name, weight in self.model.named_parameters():
            flat = weight.detach().reshape(-1)
            sample = flat[:: max(flat.numel() // 16, 1)].to("cpu", torch.bfloat16)
            digest.update(name.encode() + sample.contiguous().view(torch.uint8).numpy().tobytes())
        digest.update(str(self.lead).encode() if self.lead else b"")
        probe = self.tokenizer("The quick brown fox, 12.5% of Zürich!")["input_ids"]
        digest.update(str(probe).encode())
        return digest.hexdigest()[:32]

    def features(self, texts: Sequence[str], max_tokens: int | None = None) -> Features:
        """Features of texts of any length: longer ones than the context are read in windows and pooled over all.

        Args:
            max_tokens: read only that many tokens of a text; how many texts that cut is returned.

        Raises:
            BackboneError: a feature is not finite; its text is named.
        """
        import torch

        # No mask and no segments: for a short query their making is a measurable part of all the work.
        plain = {"add_special_tokens": False, "return_attention_mask": False, "return_token_type_ids": False}
        ids = self.tokenizer(list(texts), verbose=False, **plain)["input_ids"]
        cut = 0
        if max_tokens is not None:
            cut = sum(len(text) > max_tokens for text in ids)
            ids = [text[:max_tokens] for text in ids]
        start, end = self.special_tokens
        start = [*start, *self.lead]
        room = min(self.context, MAX_WINDOW) - len(start) - len(end)
        owners: list[int] = []
        windows: list[list[int]] = []
        for owner, text in enumerate(ids):
            for window in split_windows(text, room):
                owners.append(owner)
                windows.append([*start, *window, *end] or [self._pad_id])
        sums = torch.zeros(len(ids), self.hidden_size)
        with torch.inference_mode():
            for group in length_buckets([len(window) for window in windows])[self.share[0] :: self.share[1]]:
                batch, mask = self._pad([windows[i] for i in group])
                pooled = self._pool(batch, mask).cpu()
                sums.index_add_(0, torch.tensor([owners[i] for i in group]), pooled)
        if self.share[1] > 1:
            from accelerate.utils import reduce

            sums = reduce(sums.to(self.device)).cpu()
        norms = sums.norm(dim=-1, keepdim=True)
        if not math.isfinite(float(norms.sum())):
            bad = next(text for text, norm in zip(texts, norms, strict=True) if not norm.isfinite())
            raise BackboneError(f"{self.name} gave features that are not finite, e.g. for {bad[:40]!r}; try float32")
        return Features(sums / norms, sum(map(len, windows)), cut)

    def _pool(self, batch: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Sums of hidden states, float32 `[windows, hidden]`; added over windows, the direction of a mean."""
        import torch

        hidden = self.model(input_ids=batch, attention_mask=mask).last_hidden_state
        if self.pooling == "first":
            return hidden[:, 0].float() * (hidden.shape[1] if mask is None else mask.sum(1, keepdim=True))
        return (hidden if mask is None else hidden * mask[..., None]).sum(1, dtype=torch.float32)

    def _pad(self, sequences: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Right-padded ids, int64 `[sequences, longest]`, and their mask, None where nothing had to be padded."""
        import torch

        longest = max(map(len, sequences))
        ids = torch.tensor([[*ids, *[self._pad_id] * (longest - len(ids))] for ids in sequences]).to(self.device)
        if all(len(ids) == longest for ids in sequences):
            return ids, None
        mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in sequences])
        return ids, mask.to(self.device)

    @property
    def _pad_id(self) -> int:
        pad: Any = self.tokenizer.pad_token_id
        return int(pad if pad is not None else self.tokenizer.eos_token_id or 0)
