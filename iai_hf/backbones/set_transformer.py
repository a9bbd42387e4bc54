"""SetTransformer: a Hugging Face model as a function of a set of tokens, without positions and without causality."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from iai_hf.errors import BackboneError


class SetTransformer(nn.Module):
    """The first tokens are the context: all tokens attend to them, the others besides to themselves alone.

    So an answer to a query does not depend on the other queries, and the order of the context does not matter.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        from transformers import AutoModel

        try:
            self.model = AutoModel.from_config(config, attn_implementation="sdpa", dtype=torch.float32)
        except (ValueError, KeyError, ImportError) as error:
            raise BackboneError(f"{config.model_type} can't be built ({error}); choose e.g. llama or bert") from error
        embeddings = self.model.get_input_embeddings()
        self.hidden = int(config.hidden_size)
        if not isinstance(embeddings, nn.Embedding):
            raise BackboneError(f"{config.model_type} takes no embeddings; choose e.g. llama or bert")

    def forward(self, tokens: torch.Tensor, context: int) -> torch.Tensor:
        """`[tasks, tokens, hidden]` to the same shape."""
        tasks, length, _ = tokens.shape
        attend = torch.eye(length, dtype=torch.bool, device=tokens.device)
        attend[:, :context] = True
        positions = torch.zeros(1, length, dtype=torch.long, device=tokens.device).expand(tasks, -1)
        mask = attend.expand(tasks, 1, length, length)
        found = self.model(inputs_embeds=tokens, attention_mask=mask, position_ids=positions)
        return found.last_hidden_state
