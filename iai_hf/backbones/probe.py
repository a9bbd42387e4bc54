"""Self-test: how a causal language model can be read exactly. It compares passes on random ids, and knows no names."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from iai_hf.backbones import halfway, packed_pass, plain
from iai_hf.backbones.conditions import NO_PREFIX, Entering, Prefix
from iai_hf.backbones.packing import Packed, Row
from iai_hf.errors import BackboneError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

log = logging.getLogger(__name__)
QUERY = 8  # tokens of a query
SHORT, LONGEST = 64, 1056  # tokens of the prefix; a window wider than the longest is taken as the configuration says
FAULTS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError)


@dataclass(frozen=True)
class Abilities:
    """What gives the same logits as a plain pass over ids, sequence by sequence.

    Attributes:
        packed: rows in one sequence behind cached keys and values, under a block mask.
        soft: embeddings in the place of ids.
    """

    packed: bool
    soft: bool


def probe(model: PreTrainedModel, context: int) -> Abilities:
    """Read two short queries, alone and behind a prefix longer than the model's windows, in each of the ways.

    Raises:
        BackboneError: logits are not finite, or depend on what comes after a token.
    """
    import torch

    ids, rows = _texts(model, context)
    nothing = torch.zeros(0, dtype=torch.long, device=model.device)
    with torch.inference_mode():
        alone, behind = (_plain(model, before, rows[1:]) for before in (nothing, ids))
        if not (alone.isfinite().all() and behind.isfinite().all()):
            raise BackboneError("the backbone's logits are not finite; try float32, or restore its weights from a copy")
        if not _agree(lambda: _plain(model, nothing, rows)[-len(alone) :], alone):
            raise BackboneError("the backbone's logits depend on later tokens; choose a causal language model")
        soft = _agree(lambda: _plain(model, plain.embeddings(model, nothing), rows[1:]), alone)

        def packed(before: torch.Tensor) -> torch.Tensor:
            return packed_pass.logits(model, Packed.of(rows, model.device), _encoded(model, before))[-len(alone) :]

        one = _agree(lambda: packed(nothing), alone) and _agree(lambda: packed(ids), behind)
    return Abilities(packed=one, soft=soft)


def enters(model: PreTrainedModel, context: int, layer: int) -> bool:
    """Whether a packed pass from `layer` on, entered half-way, says the same as one through all layers."""
    import torch

    ids, rows = _texts(model, context)
    packed = Packed.of(rows, model.device)

    def halfway_in(entering: Entering) -> torch.Tensor:
        readings = [row.reading for row in halfway.read(model, rows, entering) if row.reading is not None]
        return halfway.logits(model, packed, readings, entering)

    with torch.no_grad():
        prefix = _encoded(model, ids)
        return _agree(
            lambda: halfway_in(Entering(prefix=prefix, layer=layer)), packed_pass.logits(model, packed, prefix)
        )


def _texts(model: PreTrainedModel, context: int) -> tuple[torch.Tensor, list[Row]]:
    """Random ids of a prefix, int64 `[length]`, and two rows of unequal length."""
    import torch

    widest = _widest_window(model.config.get_text_config(decoder=True)) + QUERY
    length = min(max(widest if widest <= LONGEST else 0, SHORT), context - 2 * QUERY)
    generator = torch.Generator().manual_seed(0)
    weight: Any = model.get_input_embeddings().weight
    vocabulary = len(weight)
    ids = torch.randint(vocabulary, (max(length, 0) + 2 * QUERY + 1,), generator=generator)
    first, second, last = (part.tolist() for part in ids[-2 * QUERY - 1 :].split([QUERY + 1, QUERY - 3, 3]))
    rows = [
        Row(tuple(first[:-1]), (tuple(first[-1:]),)),
        Row(tuple(second), (tuple(last),)),
    ]
    return ids[: -2 * QUERY - 1].to(model.device), rows


def _widest_window(config: PreTrainedConfig) -> int:
    """The largest number that the configuration calls a window or a chunk, 0 where there is none."""
    named = [value for key, value in config.to_dict().items() if "window" in key or "chunk" in key]
    numbers = [number for value in named for number in (value if isinstance(value, list) else [value])]
    return max((number for number in numbers if type(number) is int), default=0)


def _encoded(model: PreTrainedModel, ids: torch.Tensor) -> Prefix:
    if not len(ids):
        return NO_PREFIX
    return packed_pass.encoded(model, ids)


def _plain(model: PreTrainedModel, before: torch.Tensor, rows: list[Row]) -> torch.Tensor:
    import torch

    return torch.cat(plain.logits(model, [line for row in rows for line in plain.lines_of(row, before)], ()))


def _agree(passed: Callable[[], torch.Tensor], expected: torch.Tensor) -> bool:
    """Whether a pass gives the expected logits, as far as the model's precision goes."""
    import torch

    try:
        found = passed().float()
    except torch.OutOfMemoryError:
        raise
    except FAULTS as fault:
        log.debug("a pass of the self-test failed: %s", fault)
        return False
    precision = torch.finfo(expected.dtype).eps
    expected = expected.float()
    error = (found - expected).norm() / (expected - expected.mean(-1, keepdim=True)).norm()
    log.debug("a pass of the self-test differs by %.1e", float(error))
    return bool(error < max(1e-3, 32 * precision))
