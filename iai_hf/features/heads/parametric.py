"""Parametric regime: the state is a linear classifier's parameters, refined from data, from gradients, or from both.

* data: the moments of the features, and with them the experts (`experts.py`), stacked with learned weights.
* gradient: the loss's gradient and curvature, in two places. The experts' weights follow Newton's method on examples
  that they had not absorbed (`stacking.py`); a correction D takes one preconditioned step of the logistic loss a
  chunk. The preconditioner is G weighted by the mean curvature p(1-p), split over the classes by their share of it:
  Boehning's (1992) bound, made as tight as the stream allows, so a step can't overshoot by much on any chunk, and the
  steps shrink as 1/n. This is what many classes need, where closed forms fall behind logistic regression.

A chunk moves weights and correction only as far as its classes are mixed (`moments.class_coverage`); one of fewer than
8 examples is looked at together with those before it, since one alone can't tell whether a stream is sorted. At their
initial value the learned numbers weigh all experts alike, the frequency apart.

Why seven experts and no single posterior: a name prior with online Laplace (shared curvature, 8 inner steps; the best
of prior scale 10 or 20 and precision .03, .1 or .3, chosen on the very tasks) on 10 held-out tasks x 2 orders, accuracy
in % / negative log-likelihood after 16, 64, 256, 1,024 and all examples:
    experts  54.4 / 1.217, 61.1 / 1.000, 67.5 / .836, 73.2 / .730, 72.4 / .717
    Laplace  54.0 / 1.287, 60.1 / 1.097, 66.6 / .937, 72.3 / .784, 72.6 / .753
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import nn

from iai_hf.features.heads.experts import EXPERTS, INITIAL, Experts, Summary
from iai_hf.features.heads.head import Head
from iai_hf.features.heads.moments import (
    Moments,
    Values,
    class_coverage,
    class_sums,
    may_hold,
    pack,
    unpack,
    with_one,
    within_classes,
)
from iai_hf.features.heads.stacking import MEMORY_EXPONENT, prior_metric, stack, temperature_precision
from iai_hf.features.heads.unlabelled import Scores, informed, split
from iai_hf.posterior import own_curvature, residual, solve
from iai_hf.signals import Signal, takes_data, takes_gradient
from iai_hf.task import Tensors

HYPERPARAMETERS = {
    **INITIAL,
    **{f"weight_{name}": 0.3 if name == "frequency" else 0.05 for name in EXPERTS},
    **{f"precision_{name}": 30.0 for name in EXPERTS},
    "penalty": 40.0,  # precision of the correction D, in units of the features' total variance
    "share": 2.0,  # safety factor on a class's share of the curvature
    "warmup": 32.0,  # examples after which a correction step has half its size, and the curvature half its prior value
}
INFORMED = ("centred", "lda_shrunk", "ridge")  # experts that take unlabelled rows; with others too, tasks lost more
MERGE_MARGIN = 0.5  # of a log weight
USUAL_CHUNK = 32
WINDOW = 8  # examples that tell whether classes are mixed, where a chunk has fewer
ROUNDS = 4  # of a merge's pass over a sample
AHEAD = 0.25  # exponent of the number of parts by which corrections lag behind
NOISE = 0.1  # share of all examples that a sample has whose steps are half as long
PACE = 0.5  # of these steps, as the sample was read before


@dataclass(frozen=True, eq=False)
class Parameters:
    """The state. Float32, but for `names`.

    Attributes:
        counts: `[C]`.
        sums: `[C, d]`.
        gram: packed lower triangle of G = sum [x, 1] [x, 1]^T, `[(d + 1) (d + 2) / 2]`.
        correction: D^T, `[C, d + 1]`.
        curvature: summed p (1 - p), `[C]`.
        mixed: examples that came in chunks of mixed classes, `[]`.
        deviation: of the experts' log weights from their learned prior, `[K]`.
        evidence: its decayed curvature, `[K, K]`.
        names: features of the label names, float16 `[C, d]`.
        recent: classes of the newest examples, in order, int64, fewer than `WINDOW`; none behind a chunk of that size.
    """

    counts: torch.Tensor
    sums: torch.Tensor
    gram: torch.Tensor
    correction: torch.Tensor
    curvature: torch.Tensor
    mixed: torch.Tensor
    deviation: torch.Tensor
    evidence: torch.Tensor
    names: torch.Tensor
    recent: torch.Tensor = field(kw_only=True, default_factory=lambda: torch.zeros(0, dtype=torch.int64))

    @property
    def tensors(self) -> Tensors:
        """As a state keeps them, which has no `recent` where there are none, as before there was such a thing."""
        return {name: tensor for name, tensor in vars(self).items() if name != "recent" or len(tensor)}


class ParametricHead(Head):
    """logits = sum over k of exp(prior_k + deviation_k) (W_k x + b_k) + D^T [x, 1], a single linear map.

    Stacking (Yao et al. 2018, arXiv 1704.02030) of closed forms, and the parametric regime of Mittal et al. 2025, arXiv
    2510.11471: theta[i+1] = h_phi(theta[i], B[i]).

    Args:
        signal: "data" keeps the closed forms alone, "gradient" the label names' experts and the correction alone.
    """

    per_class: ClassVar[tuple[str, ...]] = ("counts", "sums", "correction", "curvature", "names")
    additive: ClassVar[tuple[str, ...]] = ("counts", "sums", "gram", "curvature", "mixed", "evidence")
    moments: ClassVar[tuple[str, ...]] = ("counts", "sums", "gram")
    stepped: ClassVar[tuple[str, ...]] = ("correction", "curvature", "mixed", "deviation", "evidence")
    estimated: ClassVar[tuple[str, ...]] = ("gram",)
    experts: ClassVar[tuple[str, ...]] = EXPERTS

    def __init__(self, signal: Signal = "both", hyperparameters: Mapping[str, float] = HYPERPARAMETERS) -> None:
        super().__init__(hyperparameters)
        self.signal = signal

    def initial(self, size: int) -> Tensors:
        kinds = len(self.experts)
        return (
            Parameters(
                counts=torch.zeros(0, dtype=torch.float32),
                sums=torch.zeros(0, size, dtype=torch.float32),
                gram=torch.zeros((size + 1) * (size + 2) // 2, dtype=torch.float32),
                correction=torch.zeros(0, size + 1, dtype=torch.float32),
                curvature=torch.zeros(0, dtype=torch.float32),
                mixed=torch.zeros((), dtype=torch.float32),
                deviation=torch.zeros(kinds, dtype=torch.float32),
                evidence=torch.zeros(kinds, kinds, dtype=torch.float32),
                names=torch.zeros(0, size, dtype=torch.float16),
            )
        ).tensors

    def refine(self, tensors: Tensors, features: torch.Tensor, targets: torch.Tensor) -> Tensors:
        before = Parameters(**tensors)
        ones = with_one(features)
        new = self.summed(features, targets, len(before.counts))
        state = replace(before, **{name: tensors[name] + moment for name, moment in new.items()})
        if not takes_gradient(self.signal):
            return state.tensors
        few = len(targets) < WINDOW
        together = torch.cat([before.recent.to(targets), targets])[-WINDOW:] if few else targets
        state = replace(state, recent=together[1 - WINDOW :] if few else before.recent[:0])
        values = self.hyperparameters(state.counts.sum(), len(state.counts))
        experts = self._experts(state, values)
        absorbed = takes_data(self.signal)
        scores = experts.held_out(features, targets) if absorbed else experts.scores(features)
        offset = ones @ before.correction.T
        present = torch.bincount(together, minlength=len(before.counts))
        trust = class_coverage(before.counts, present, float(len(together)))
        prior, precision = self._prior(values)
        deviation, evidence = stack(
            before.deviation, before.evidence, scores, offset, targets, prior, precision, trust, before.counts.sum()
        )
        state = replace(state, deviation=deviation, evidence=evidence)
        logits = scores @ (prior + deviation).exp() + offset
        return self._correct(state, ones, targets, logits, trust, experts.variance, values).tensors

    def reread(self, tensors: Tensors, features: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> Tensors:
        """As `Head.reread`; the experts' weights and the correction stay."""
        ones = with_one(features)
        weighted = weights[:, None] * ones
        own = nn.functional.one_hot(targets, len(tensors["counts"])).to(features)
        sums = own.T @ weighted
        return {**tensors, "counts": sums[:, -1], "sums": sums[:, :-1], "gram": pack(ones.T @ weighted)}

    def summed(self, features: torch.Tensor, targets: torch.Tensor, classes: int) -> dict[str, torch.Tensor]:
        ones = with_one(features)
        counts, sums = class_sums(features, targets, classes)
        return {"counts": counts, "sums": sums, "gram": pack(ones.T @ ones)}

    def without(self, tensors: Tensors, features: torch.Tensor, targets: torch.Tensor) -> Tensors:
        return super().without(_in_no_order(tensors), features, targets)

    def may_hold(self, tensors: Tensors, features: torch.Tensor, targets: torch.Tensor) -> bool:
        gone = self.summed(features, targets, len(tensors["counts"]))
        return may_hold(Moments.of(tensors), Moments.of(gone))

    def without_class(self, tensors: Tensors, number: int) -> Tensors:
        """As `Head.without_class`: of G, what the class's mean brings, and its share of the scatter about all means."""
        counts, sums, size = tensors["counts"], tensors["sums"], tensors["sums"].shape[1]
        gram, scatter = unpack(tensors["gram"], size + 1), within_classes(Moments.of(tensors))
        own = torch.cat([sums[number], counts[number : number + 1]])
        gram = gram - torch.outer(own, own) / counts[number].clamp(min=1e-6)
        gram[:size, :size] -= counts[number] / counts.sum().clamp(min=1e-6) * scatter
        empty = torch.tensor([number], device=counts.device)
        rows = {name: tensors[name].index_fill(0, empty, 0) for name in ("counts", "sums", "correction", "curvature")}
        return {**tensors, **rows, "gram": pack(gram)}

    def regrouped(self, tensors: Tensors, kept: torch.Tensor, places: torch.Tensor, classes: int) -> Tensors:
        """As `Head.regrouped`; corrections are averaged by their classes' examples."""
        counts = tensors["counts"][kept].clamp(min=1e-6)
        total = counts.new_zeros(classes).index_add(0, places, counts)
        share = torch.zeros_like(tensors["counts"]).index_copy(0, kept, counts / total[places])
        weighted = {**tensors, "correction": share[:, None] * tensors["correction"]}
        return super().regrouped(_in_no_order(weighted), kept, places, classes)

    def merge(self, parts: Sequence[Tensors]) -> Tensors:
        """As `Head.merge`; corrections are averaged by the examples that made them.

        Deviations are Gaussian posteriors under one prior N(0, P^-1), so their product over it is the posterior of all:
        (P + sum E_i)^-1 sum (P_i + E_i) d_i. The prior matters: evidence alone leaves directions open. Nor does it go
        far beyond all parts, whose Gaussians are only approximate.
        """
        merged = dict(super().merge([_in_no_order(part) for part in parts]))
        share = torch.stack([part["mixed"] for part in parts])
        share = share / share.sum().clamp(min=1)
        merged["correction"] = torch.einsum("p,pcd->cd", share, torch.stack([part["correction"] for part in parts]))
        pull = torch.stack([self._precision(part) @ part["deviation"] for part in parts]).sum(0)
        found = torch.stack([part["deviation"] for part in parts])
        least, most = found.amin(0) - MERGE_MARGIN, found.amax(0) + MERGE_MARGIN
        merged["deviation"] = torch.linalg.solve(self._precision(merged), pull).clamp(least, most)
        return merged

    def caught_up(
        self, tensors: Tensors, features: torch.Tensor, targets: torch.Tensor, sizes: Sequence[float]
    ) -> Tensors:
        """As `Head.caught_up`.

        A stream of n examples would have gone on from each part's n / P: its evidence on the experts would have faded,
        as they become others, and its correction, whose steps are of 1 / n, would have taken log P of them more. So old
        evidence fades and that of the sample comes in its place, and the correction takes such steps on the sample, the
        shorter the fewer examples it has beside all: what it adds in noise was averaged out before. Parts of different
        sizes are as many as their squared sizes tell: beside a large part a small one asks for nothing.
        """
        state, total = Parameters(**split(tensors)[0]), sum(sizes)
        parts = total**2 / max(sum(size**2 for size in sizes), 1e-6)
        if not takes_gradient(self.signal) or not len(features) or len(state.counts) < 2 or parts <= 1:
            return tensors
        values, ones = self.hyperparameters(state.counts.sum(), len(state.counts)), with_one(features)
        experts, (prior, precision) = self._experts(state, values), self._prior(values)
        scores = experts.held_out(features, targets) if takes_data(self.signal) else experts.scores(features)
        metric, share = self._metric(state, experts.variance, values)
        onehot = nn.functional.one_hot(targets, len(state.counts)).to(features)
        length = math.log(parts) * PACE / ROUNDS / (len(features) + NOISE * total) * total
        forgotten = 1 - state.evidence.new_tensor(1 / parts) ** MEMORY_EXPONENT
        remembered = (1 - forgotten) * state.evidence
        deviation, correction = state.deviation, state.correction * parts**AHEAD
        for _ in range(ROUNDS):
            offset = ones @ correction.T
            deviation, evidence = stack(
                deviation, remembered, scores, offset, targets, prior, precision, forgotten, state.counts.sum()
            )
            logits = scores @ (prior + deviation).exp() + offset
            correction = correction + length * solve(metric, ones.T @ residual(logits, onehot)).T / share[:, None]
        return {**tensors, "deviation": deviation, "evidence": evidence, "correction": correction}

    def _precision(self, tensors: Tensors) -> torch.Tensor:
        """Of a state's deviation, prior and evidence, `[K, K]`."""
        seen, classes = tensors["counts"].sum(), max(len(tensors["counts"]), 1)
        _, precision = self._prior(self.hyperparameters(seen, classes))
        return prior_metric(precision, temperature_precision(classes, seen)) + tensors["evidence"]

    def faded(self, tensors: Tensors, factor: float) -> Tensors:
        """As `Head.faded`; the correction too, as what it corrects."""
        faded = dict(super().faded(tensors, factor))
        faded["correction"] = factor * tensors["correction"]
        return faded

    def prepare(self, tensors: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
        """The linear map that the state stands for: weight `[C, d]`, bias `[C]`."""
        tensors, sample = split(tensors)
        state = Parameters(**tensors)
        values = self.hyperparameters(state.counts.sum(), len(state.counts))
        weights = (self._prior(values)[0] + state.deviation).exp()
        summary = self._summary(state)

        def scores(summary: Summary) -> Scores:
            experts = Experts(summary, values)
            return Scores(experts.weight, experts.bias)

        def together(found: Scores) -> tuple[torch.Tensor, torch.Tensor]:
            weight = torch.einsum("k,kcd->cd", weights, found.weight) + state.correction[:, :-1]
            return weight, weights @ found.bias + state.correction[:, -1]

        found = scores(summary)
        if sample is not None:
            found = informed(
                sample,
                state.counts,
                state.sums,
                found,
                lambda soft: scores(summary.with_soft(soft)),
                lambda found, features: self.logits(together(found), features),
                torch.tensor([float(name in INFORMED) for name in EXPERTS], dtype=torch.float32).to(weights),
            )
        return together(found)

    def logits(self, prepared: tuple[torch.Tensor, torch.Tensor], features: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(features, *prepared)

    def held_out(self, tensors: Tensors, features: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Logits `[n, C]` of absorbed examples, each as if it alone were left out of the moments.

        The experts' weights and the correction, which a single example hardly moves, stay.
        """
        state = Parameters(**split(tensors)[0])
        values = self.hyperparameters(state.counts.sum(), len(state.counts))
        experts = self._experts(state, values)
        scores = experts.held_out(features, targets) if takes_data(self.signal) else experts.scores(features)
        return scores @ (self._prior(values)[0] + state.deviation).exp() + with_one(features) @ state.correction.T

    def _prior(self, values: Values) -> tuple[torch.Tensor, torch.Tensor]:
        """Log weights of the experts before any evidence, and how firmly they are held, `[K]` each."""
        weights = torch.stack([values[f"weight_{name}"] for name in self.experts]).log()
        return weights, torch.stack([values[f"precision_{name}"] for name in self.experts])

    def unread(
        self, tensors: Tensors, features: torch.Tensor, targets: torch.Tensor, times: torch.Tensor
    ) -> torch.Tensor:
        """As `Head.unread`; of the correction goes the step that an example took, as large as steps were on average.

        Chunks are taken to have been of `USUAL_CHUNK`: with others the step is a little larger or smaller. The experts'
        few weights, which a single example hardly moves, stay.
        """
        return self._without_steps(tensors, super().unread(tensors, features, targets, times), features, targets, times)

    def never_read(
        self, tensors: Tensors, features: torch.Tensor, targets: torch.Tensor, times: torch.Tensor
    ) -> torch.Tensor:
        """The same one by one, as of `held_out`: a single copy of each alone is left out of the moments."""
        logits = self.held_out(tensors, features, targets)
        return self._without_steps(tensors, logits, features, targets, times)

    def _without_steps(
        self,
        tensors: Tensors,
        logits: torch.Tensor,
        features: torch.Tensor,
        targets: torch.Tensor,
        times: torch.Tensor,
    ) -> torch.Tensor:
        """Logits `[n, C]` of absorbed examples without the steps that they took themselves."""
        state = Parameters(**split(tensors)[0])
        if not bool(state.correction.any()):
            return logits
        values = self.hyperparameters(state.counts.sum(), len(state.counts))
        ones, before = with_one(features), (state.mixed - USUAL_CHUNK).clamp(min=0) / values["warmup"]
        metric, share = self._metric(state, self._experts(state, values).variance, values)
        leverage = times * (ones * solve(metric, ones.T).T).sum(1)
        onehot = nn.functional.one_hot(targets, len(state.counts)).to(logits)
        # Mean over the stream of m / (m + warmup), m being what came before a chunk.
        size = values["warmup"] * (before - before.log1p()) / state.mixed.clamp(min=1e-6)
        return logits - size * leverage[:, None] * residual(logits, onehot) / share

    def _experts(self, state: Parameters, values: Values) -> Experts:
        return Experts(self._summary(state), values)

    def _summary(self, state: Parameters) -> Summary:
        size = state.sums.shape[1]
        names = nn.functional.normalize(state.names.float(), dim=1)
        if not takes_data(self.signal):
            zeros = torch.zeros_like
            return Summary(zeros(state.counts), zeros(state.sums), names.new_zeros(size, size), names)
        return Summary(state.counts, state.sums, unpack(state.gram, size + 1)[:size, :size], names)

    def _correct(
        self,
        state: Parameters,
        ones: torch.Tensor,
        targets: torch.Tensor,
        logits: torch.Tensor,
        trust: torch.Tensor,
        variance: torch.Tensor,
        values: Values,
    ) -> Parameters:
        """One step of D on a chunk `[n, d + 1]` with its `logits` `[n, C]`."""
        curvature = state.curvature + trust * own_curvature(logits.softmax(1)).sum(0)
        mixed = state.mixed + trust * len(ones)
        metric, share = self._metric(replace(state, curvature=curvature, mixed=mixed), variance, values)
        onehot = nn.functional.one_hot(targets, len(state.counts)).to(logits)
        left = residual(logits, onehot)
        # Of many classes the chunk is what has fewer columns to solve for.
        few = len(ones) < len(state.counts)
        step = (solve(metric, ones.T) @ left if few else solve(metric, ones.T @ left)).T / share[:, None]
        size_of_step = trust * state.mixed / (state.mixed + values["warmup"])
        return replace(state, correction=state.correction + size_of_step * step, curvature=curvature, mixed=mixed)

    def _metric(self, state: Parameters, variance: torch.Tensor, values: Values) -> tuple[torch.Tensor, torch.Tensor]:
        """What preconditions a step of D, `[d + 1, d + 1]`, and each class's share of it, `[C]`."""
        size, classes = state.correction.shape[1], len(state.counts)
        curvature, second = state.curvature, unpack(state.gram, size)
        # Before much is known, the curvature is taken for the largest that it can be.
        mean_curvature = (curvature.sum() + values["warmup"] * (1 - 1 / classes)) / (state.mixed + values["warmup"])
        identity = torch.eye(size, dtype=torch.float32).to(second)
        metric = second * mean_curvature + values["penalty"] * size * variance * identity
        return metric, (values["share"] * (curvature + 1) / (curvature.sum() + classes)).clamp(max=1.0)


def _in_no_order(tensors: Tensors) -> Tensors:
    """The state without what it knows of the newest examples' order."""
    return {name: tensor for name, tensor in tensors.items() if name != "recent"}
