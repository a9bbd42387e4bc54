"""A second device where there is no GPU: tensors that compute on the CPU, and refuse to meet those that live there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from unittest.mock import patch

import torch
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

FAKE_DEVICE = torch.device("meta")
aten = torch.ops.aten
# What a GPU allows to mix: copies, and indices on the CPU.
MIXED = {aten._to_copy.default, aten.copy_.default, aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
MIXED |= {aten._index_put_impl_.default}
# Numbers without dimensions may be on the CPU, but not here.
STRICT = {aten.cat.default, aten.stack.default}


class FakeTensor(torch.Tensor):
    """A tensor of the second device; `value` holds its numbers."""

    value: torch.Tensor

    @staticmethod
    def __new__(cls, value: torch.Tensor) -> FakeTensor:
        layout = (value.shape, value.stride(), value.storage_offset())
        return torch.Tensor._make_wrapper_subclass(cls, *layout, dtype=value.dtype, device=FAKE_DEVICE)

    def __init__(self, value: torch.Tensor) -> None:
        self.value = value

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return call(func, args, kwargs or {})

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"FakeTensor({self.value})"


class FakeDevice(TorchDispatchMode):
    """Where tensors are made with `device=FAKE_DEVICE`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return call(func, args, kwargs or {})


def call(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation; RuntimeError where its tensors are on two devices."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, FakeTensor)]
    here = [tensor for tensor in tensors if tensor.device.type == "cpu" and (tensor.dim() > 0 or func in STRICT)]
    if there and here and func not in MIXED:
        shapes = [[tuple(tensor.shape) for tensor in group] for group in (there, here)]
        raise RuntimeError(f"{func}: tensors on two devices, {shapes[0]} on the fake device and {shapes[1]} on the CPU")
    if "device" in kwargs and kwargs["device"] is not None:
        goes = torch.device(kwargs["device"]).type == FAKE_DEVICE.type
        kwargs = {**kwargs, "device": torch.device("cpu")}
    else:
        goes = isinstance(args[0], FakeTensor) if func in MIXED else bool(there)
    wrappers = {id(tensor.value): tensor for tensor in there}  # an operation in place returns its argument
    found = func(*tree_map(_bare, args), **tree_map(_bare, kwargs))
    if torch.Tag.inplace_view in func.tags:
        with no_dispatch():
            func(*args, **kwargs)  # the wrapper's own shape follows
    if not goes:
        return found

    def wrapped(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        return wrappers[id(leaf)] if id(leaf) in wrappers else FakeTensor(leaf)

    return tree_map(wrapped, found)


def _bare(leaf: Any) -> Any:
    return leaf.value if isinstance(leaf, FakeTensor) else leaf


@contextmanager
def fake_device() -> Iterator[torch.device]:
    """Inside, tensors can be made there."""
    plain = torch.tensor

    def tensor(data: Any, *, device: Any = None, **options: Any) -> torch.Tensor:
        found = plain(data, **options)  # which knows no mode
        return FakeTensor(found) if device is not None and torch.device(device) == FAKE_DEVICE else found

    # Tensors of one's own kind know no inference mode.
    with patch.object(torch, "tensor", tensor), patch.object(torch, "inference_mode", torch.no_grad), FakeDevice():
        yield FAKE_DEVICE


Module = TypeVar("Module", bound=torch.nn.Module)


def to_fake_device(module: Module) -> Module:
    """The module with its parameters and buffers on the fake device."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                there = FakeTensor(parameter.detach().clone())
                part._parameters[name] = torch.nn.Parameter(there, requires_grad=parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = FakeTensor(buffer.clone())
    return module
