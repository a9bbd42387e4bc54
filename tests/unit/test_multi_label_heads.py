"""Heads of several labels a text on features that are made up, apart from texts and files."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from iai_hf.features.heads import (
    TEMPLATES,
    Head,
    MultiLabelExplicitHead,
    MultiLabelImplicitHead,
    MultiLabelParametricHead,
)
from iai_hf.features.heads.multi_label.head import label_coverage
from iai_hf.features.heads.multi_label.thresholds import BINS, REACH, calibration, tallied, thresholds
from iai_hf.task import Tensors

SIZE, LABELS = 96, 4
HEADS: dict[str, Callable[[], Head]] = {
    "parametric": MultiLabelParametricHead,
    "explicit": MultiLabelExplicitHead,
    "implicit": MultiLabelImplicitHead,
}


@pytest.fixture(params=HEADS)
def head(request: pytest.FixtureRequest) -> Head:
    return HEADS[request.param]().requires_grad_(False)


def made(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of unit length, which vary the most where they tell of labels, and the labels."""
    generator = torch.Generator().manual_seed(seed)
    signal = torch.randn(count, LABELS, generator=generator)
    rest = 0.25 * torch.randn(count, SIZE - LABELS, generator=generator)
    noise = 0.7 * torch.randn(count, LABELS, generator=generator)
    return nn.functional.normalize(torch.cat([signal, rest], 1), dim=1), signal + noise > 1


def read(head: Head, features: torch.Tensor, targets: torch.Tensor, chunk: int = 32) -> Tensors:
    names = torch.eye(SIZE)[:LABELS].expand(len(TEMPLATES), -1, -1)
    tensors = head.grow(head.initial(SIZE), names)
    for first in range(0, len(features), chunk):
        tensors = head.refine(tensors, features[first : first + chunk], targets[first : first + chunk])
    return tensors


def _quality(head: Head, tensors: Tensors, queries: torch.Tensor, right: torch.Tensor) -> tuple[float, float]:
    """Macro-F1, and the mean negative log-likelihood of a label."""
    prepared = head.prepare(tensors)
    logits = head.logits(prepared, queries)
    found = logits > prepared.thresholds
    f1 = 2 * (found & right).sum(0) / (found.sum(0) + right.sum(0)).clamp(min=1)
    return float(f1.mean()), float(nn.functional.binary_cross_entropy_with_logits(logits, right.float()))


def test_labels_in_another_order_are_answered_alike(head: Head) -> None:
    features, targets = made(200)
    order = torch.tensor([2, 0, 3, 1])
    names = torch.eye(SIZE)[:LABELS].expand(len(TEMPLATES), -1, -1)
    first, second = (head.grow(head.initial(SIZE), some) for some in (names, names[:, order]))
    first, second = head.refine(first, features, targets), head.refine(second, features, targets[:, order])
    queries = made(20, seed=1)[0]
    found, wanted = (head.logits(head.prepare(tensors), queries) for tensors in (second, first))
    torch.testing.assert_close(found, wanted[:, order], atol=1e-3, rtol=1e-3)


def test_the_likeliest_answers_are_right(head: Head) -> None:
    queries, right = made(2000, seed=1)
    found = head.logits(head.prepare(read(head, *made(600))), queries).sigmoid()
    least, most = found.flatten().quantile(torch.tensor([0.5, 0.9]))
    assert float(right[found > most].float().mean()) > 0.7
    assert float(right[found < least].float().mean()) < 0.2
    assert float(found[found > most].mean()) > 0.4
    assert float(found[found < least].mean()) < 0.2


@pytest.mark.parametrize("chunk", [1, 2])
def test_small_chunks_answer_as_large_ones(head: Head, chunk: int) -> None:
    examples, (queries, right) = made(400), made(2000, seed=1)
    small, large = (_quality(head, read(head, *examples, size), queries, right) for size in (chunk, 32))
    assert large[0] > 0.5
    assert small[0] == pytest.approx(large[0], abs=0.03)
    assert small[1] == pytest.approx(large[1], abs=0.02)


