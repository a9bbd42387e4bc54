"""Backbone: a frozen pretrained transformer that turns texts into one feature vector each."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from iai_hf.backbones import self_test
from iai_hf.backbones.attention import plain_attention
from iai_hf.backbones.batching import length_buckets, pass_tokens
from iai_hf.backbones.low_rank import LowRank, applied, called_linear_layers, layer_of
from iai_hf.backbones.reading import Entrance, KeptReadings, Meter, Reading, entrances, told
from iai_hf.backbones.sentence_transformers import Pipeline
from iai_hf.backbones.tokenizing import TextTokenizer
from iai_hf.errors import BackboneError
from iai_hf.processes import Group
from iai_hf.threads import Lock, cached_pass, computing, one_at_a_time

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SAMPLE = "The quick brown fox, 12.5% of Zürich!"  # tells tokenizers apart
PREFILL_TOKENS = 32768  # at most, whose hidden states are kept: 50 MB of MiniLM-L6
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
    """A frozen encoder. `CausalLM` adds what only a language model can do.

    Args:
        pipeline: how its hidden states become features; by default their mean.
        source: where its weights came from, in words.
    """

    reads: ClassVar[Literal["texts", "numbers"]] = "texts"
    _plain: Backbone | None = None

    def __init__(
        self,
        name: str,
        revision: str | None,
        tokenizer: PreTrainedTokenizerBase,
        model: PreTrainedModel,
        pipeline: Pipeline | None = None,
        source: str = "",
    ) -> None:
        self.name, self.revision, self.source, self.tokenizer = name, revision, source, tokenizer
        self.pipeline = pipeline or Pipeline()
        self.texts = TextTokenizer(tokenizer)
        self.model = model.eval().requires_grad_(False)
        self.device: torch.device = model.device
        self.lock = Lock()
        self.group = Group()  # the processes that texts are read together with
        self._entrances: dict[int, Entrance | None] = {}
        self.meter, self._kept = Meter(), KeptReadings()

    @property
    def plain(self) -> Backbone:
        """The backbone as it was loaded: itself, or what it is a variant of."""
        return self._plain or self

    @property
    def uncached(self) -> Backbone:
        """The backbone that reads every text anew: itself, or what a cache stands before."""
        return self

    def variant(
        self, fingerprint: str, *, model: PreTrainedModel | None = None, pipeline: Pipeline | None = None
    ) -> Backbone:
        """The same backbone with other weights of the same shapes, or another pipeline, by another fingerprint."""
        other = copy.copy(self)
        for kind in type(self).__mro__:  # what was found out about the model is found out anew
            for name, value in vars(kind).items():
                if isinstance(value, cached_property):
                    other.__dict__.pop(name, None)
        if model is not None:
            other.model, other.lock, other._entrances = model, Lock(), {}
        other.pipeline, other._plain, other._kept = pipeline or self.pipeline, self.plain, KeptReadings()
        other.__dict__["fingerprint"] = fingerprint
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> Backbone:
        return self  # it is frozen: scikit-learn copies an estimator's parameters, which would be the weights each time

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.model.dtype

    @property
    def base(self) -> torch.nn.Module:
        """The model without a head."""
        return self.model

    @property
    def width(self) -> int:
        """Size of the hidden states that features are pooled from."""
        return self.traits.hidden_size

    @property
    def hidden_size(self) -> int:
        """Size of a feature vector."""
        return self.pipeline.size(self.width)

    @cached_pass
    def traits(self) -> self_test.Traits:
        """What the model does with a few tokens.

        Raises:
            BackboneError: it reads no text by itself.
        """
        try:
            return self_test.traits(self.base, sorted(set(self._sample_ids))[-2:])
        except Exception as error:  # whatever a model raises that wants images, sound or a decoder's input
            reason = (str(error).splitlines() or [""])[0]
            raise BackboneError(
                f"{self.name} ({type(self.model).__name__}) gives no hidden states of a text alone "
                f"({type(error).__name__}: {reason}); choose a text encoder or a causal language model"
            ) from error

    def split_over_processes(self) -> None:
        """Read texts together with the processes that were started with this one, each its share of the batches.

        All must then ask for the same features in the same order, and all get all of them, equal to what a single
        process computes.

        Raises:
            BackboneError: the processes don't come together, or the model is not on this one's device.
        """
        group = Group.joined()
        if str(self.device) != group.device and self.device.type != "cpu":
            raise BackboneError(
                f"{self.name} is on {self.device}, process {group.index} computes on {group.device}: load it with "
                "device=iai_hf.processes.Group.joined().device"
            )
        self.group = group

    @cached_property
    def context(self) -> int:
        """Longest sequence of tokens, special ones included, that the model can attend to."""
        config = self.model.config.get_text_config()
        # Biases in the place of positions are made up to `max_seq_len`.
        limits = [getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len")]
        limits += [self.traits.positions, self.tokenizer.model_max_length]
        known = [int(limit) for limit in limits if limit and 0 < limit < 10**9]  # XLNet says -1
        return min(known, default=MAX_WINDOW)

    @property
    def window(self) -> int:
        """Tokens that are read at once for a feature."""
        return min(self.context, MAX_WINDOW)

    @cached_property
    def special_tokens(self) -> tuple[list[int], list[int]]:
        """Ids that the tokenizer puts before and after a text, e.g. ([CLS], [SEP])."""
        bare = self.texts.ids(["a"])[0]
        full = self.tokenizer("a", split_special_tokens=True)["input_ids"]
        first = next(i for i in range(len(full)) if full[i : i + len(bare)] == bare)
        return full[:first], full[first + len(bare) :]

    @property
    def text_ends(self) -> list[int]:
        """Ids, each of which ends a text that is written."""
        return []

    @property
    def feature_prompt(self) -> tuple[int, ...]:
        """Ids that a text is read behind, and that are no part of its feature."""
        return ()

    @property
    def reading(self) -> dict[str, Any]:
        """How a text becomes a feature, in plain values."""
        return {"model": type(self.model).__name__, "hidden_state": "last", **self.pipeline.reading}

    @cached_property
    def fingerprint(self) -> str:
        """`digest()`, taken once."""
        return self.digest()

    def has_fingerprint(self, fingerprint: str, *, earlier: bool) -> bool:
        """Whether it is this backbone's; `earlier` takes that of format 1 too, which told no pooling and no windows."""
        return fingerprint == self.fingerprint or (earlier and fingerprint == self._earlier_fingerprint)

    @cached_property
    def _earlier_fingerprint(self) -> str:
        """Of format 1, where texts are read now as they were then."""
        return self._digest(b"") if self._plain is None and self.pipeline.is_early else self.fingerprint

    def digest(self) -> str:
        """Of architecture, vocabulary, pooling and a sample of every weight, alike for float32 and bfloat16 loading."""
        windows = self_test.attention_windows(self.model.config.get_text_config().to_dict(), self.context)
        return self._digest(self.pipeline.described() + (str(windows).encode() if windows else b""))

    def _digest(self, reading: bytes) -> str:
        import torch

        config = self.model.config
        size = config.get_text_config().hidden_size
        digest = hashlib.sha256(f"{config.model_type} {size} {len(self.tokenizer)}".encode())
        for name, weight in self.model.named_parameters():
            flat = weight.detach().reshape(-1)
            sample = flat[:: max(flat.numel() // 16, 1)].to("cpu", torch.bfloat16)
            digest.update(name.encode() + sample.contiguous().view(torch.uint8).numpy().tobytes())
        digest.update(str(self.feature_prompt).encode() if self.feature_prompt else b"")
        digest.update(str(self._sample_ids).encode())
        digest.update(reading)
        return digest.hexdigest()[:32]

    @cached_property
    def _sample_ids(self) -> list[int]:
        """How the tokenizer reads an English sentence."""
        ids: list[int] = self.tokenizer(SAMPLE, split_special_tokens=True)["input_ids"]
        return ids

    @one_at_a_time
    def features(
        self,
        texts: Sequence[str],
        max_tokens: int | None = None,
        weights: Sequence[LowRank] = (),
        adapter_indices: Sequence[int] | None = None,
    ) -> Features:
        """Features of texts of any length: longer ones than the context are read in windows and pooled over all.

        Args:
            max_tokens: read only that many tokens of a text; how many texts that cut is returned.
            weights: added to the model's for this call.
            adapter_indices: which of several weights each text is read with, below 0 for none.

        Raises:
            BackboneError: a feature is not finite; its text is named.
            DataError: a process that reads together with this one reads other texts.
        """
        import torch

        if adapter_indices is None or not weights or self._tells_rows_apart:
            return self._features(texts, max_tokens, torch.inference_mode(), weights, adapter_indices)
        vectors, tokens, cut = torch.empty(len(texts), self.hidden_size, dtype=torch.float32), 0, 0
        for number in sorted(set(adapter_indices)):
            rows = [row for row, index in enumerate(adapter_indices) if index == number]
            own = (weights[number],) if number >= 0 else ()
            found = self._features([texts[row] for row in rows], max_tokens, torch.inference_mode(), own)
            vectors[rows] = found.vectors
            tokens, cut = tokens + found.tokens, cut + found.cut
        return Features(vectors, tokens, cut)

    @one_at_a_time
    def differentiable_features(
        self, texts: Sequence[str], max_tokens: int | None = None, weights: Sequence[LowRank] = ()
    ) -> Features:
        """As `features`, with the gradient in `weights`; of processes that read together, that of each one's share."""
        with plain_attention():
            return self._features(texts, max_tokens, nullcontext(), weights)

    @one_at_a_time
    def prefill_texts(self, texts: Sequence[str], max_tokens: int | None, first_layer: int) -> Reading:
        """Texts read up to a layer, from where `features` goes on; whole where that can't be, or they are too many."""
        reading = self._reading(texts, max_tokens)
        sparing = first_layer and self.group.count == 1 and reading.tokens <= PREFILL_TOKENS
        entrance = self._entrance(first_layer) if sparing else None
        return reading if entrance is None else reading.prefilled(self, entrance)

    @one_at_a_time
    def pooled(self, texts: Sequence[str]) -> torch.Tensor:
        """Features before they are scaled to unit length, float32 `[texts, hidden_size]`."""
        import torch

        return self._features(texts, None, torch.inference_mode(), unit_length=False).vectors

    @property
    def alone(self) -> Backbone:
        """The same that reads by itself: of several processes only one would read a sample."""
        alone = copy.copy(self)
        alone.group, alone._kept = Group(), KeptReadings()
        return alone

    @cached_pass
    def linear_layers(self) -> dict[str, tuple[int, int]]:
        """Sizes, in and out, of the linear layers that a feature comes from, by their name in the model."""
        alone = self.alone
        alone.features([SAMPLE])  # what is found out about the model at the first pass calls other layers too
        return called_linear_layers(self.model, lambda: alone.features([SAMPLE]))

    def _entrance(self, first: int) -> Entrance | None:
        """At a layer, as was found when it was first asked for; None where a pass can't begin."""
        if first in self._entrances:
            return self._entrances[first]
        alone = self.alone
        reading = Reading.of(alone, (SAMPLE, f"{SAMPLE} {SAMPLE}"), None)

        def read(weights: LowRank, entrance: Entrance | None) -> torch.Tensor:
            found = reading if entrance is None else reading.prefilled(alone, entrance)
            return alone.features(found, None, (weights,)).vectors

        depth = getattr(self.model.config.get_text_config(), "num_hidden_layers", 0)
        behind = {name: size for name, size in self.linear_layers.items() if layer_of(name) >= first}
        ways = entrances(self.base, depth, first)
        self._entrances[first] = self_test.first_alike(read, ways, behind, self.device, self.dtype)
        return self._entrances[first]

    @cached_pass
    def _tells_rows_apart(self) -> bool:
        """Whether rows of one batch can each have weights of their own."""
        import torch

        alone, texts = self.alone, [SAMPLE, f"{SAMPLE} {SAMPLE}", SAMPLE]

        def read(weights: Sequence[LowRank], indices: Sequence[int] | None = None) -> torch.Tensor:
            return alone._features(texts, None, torch.inference_mode(), weights, indices).vectors

        return self_test.tells_rows_apart(read, self.linear_layers, self.device, self.dtype)

    def _reading(self, texts: Sequence[str], max_tokens: int | None) -> Reading:
        self.group.agree(self.name, str(max_tokens), *texts)
        return self._kept.take((max_tokens, *texts)) or Reading.of(self, texts, max_tokens)

    def read_ahead(self, texts: Sequence[str], max_tokens: int | None = None) -> None:
        """Make what `features` of these texts will need but the passes, in a thread beside the model."""
        with computing():
            self._kept.put((max_tokens, *texts), Reading.of(self, texts, max_tokens).ready(self))

    def groups(self, reading: Reading) -> list[list[int]]:
        """Windows that are read together."""
        lengths = [len(window) for window in reading.windows]
        return length_buckets(lengths, pass_tokens(self.device), same=not self.traits.pads)

    def _features(
        self,
        texts: Sequence[str],
        max_tokens: int | None,
        passing: AbstractContextManager[Any],
        weights: Sequence[LowRank] = (),
        adapter_indices: Sequence[int] | None = None,
        unit_length: bool = True,
    ) -> Features:
        """As `features`, with the model's passes under `passing`; without `unit_length`, as `pooled`."""
        import torch

        reading = texts if isinstance(texts, Reading) else self._reading(texts, max_tokens)
        sums = torch.zeros(len(reading), self.width * len(self.pipeline.modes), dtype=torch.float32)
        with passing:
            for made in reading.batches(self):
                group, batch, mask = made.to(self.device)
                owners = [reading.owners[i] for i in group]
                chosen = [] if adapter_indices is None else [[adapter_indices[owner]] for owner in owners]
                rows = torch.tensor(chosen, device=self.device) if chosen else None
                with told(self.name, batch), applied(self.model, weights, rows), reading.entered(group):
                    pooled = self._pool(batch, mask, reading.before).cpu()
                sums.index_add_(0, torch.tensor(owners), pooled)
        own = sums.detach()
        sums = sums + (self.group.total(own) - own)
        vectors = self.pipeline.finish(sums / reading.tokens_of_each[:, None])
        norms = vectors.norm(dim=-1, keepdim=True)
        if not math.isfinite(float(norms.detach().sum())):
            bad = next(text for text, norm in zip(texts, norms, strict=True) if not norm.isfinite())
            remedy = "lower learning_rate, or set depth to 0" if weights else "try float32"
            raise BackboneError(f"{self.name} gave features that are not finite, e.g. for {bad[:40]!r}; {remedy}")
        self.meter.tokens += reading.tokens
        return Features(vectors / norms if unit_length else vectors, reading.tokens, sum(reading.cut))

    def read(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts, without special ones."""
        return self.texts.ids([text.lower() for text in texts] if self.pipeline.lowercase else texts)

    def _pool(self, batch: torch.Tensor, mask: torch.Tensor | None, before: int) -> torch.Tensor:
        """Pooled hidden states times tokens, float32 `[windows, size]`, so that windows may be added.

        Args:
            before: tokens before a window's text.
        """
        hidden = self_test.last_hidden_state(self.model(input_ids=batch, attention_mask=mask))
        tokens = hidden.shape[1] if mask is None else mask.sum(1, keepdim=True)
        return self.pipeline.pool(hidden, mask, before) * tokens

    @property
    def pad_id(self) -> int:
        """What fills a shorter sequence; any id does, it is masked."""
        pad: Any = self.tokenizer.pad_token_id
        return int(pad if pad is not None else self.tokenizer.eos_token_id or 0)
