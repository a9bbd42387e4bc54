"""What a model does, found by trying it on a few ids: size of its output, table of positions, which way it looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

LENGTH = 5


@dataclass(frozen=True)
class Trial:
    """What was found.

    Attributes:
        hidden_size: of the last hidden state.
        positions: tokens that its table of positions has a row for; None where it has no table.
        causal: no token sees those behind it.
        pads: what is masked behind a text changes nothing of it.
    """

    hidden_size: int
    positions: int | None
    causal: bool
    pads: bool


def trial(model: torch.nn.Module, ids: Sequence[int]) -> Trial:
    """Read a few tokens three times.

    Args:
        model: without a head.
        ids: two or more different ones that the model can read.

    Raises:
        ValueError: the output is no hidden state for each token.
    """
    import torch

    device = next(model.parameters()).device
    # One id again and again, so that only positions count up.
    first = torch.tensor([[ids[0]] * LENGTH], device=device)
    second = torch.cat([first[:, :-1], torch.tensor([[ids[1]]], device=device)], dim=1)
    lookups = _lookups()
    with torch.inference_mode():
        with lookups:
            hidden = last_hidden_state(model(input_ids=first))
        other = last_hidden_state(model(input_ids=second))
        mask = torch.tensor([[1] * LENGTH + [0] * LENGTH], device=device)
        padded = last_hidden_state(model(input_ids=second.repeat(1, 2), attention_mask=mask))
    if hidden.ndim != 3 or hidden.shape[:2] != (1, LENGTH):
        raise ValueError(f"of {LENGTH} tokens its output has shape {tuple(hidden.shape)}, not one vector a token")
    return Trial(
        hidden_size=hidden.shape[-1],
        positions=lookups.positions,
        causal=_alike(hidden[:, :-1], other[:, :-1]),
        pads=_alike(padded[:, :LENGTH], other),
    )


def _alike(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether hidden states are the same as far as their precision goes."""
    import torch

    if found.shape != expected.shape:
        return False
    error = (found.float() - expected.float()).norm() / expected.float().norm()
    return bool(error < max(1e-4, 8 * torch.finfo(expected.dtype).eps))


def last_hidden_state(output: Any) -> torch.Tensor:
    """`[batch, tokens, hidden]` of a model's output.

    Raises:
        ValueError: it has none.
    """
    found: torch.Tensor | None = getattr(output, "last_hidden_state", None)
    if found is None:
        raise ValueError("its output has no last hidden state")
    return found


def _lookups() -> Any:
    """A mode under which rows that are looked up in tables are watched, whatever the model calls its tables."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Lookups(TorchDispatchMode):
        positions: int | None = None

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function.overloadpacket.__name__ == "embedding":
                table, rows = args[:2]
                at = rows.reshape(-1)[:LENGTH].tolist()
                if at == list(range(at[0], at[0] + LENGTH)):
                    # RoBERTa and OPT leave out the first rows.
                    self.positions = min(len(table) - at[0], self.positions or len(table))
            return function(*args, **(kwargs or {}))

    return Lookups()
