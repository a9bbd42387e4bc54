"""NumericBackbone: a small Transformer for numbers, built from any Hugging Face configuration that takes embeddings.

It has no weights of its own: what is learned belongs to the amortizer, whose `model.safetensors` holds it.
"""

from __future__ import annotations

import hashlib
import logging
from functools import cached_property
from typing import TYPE_CHECKING, Any

from iai_hf.backbones.backbone import Backbone, Features
from iai_hf.backbones.reading import Meter
from iai_hf.errors import BackboneError
from iai_hf.processes import Group

if TYPE_CHECKING:
    import torch
    from torch import nn

PREFIX = "numeric/"
PLAIN = PREFIX + "plain"
HEADS = 4


class NumericBackbone(Backbone):
    """An architecture by its transformers name, e.g. `numeric/llama`, `numeric/bert`, `numeric/modernbert`.

    Or `numeric/plain`: our own, without what a set has no use for, which takes a third of the time.
    """

    reads = "numbers"

    def __init__(self, name: str, device: torch.device) -> None:
        self.name, self.revision, self.source, self.device = name, None, "", device
        self.group, self.meter = Group(), Meter()
        self.config = None if name == PLAIN else self._configured(8, 1)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the architecture's name."""
        return hashlib.sha256(self.name.encode()).hexdigest()[:32]

    def has_fingerprint(self, fingerprint: str, *, earlier: bool) -> bool:
        """As `Backbone.has_fingerprint`; it has been the same in every format."""
        return fingerprint == self.fingerprint

    def build(self, hidden: int, layers: int) -> nn.Module:
        """A Transformer with random weights; see `SetTransformer`.

        Raises:
            BackboneError: the architecture does not take embeddings.
        """
        from iai_hf.backbones.plain_transformer import PlainTransformer
        from iai_hf.backbones.set_transformer import SetTransformer

        if self.name == PLAIN:
            return PlainTransformer(hidden, layers, HEADS)
        return SetTransformer(self._configured(hidden, layers))

    def features(self, *_: Any, **__: Any) -> Features:
        """Raise BackboneError: there are no texts here."""
        raise BackboneError(f"{self.name} reads numbers; for texts choose a pretrained backbone, e.g. an encoder")

    def _configured(self, hidden: int, layers: int) -> Any:
        from transformers import AutoConfig

        kind = self.name.removeprefix(PREFIX)
        quiet = logging.getLogger("transformers.configuration_utils")
        level = quiet.level
        quiet.setLevel(logging.ERROR)  # token ids beyond the vocabulary, which is not used
        try:
            return AutoConfig.for_model(
                kind,
                hidden_size=hidden,
                num_hidden_layers=layers,
                num_attention_heads=HEADS,
                num_key_value_heads=HEADS,
                intermediate_size=2 * hidden,
                vocab_size=8,
                max_position_embeddings=8,
                pad_token_id=0,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
            )
        except (ValueError, KeyError, TypeError) as error:
            raise BackboneError(
                f"{self.name!r} names no architecture of transformers ({str(error).splitlines()[0][:120]}); expected "
                "e.g. numeric/plain, numeric/llama or numeric/bert"
            ) from error
        finally:
            quiet.setLevel(level)
