"""Self-test: what a model does and how it can be read exactly, found by short passes; no model is told by its name."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from iai_hf.backbones import packed_pass, partial_pass, plain_pass
from iai_hf.backbones.conditions import NO_PREFIX, Condition, Prefix
from iai_hf.backbones.low_rank import LowRank
from iai_hf.backbones.packing import Packed, Row
from iai_hf.errors import BackboneError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Way = TypeVar("Way")
log = logging.getLogger(__name__)
LENGTH = 5  # tokens that a model's traits are found on
QUERY = 8  # tokens of a query
SHORT, LONGEST = 64, 1056  # tokens of the prefix; a window wider than the longest is taken as the configuration says
FAULTS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, BackboneError)
# Relative errors that two ways of reading may differ by: at least so much, and so many times the precision.
HIDDEN_TOLERANCE, LOGIT_TOLERANCE = (1e-4, 8), (1e-3, 32)


@dataclass(frozen=True)
class Traits:
    """What a model does with a few tokens.

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


def traits(model: torch.nn.Module, ids: Sequence[int]) -> Traits:
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
    return Traits(
        hidden_size=hidden.shape[-1],
        positions=lookups.positions,
        causal=alike(hidden[:, :-1], other[:, :-1], HIDDEN_TOLERANCE),
        pads=alike(padded[:, :LENGTH], other, HIDDEN_TOLERANCE),
    )


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


@dataclass(frozen=True)
class Abilities:
    """What gives the same logits as a plain pass over ids, sequence by sequence.

    Attributes:
        packed: rows in one sequence behind cached keys and values, under a block mask.
        soft: embeddings in the place of ids.
    """

    packed: bool
    soft: bool


def abilities(model: PreTrainedModel, context: int) -> Abilities:
    """Read two short queries, alone and behind a prefix longer than the model's windows, in each of the ways.

    Raises:
        BackboneError: logits are not finite, or depend on what comes after a token.
    """
    import torch

    ids, rows = _texts(model, context)
    nothing = torch.zeros(0, dtype=torch.long, device=model.device)
    with torch.inference_mode():
        alone, behind = (_plainly(model, before, rows[1:]) for before in (nothing, ids))
        if not (alone.isfinite().all() and behind.isfinite().all()):
            raise BackboneError("the backbone's logits are not finite; try float32, or restore its weights from a copy")
        if not _agree(lambda: _plainly(model, nothing, rows)[-len(alone) :], alone):
            raise BackboneError("the backbone's logits depend on later tokens; choose a causal language model")
        soft = _agree(lambda: _plainly(model, plain_pass.embeddings(model, nothing), rows[1:]), alone)

        def packed(before: torch.Tensor) -> torch.Tensor:
            return packed_pass.logits(model, Packed.of(rows, model.device), _encoded(model, before))[-len(alone) :]

        one = _agree(lambda: packed(nothing), alone) and _agree(lambda: packed(ids), behind)
    return Abilities(packed=one, soft=soft)


def can_prefill(model: PreTrainedModel, context: int, layer: int) -> bool:
    """Whether a pass from `layer` on over prefilled rows gives the same logits as one through all layers."""
    import torch

    ids, rows = _texts(model, context)
    packed = Packed.of(rows, model.device)

    def prefilled(condition: Condition) -> torch.Tensor:
        read = partial_pass.prefill(model, rows, condition)
        return partial_pass.logits(model, packed, [row.hidden_cache for row in read if row.hidden_cache], condition)

    with torch.no_grad():
        condition = Condition(_encoded(model, ids), first_layer=layer)
        return _agree(lambda: prefilled(condition), packed_pass.logits(model, packed, condition.prefix))


def _texts(model: PreTrainedModel, context: int) -> tuple[torch.Tensor, list[Row]]:
    """Random ids of a prefix, int64 `[length]`, and two rows of unequal length."""
    import torch

    windows = attention_windows(model.config.get_text_config(decoder=True).to_dict(), context).values()
    sizes = [size for value in windows for size in (value if isinstance(value, list) else [value])]
    widest = max((size for size in sizes if type(size) is int), default=0) + QUERY
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


