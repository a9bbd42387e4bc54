"""FastWeights: low-rank weights of the last layers, moved by gradient steps through the head's closed form.

    theta[i+1] = theta[i] - rate * direction( d/d theta  -log p(y | W_i phi_theta(x) + b_i) )

phi are the backbone's features under the weights theta (LoRA, Hu et al. 2021, arXiv 2106.09685), W_i and b_i the head's
closed form on all that was read: the greedy objective in the parametric regime of Mittal et al. 2025 (arXiv
2510.11471).
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from iai_hf.backbones.low_rank import LowRank, layer_of
from iai_hf.errors import BackboneError, DataError

if TYPE_CHECKING:
    import torch

    from iai_hf.backbones import Backbone
    from iai_hf.task import Tensors

WARMUP = 0.1  # share of the steps on which the rate rises
LEAST_RATE = 0.05  # share of the rate that is left at the last step
SETTLING = 1024  # examples, from which on the rate falls (4,096 of a held-out task: 72.3 to 73.7%, NLL .665 to .643)
LARGEST_GRADIENT = 1.0  # norm over all weights; longer ones are cut
BETAS = (0.9, 0.99)


@dataclass(frozen=True)
class Schedule:
    """How much is learned from n examples: `steps * sqrt(n)` steps in all.

    Few examples are passed often, as far as that still teaches something.

    Attributes:
        rate: of Adam, at its height.
        batch_size: examples a step.
    """

    steps: float
    rate: float
    batch_size: int

    def rate_after(self, examples: int) -> float:
        """Of the steps that end after so many examples: it falls as their root, so that what is learned settles."""
        return self.rate * min(1.0, math.sqrt(SETTLING / max(examples, 1)))

    def between(self, before: int, after: int) -> int:
        """Steps that the examples from number `before` to `after` bring."""
        return math.floor(self.steps * math.sqrt(after)) - math.floor(self.steps * math.sqrt(before))


class FastWeights:
    """Weights `up @ down` beside the linear layers of the backbone's last `depth` layers.

    Args:
        depth: layers, counted from that which a feature is taken from; None for all.

    Raises:
        BackboneError: the backbone has fewer layers, none that is linear, or smaller ones than the rank.
    """

    def __init__(self, backbone: Backbone, depth: int | None, rank: int) -> None:
        self.backbone, self.rank = backbone.uncached, rank
        self.sizes = _last_layers(self.backbone, depth)
        smallest = min(min(size) for size in self.sizes.values())
        if rank > smallest:
            raise BackboneError(
                f"rank is {rank}; expected at most {smallest}, the smallest size of a linear layer of {backbone.name}"
            )

    @cached_property
    def groups(self) -> dict[str, list[str]]:
        """Layers of one size, whose weights are kept in one tensor each, e.g. "384x1536"."""
        found: dict[str, list[str]] = {}
        for name, (inputs, outputs) in self.sizes.items():
            found.setdefault(f"{inputs}x{outputs}", []).append(name)
        return found

    @property
    def first_layer(self) -> int:
        """The first layer that they change."""
        return min(map(layer_of, self.sizes))

    def initial(self) -> Tensors:
        """Without effect: `down_SIZE` random `[layers, rank, in]`, `up_SIZE` zeros `[layers, out, rank]`, float16."""
        import torch

        generator = torch.Generator().manual_seed(0)
        tensors: dict[str, torch.Tensor] = {}
        for group, names in self.groups.items():
            inputs, outputs = self.sizes[names[0]]
            drawn = torch.randn(len(names), self.rank, inputs, generator=generator, dtype=torch.float32)
            tensors[f"down_{group}"] = (drawn / math.sqrt(inputs)).half()
            tensors[f"up_{group}"] = torch.zeros(len(names), outputs, self.rank, dtype=torch.float16)
        return tensors

    def low_rank(self, tensors: Tensors) -> LowRank:
        """The weights as the model takes them, in its precision and on its device, differentiable in `tensors`."""
        down: dict[str, torch.Tensor] = {}
        up: dict[str, torch.Tensor] = {}
        for group, names in self.groups.items():
            for kind, found in (("down", down), ("up", up)):
                cast = tensors[f"{kind}_{group}"].to(self.backbone.device, self.backbone.dtype)
                found.update(zip(names, cast.unbind(), strict=True))
        return LowRank(down, up)

    def average(self, parts: Sequence[tuple[Tensors, float]]) -> Tensors:
        """The mean of weights, each with its share; where all shares are 0, as of states of no example, alike."""
        if not any(share for _, share in parts):
            parts = [(tensors, 1.0) for tensors, _ in parts]
        total = sum(share for _, share in parts)
        return {
            name: sum(tensors[name].float() * (share / total) for tensors, share in parts).half()  # type: ignore[union-attr]
            for name in parts[0][0]
        }


class Descent:
    """Steps of Adam from weights, at a rate that rises shortly and then falls to nearly nothing.

    Args:
        tensors: of the weights to begin with; they stay as they are.
        steps: how many there will be.
        rate: of Adam, at its height.
    """

    def __init__(self, fast_weights: FastWeights, tensors: Tensors, steps: int, rate: float) -> None:
        import torch

        self._fast_weights = fast_weights
        self._moving = {name: tensor.float().requires_grad_() for name, tensor in tensors.items()}
        self._parameters = list(self._moving.values())
        self._optimizer = torch.optim.Adam(self._parameters, lr=rate, betas=BETAS)
        self._rates = torch.optim.lr_scheduler.LambdaLR(self._optimizer, lambda step: _envelope(step, max(steps, 1)))

    @property
    def low_rank(self) -> LowRank:
        """The weights as they are now, differentiable."""
        return self._fast_weights.low_rank(self._moving)

    @property
    def tensors(self) -> Tensors:
        """The weights as they are now, float16."""
        return {name: tensor.detach().half() for name, tensor in self._moving.items()}

    def step(self, logits: torch.Tensor, targets: torch.Tensor, shares: torch.Tensor) -> None:
        """One step on examples.

        Args:
            logits: under `low_rank`, `[n, C]`.
            targets: int64 `[n]`.
            shares: how much each example counts beside a usual one, float32 `[n]`.

        Raises:
            DataError: the loss is no finite number.
        """
        import torch
        from torch.nn.functional import cross_entropy

        loss = (cross_entropy(logits, targets, reduction="none") * shares).mean()
        if not loss.isfinite():
            raise DataError(
                f"the loss of the fast weights is {loss.item()}; the state is as it was before the chunk: look at its "
                "texts, lower learning_rate, or set depth to 0"
            )
        parameters = self._parameters
        # Of processes that read together, one may have had no share of the batch.
        found = torch.autograd.grad(loss, parameters) if loss.requires_grad else [0 * part for part in parameters]
        for part, gradient in zip(parameters, found, strict=True):
            part.grad = self._fast_weights.backbone.group.total(gradient.detach())
        torch.nn.utils.clip_grad_norm_(parameters, LARGEST_GRADIENT)
        self._optimizer.step()
        self._rates.step()


def _envelope(step: int, steps: int) -> float:
    """Share of the rate: a short rise, then a straight fall."""
    return min(1.0, (step + 1) / (WARMUP * steps + 1)) * max(1 - step / steps, LEAST_RATE)


def batches(examples: int, size: int, seed: int) -> Iterator[list[int]]:
    """Without end: passes over all examples in orders drawn from `seed`, in batches of `size`."""
    chance, waiting = random.Random(seed), list[int]()
    while True:
        while len(waiting) < min(size, examples):
            waiting += chance.sample(range(examples), examples)
        batch, waiting = waiting[: min(size, examples)], waiting[min(size, examples) :]
        yield batch


def _last_layers(backbone: Backbone, depth: int | None) -> dict[str, tuple[int, int]]:
    """Sizes of the linear layers in the last `depth` layers that a feature comes from, by their names."""
    layers = {name: size for name, size in backbone.linear_layers.items() if layer_of(name) >= 0}
    known = sorted({layer_of(name) for name in layers})
    if not known:
        raise BackboneError(
            f"{backbone.name} has no linear layers in numbered blocks that low-rank weights could stand beside; set "
            "depth to 0, or choose another backbone"
        )
    if depth is not None and depth > len(known):
        raise BackboneError(
            f"depth is {depth}; a feature of {backbone.name} comes from {len(known)} layers: expected 0 to {len(known)}"
        )
    first = known[0] if depth is None else known[-depth]
    return {name: size for name, size in layers.items() if layer_of(name) >= first}
