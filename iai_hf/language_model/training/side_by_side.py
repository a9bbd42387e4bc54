"""The prequential objective on many tasks at once: their streams go on side by side, a step of all in one pass.

The same losses, steps and gradients as `PrequentialObjective` has of each task alone, but that every batch is read
anew: nothing is prefilled. Steps of a method that prefills go by the gradient at the positions that it would read, the
scored ones; what is learned goes by that at all positions. For low-rank weights in a model that can be read packed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from iai_hf.backbones.grid_pass import Grid, Prefixes, TaskWeights, losses, scored_logits
from iai_hf.backbones.packing import Row
from iai_hf.language_model.gradient import Gradient
from iai_hf.language_model.learners import Learner, Tensors
from iai_hf.language_model.training.objective import UNRELATED_TOKENS, LossSum

if TYPE_CHECKING:
    from iai_hf.language_model.training.episodes import TextEpisode
    from iai_hf.task import Chunk


class Streams(NamedTuple):
    """Of each task the rows to step on, in their order, and the demonstrations that they are read behind."""

    rows: list[list[Row]]
    prefixes: Prefixes


class SideBySideObjective(nn.Module):
    """Loss of an amortizer's learner on several episodes; its parameters are the learner's.

    Args:
        unrelated_weight: of the divergence from the plain model on an unrelated text, behind the last step.
    """

    def __init__(self, amortizer: Gradient, unrelated_weight: float) -> None:
        super().__init__()
        self.learner: Learner = amortizer.learner
        self.amortizer, self.unrelated_weight = amortizer, unrelated_weight
        self._queries: dict[str, tuple[int, ...]] = {}
        self._answers: dict[str, tuple[int, ...]] = {}

    def forward(self, episodes: Sequence[TextEpisode]) -> torch.Tensor:
        """Mean over tasks of the mean negative log-likelihood a token, each batch under the state before it."""
        streams = self.streams([episode.chunks for episode in episodes])
        total = LossSum(self.learner, len(episodes))
        counts = torch.tensor([len(rows) for rows in streams.rows], dtype=torch.float32, device=self.device)
        theta = self.initial(len(episodes))
        for batch in self.batches(streams.rows):
            own, shared = self._leaves(theta)
            probe = self._probe(own)
            under = self.weights(own, shared, probe)
            means, rows = self._means(*losses(self.model, self.grid(batch), streams.prefixes, under))
            weight = rows / counts.clamp(min=1) / len(episodes)  # the batch's part of each task's stream
            gradients = total.add((weight * means).sum(), own, shared, 1.0, probe)
            theta, before = self._refined(theta, gradients, weight, rows), theta
            total.stepped(before, theta)
        if self.unrelated_weight and all(episode.unrelated for episode in episodes):
            own, shared = self._leaves(theta)
            divergence = self._divergence([episode.unrelated[0] for episode in episodes], streams, own, shared)
            total.add(divergence, own, shared, self.unrelated_weight)
        return total.total()

    @property
    def device(self) -> torch.device:
        """Where the learner is."""
        return next(self.learner.parameters()).device

    @property
    def model(self):  # type: ignore[no-untyped-def]
        """The language model itself."""
        return self.amortizer.prompter.model.model

    def initial(self, tasks: int) -> Tensors:
        """Tensors of as many states before any example, one behind the other in the first dimension."""
        start = {name: tensor.to(self.device) for name, tensor in self.learner.initial().items()}
        return {name: part if name == "steps" else torch.cat([part] * tasks) for name, part in start.items()}

    def streams(self, chunks: Sequence[Sequence[Chunk]]) -> Streams:
        """Of each task's chunks, as a state reads them: the first examples are demonstrations."""
        rows: list[list[Row]] = []
        before: list[list[int]] = []
        for mine in chunks:
            retained, steps = self.amortizer.retained({}), 0
            rows.append([])
            for chunk in mine:
                retained, trained_on, _ = self.amortizer.retain(retained, chunk, steps)
                rows[-1] += [self.row(chunk.inputs[i], chunk.outputs[i]) for i in trained_on]
                steps += len(trained_on)
            shown = [int(i) for tokens in retained.values() for i in tokens]
            before.append([*self.amortizer.prompter.model.special_tokens[0], *shown])
        return Streams(rows, Prefixes.encode(self.model, before, self.amortizer.prompter.model.pad_id))

    def row(self, text: str, output: str) -> Row:
        """As `Prompter.row`; texts that were met before are not tokenised again."""
        prompter = self.amortizer.prompter
        if text not in self._queries:
            self._queries[text] = prompter.query(text)[0]
        if output not in self._answers:
            self._answers[output] = prompter.answer(output)
        return Row(self._queries[text], (self._answers[output],))

    def batches(self, rows: Sequence[Sequence[Row]]) -> Iterator[list[Sequence[Row]]]:
        """As many rows of each task as make a gradient step; of one that has come to its end, none."""
        size = self.amortizer.config.batch_size
        for first in range(0, max(map(len, rows)), size):
            yield [mine[first : first + size] for mine in rows]

    def grid(self, rows: Sequence[Sequence[Row]]) -> Grid:
        """The rows in a grid on the model's device."""
        return Grid.of(rows, self.amortizer.prompter.model.pad_id, self.device)

    def weights(self, own: Tensors, shared: Tensors, probe: Tensors | None = None) -> TaskWeights:
        """What the model is read under, in its precision."""
        dtype, scale, groups = self.amortizer.backbone.dtype, self.amortizer.scale, self.amortizer.groups
        down: dict[str, torch.Tensor] = {}
        up: dict[str, torch.Tensor] = {}
        probes: dict[str, torch.Tensor] = {}

        def by_layer(part: torch.Tensor, names: Sequence[str]) -> Iterator[tuple[str, torch.Tensor]]:
            return zip(names, (scale * part).to(dtype).unflatten(0, (-1, len(names))).unbind(1), strict=True)

        for group, names in groups.items():
            each = {**shared, **own}[f"down_{group}"].to(dtype)
            parts = each.unbind() if f"down_{group}" in shared else each.unflatten(0, (-1, len(names))).unbind(1)
            down |= zip(names, parts, strict=True)
            up |= by_layer(own[f"up_{group}"], names)
            if probe is not None:
                probes |= by_layer(probe[f"up_{group}"], names)
        return TaskWeights(down, up, None if probe is None else probes)

    def _probe(self, own: Tensors) -> Tensors | None:
        """Zeros beside a task's own weights at the scored positions, where the method prefills; else None."""
        if type(self.amortizer).prefill is Gradient.prefill:
            return None
        return {name: torch.zeros_like(tensor).requires_grad_() for name, tensor in own.items()}

    def held_out(
        self, streams: Streams, queries: Sequence[Sequence[Row]], points: Sequence[int]
    ) -> Iterator[torch.Tensor]:
        """Mean loss a token of each query, `[queries]` task by task, after so many steps, for each of the `points`."""
        theta = self.initial(len(queries))
        batches = list(self.batches(streams.rows))
        grid = self.grid(queries)
        for step in range(max(points) + 1):
            own, shared = self._leaves(theta)
            if step in points:
                with torch.no_grad():
                    sums, tokens = losses(self.model, grid, streams.prefixes, self.weights(own, shared))
                yield sums[tokens > 0] / tokens[tokens > 0]
            if step < len(batches):
                probe = self._probe(own)
                under = self.weights(own, shared, probe)
                means, rows = self._means(*losses(self.model, self.grid(batches[step]), streams.prefixes, under))
                found = torch.autograd.grad(means.sum(), list((probe or own).values()))
                gradients = dict(zip(own, found, strict=True))
                theta = self._refined(theta, gradients, torch.ones_like(means), rows)

    def _means(self, sums: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean loss a token over each task's rows, and their number; 0 where there are none."""
        rows = (tokens > 0).sum(1)
        return (sums / tokens.clamp(min=1)).sum(1) / rows.clamp(min=1), rows

    def _refined(self, theta: Tensors, gradients: Tensors, weight: torch.Tensor, rows: torch.Tensor) -> Tensors:
        """A step of all tasks, by gradients of their losses times `weight` `[tasks]`; tasks without rows stay."""
        whole = torch.where(weight > 0, weight, 1.0)
        share = rows / self.amortizer.config.batch_size
        each = {}
        for name, gradient in gradients.items():
            groups = len(gradient) // len(weight)
            each[name] = gradient / whole.repeat_interleave(groups).view(-1, *[1] * (gradient.dim() - 1))
        return self.learner.refined(theta, each, share)

    def _leaves(self, theta: Tensors) -> tuple[Tensors, Tensors]:
        """All tasks' own weights and the shared ones, for a gradient that ends there."""
        own = {name: tensor.detach().requires_grad_() for name, tensor in self.learner.task_weights(theta).items()}
        shared = {name: tensor.detach().requires_grad_() for name, tensor in self.learner.shared_weights().items()}
        return own, shared

    def _divergence(self, texts: Sequence[str], streams: Streams, own: Tensors, shared: Tensors) -> torch.Tensor:
        """As `Gradient.divergence`, of a text a task."""
        model = self.amortizer.prompter.model
        ids = [model.tokens(text[: 20 * UNRELATED_TOKENS])[:UNRELATED_TOKENS] for text in texts]
        # The distribution behind the last token counts too: what would stand there is never read.
        grid = self.grid([[Row((*tokens, tokens[-1]))] for tokens in ids])
        with torch.no_grad():
            plain = scored_logits(self.model, grid, streams.prefixes, None).float().log_softmax(-1)
        adapted = scored_logits(self.model, grid, streams.prefixes, self.weights(own, shared)).float().log_softmax(-1)
        each = (plain.exp() * (plain - adapted)).sum(-1)
        return torch.stack([part.mean() for part in each.split(list(map(len, ids)))]).mean()
