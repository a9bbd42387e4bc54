"""Which kernel computes attention where a gradient is taken."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from iai_hf.threads import Lock

_SWITCH = Lock()  # the whole process shares it


@contextmanager
def plain_attention() -> Iterator[None]:
    """Attention by matrix products, inside the block.

    On a CPU the fused kernel's backward pass is slow on short texts: 4.9 times as slow as these, which makes a gradient
    step of MiniLM-L6 1.7 times as long.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with _SWITCH, sdpa_kernel(SDPBackend.MATH):
        yield