def tells_rows_apart(
    read: Callable[[Sequence[LowRank], Sequence[int] | None], torch.Tensor],
    layers: Mapping[str, tuple[int, int]],
    device: torch.device,
    dtype: torch.dtype,
) -> bool:
    """Whether rows of one batch can each have weights of their own: not where a layer has tokens before rows, or reads
    other things than tokens.

    Args:
        read: features of three texts under weights, and which of them each is read with.
        layers: sizes, in and out, of those that have weights.
    """
    import torch

    weights = [_drawn(layers, seed, device, dtype) for seed in range(2)]
    try:
        mixed = read(weights, (0, 1, -1))
    except BackboneError:
        return False
    each = torch.stack([read(weights[:1], None), read(weights[1:], None), read((), None)])
    own, others = each[range(3), range(3)], each[[1, 2, 0], range(3)]
    return bool(((mixed - own).norm(dim=1) < 0.1 * (others - own).norm(dim=1)).all())


def first_alike(
    read: Callable[[LowRank, Way | None], torch.Tensor],
    ways: Sequence[Way],
    layers: Mapping[str, tuple[int, int]],
    device: torch.device,
    dtype: torch.dtype,
) -> Way | None:
    """The first way of reading that gives the same features under random weights as the plain one, if any.

    There is none where the model can't be read under such weights, as where they take it out of its precision.

    Args:
        read: features under weights, read in a way; plainly for None.
        layers: sizes, in and out, of those that have weights.
    """
    weights = _drawn(layers, 0, device, dtype)
    try:
        plain = read(weights, None)
    except BackboneError:
        return None
    alike = (way for way in ways if _agree(partial(read, weights, way), plain, HIDDEN_TOLERANCE))
    return next(alike, None)


def _drawn(layers: Mapping[str, tuple[int, int]], seed: int, device: torch.device, dtype: torch.dtype) -> LowRank:
    """Random weights of rank 1, as large as the layers' own."""
    import torch

    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) / shape[-1] ** 0.5).to(device, dtype)

    return LowRank(
        {name: drawn(1, inputs) for name, (inputs, _) in layers.items()},
        {name: drawn(outputs, 1) for name, (_, outputs) in layers.items()},
    )


def attention_windows(config: Mapping[str, Any], context: int) -> dict[str, Any]:
    """What a configuration says of windows narrower than the context, which no weight tells."""
    found = {}
    for key, value in sorted(config.items()):
        named = any(word in key for word in ("window", "chunk", "local_attention")) and "layers" not in key
        sizes = value if isinstance(value, list) else [value]
        if named and any(type(size) is int and 0 < size < context for size in sizes):
            found[key] = value
    return found


def _encoded(model: PreTrainedModel, ids: torch.Tensor) -> Prefix:
    return packed_pass.encode(model, ids) if len(ids) else NO_PREFIX


def _plainly(model: PreTrainedModel, before: torch.Tensor, rows: list[Row]) -> torch.Tensor:
    import torch

    lines = [line for row in rows for line in plain_pass.lines_of(row, before)]
    return torch.cat(plain_pass.logits(model, lines, ()))


def _agree(
    passed: Callable[[], torch.Tensor], expected: torch.Tensor, tolerance: tuple[float, int] = LOGIT_TOLERANCE
) -> bool:
    """Whether a pass gives what is expected."""
    import torch

    try:
        return alike(passed(), expected, tolerance)
    except torch.OutOfMemoryError:
        raise
    except FAULTS as fault:
        log.debug("a pass of the self-test failed: %s", fault)
        return False


def alike(found: torch.Tensor, expected: torch.Tensor, tolerance: tuple[float, int]) -> bool:
    """Whether two ways of reading give the same, as far as the model's precision goes."""
    import torch

    if found.shape != expected.shape:
        return False
    least, times = tolerance
    precision = torch.finfo(expected.dtype).eps
    found, expected = found.float(), expected.float()
    error = (found - expected).norm() / (expected - expected.mean(-1, keepdim=True)).norm()
    log.debug("a pass of the self-test differs by %.1e", float(error))
    return bool(error < max(least, times * precision))