def test_held_out_answers_count_in_chunks_of_any_size(head: Head) -> None:
    features, targets = made(200)
    tallies = [read(head, features, targets, chunk).get("tally") for chunk in (1, 2, 40)]
    if tallies[0] is None:
        assert isinstance(head, MultiLabelImplicitHead)  # which keeps its examples
        return
    share = targets.float().mean(0)
    for tally in tallies:
        assert tally is not None
        assert float(tally.sum((1, 2)).min()) > 80  # half of all, as older ones fade
        torch.testing.assert_close(tally[:, 1].sum(1) / tally.sum((1, 2)), share, atol=0.1, rtol=0)


def test_a_chunk_of_texts_that_are_alike_is_trusted_the_less_the_larger_it_is() -> None:
    counts, alike = torch.tensor([50.0, 20.0]), torch.tensor([[True, False]])
    found = [float(label_coverage(counts, torch.tensor(100.0), alike.expand(size, -1))) for size in (1, 2, 32)]
    assert found == pytest.approx([1, 1 / 4, 1 / 1024])
    mixed = torch.tensor([[True, False], [False, True]]).repeat(16, 1)
    assert float(label_coverage(counts, torch.tensor(100.0), mixed)) == pytest.approx(1)


def test_calibration_finds_scale_and_shift() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20_000, 3, generator=generator)
    right = torch.rand(logits.shape, generator=generator) < (0.5 * logits - 1).sigmoid()
    scale, shift = calibration(tallied(logits, right))
    assert float(scale) == pytest.approx(0.5, abs=0.05)
    assert float(shift) == pytest.approx(-1.0, abs=0.1)
    scale, shift = calibration(torch.zeros(3, 2, BINS))
    assert (float(scale), float(shift)) == (1.0, 0.0)
    far = calibration(tallied(torch.full((50, 2), 2 * REACH), torch.ones(50, 2, dtype=torch.bool)))
    assert all(bool(found.isfinite()) for found in far)


def test_observations_keep_rare_labels_within_the_budget() -> None:
    head = MultiLabelImplicitHead(budget=40).requires_grad_(False)
    features, _ = made(300)
    targets = torch.zeros(300, LABELS, dtype=torch.bool)
    targets[:, 0], targets[3:8, 1], targets[::60, 2] = True, True, True
    tensors = read(head, features, targets)
    assert len(tensors["targets"]) <= 40
    assert tensors["targets"].sum(0)[1:].tolist() == [5, 5, 0]
    assert (float(tensors["examples"]), tensors["counts"].tolist()) == (300, [300, 5, 5, 0])
    assert tensors["targets"].dtype == torch.bool


def test_observations_left_out_are_answered_as_if_they_had_not_been_read() -> None:
    head = MultiLabelImplicitHead().requires_grad_(False)
    features, targets = made(60)
    prepared = head.prepare(read(head, features, targets))
    found, whole, wanted = head._held_out(prepared), head._refined(prepared, features), []
    for row in range(12):
        rest = torch.arange(60) != row
        left = head.prepare(read(head, features[rest], targets[rest]))
        wanted.append(head._refined(left, features[row : row + 1])[0])
    exact = torch.stack(wanted)
    assert float((found[:12] - exact).abs().mean()) < 0.5 * float((whole[:12] - exact).abs().mean())


def test_a_text_given_again_with_other_labels_is_kept_beside_the_first() -> None:
    head = MultiLabelImplicitHead().requires_grad_(False)
    features, targets = made(10)
    tensors = read(head, features, targets)
    assert len(head.refine(tensors, features[:4], targets[:4])["targets"]) == 10
    assert len(head.refine(tensors, features[:4], ~targets[:4])["targets"]) == 14


def test_a_threshold_is_not_set_by_a_single_bin() -> None:
    tally = torch.zeros(1, 2, BINS)
    tally[0, 1, 50] = 100  # above bins without any, where each threshold has an F1 of .67
    tally[0, :, 44] = torch.tensor([85.0, 60.0])  # here alone it is .72,
    tally[0, :, 43] = torch.tensor([400.0, 40.0])  # and next to it .5
    bins = (thresholds(tally, torch.tensor([200.0])) + REACH) * BINS / (2 * REACH)
    assert 45 <= float(bins) <= 50
