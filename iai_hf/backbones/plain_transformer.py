"""PlainTransformer: a Transformer over a set of tokens, with no more than that takes."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention, silu


class PlainTransformer(nn.Module):
    """The first tokens are the context: all tokens attend to them, the others besides to themselves alone.

    Layers of attention and a gated MLP (Shazeer 2020, arXiv 2002.05202), normalised in front (Zhang and Sennrich 2019,
    arXiv 1910.07467); no positions, and no norm at the end, so that an answer may be of any size.
    """

    def __init__(self, hidden: int, layers: int, heads: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.layers = nn.ModuleList(Layer(hidden, heads, 0.5 / (hidden * layers) ** 0.5) for _ in range(layers))

    def forward(self, tokens: torch.Tensor, context: int) -> torch.Tensor:
        """`[tasks, tokens, hidden]` to the same shape."""
        length = tokens.shape[1]
        attend = None
        if context < length:
            attend = torch.eye(length, dtype=torch.bool, device=tokens.device)
            attend[:, :context] = True
        for layer in self.layers:
            tokens = layer(tokens, attend)
        return tokens


class Layer(nn.Module):
    """Attention, then an MLP of twice the width, each added to what it reads.

    Args:
        deviation: of the weights that write, at first.
    """

    def __init__(self, hidden: int, heads: int, deviation: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.RMSNorm(hidden, dtype=torch.float32)
        self.mlp_norm = nn.RMSNorm(hidden, dtype=torch.float32)
        self.read = nn.Linear(hidden, 3 * hidden, bias=False, dtype=torch.float32)  # queries, keys, values
        self.write = nn.Linear(hidden, hidden, bias=False, dtype=torch.float32)
        self.up = nn.Linear(hidden, 4 * hidden, dtype=torch.float32)  # a gate, and what it lets through
        self.down = nn.Linear(2 * hidden, hidden, dtype=torch.float32)
        for module in (self.write, self.down):
            nn.init.normal_(module.weight, std=deviation)

    def forward(self, tokens: torch.Tensor, attend: torch.Tensor | None) -> torch.Tensor:
        """`[tasks, tokens, hidden]` to the same shape; `attend`: which tokens see which, None for all."""
        tasks, length, hidden = tokens.shape
        parts = self.read(self.attention_norm(tokens)).view(tasks, length, 3, self.heads, hidden // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        found = scaled_dot_product_attention(query, key, value, attend)
        tokens = tokens + self.write(found.transpose(1, 2).reshape(tasks, length, hidden))
        gate, through = self.up(self.mlp_norm(tokens)).chunk(2, -1)
        return tokens + self.down(silu(gate) * through)
