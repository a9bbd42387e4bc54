"""Sorted data are told early, and data in a random order hardly ever."""

from __future__ import annotations

import itertools
import math
import random
import time

import pytest
from conftest import examples

from iai_hf import AutoAmortizer
from iai_hf.backbones import Backbone
from iai_hf.errors import DataError
from iai_hf.order import LabelOrder, log_probability


def noticed(labels: list[int], chunk: int) -> int | None:
    """After how many labels it is told that they are sorted."""
    order = LabelOrder()
    for first in range(0, len(labels), chunk):
        if order.read(labels[first : first + chunk]):
            return min(first + chunk, len(labels))
    return None


@pytest.mark.parametrize("counts", [(3, 3), (4, 2, 1), (2, 2, 2), (5, 1), (3, 1, 1, 1)])
def test_no_random_order_is_likelier_to_have_so_few_runs_than_the_bound_says(counts: tuple[int, ...]) -> None:
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    orders = [
        1 + sum(one != other for one, other in itertools.pairwise(order)) for order in itertools.permutations(labels)
    ]
    for runs in range(1, len(labels) + 1):
        share = sum(found <= runs for found in orders) / len(orders)
        assert math.exp(log_probability(counts, runs)) >= share - 1e-12
    fewest = len(counts)  # of which each order is counted once
    share = sum(found == fewest for found in orders) / len(orders)
    assert math.exp(log_probability(counts, fewest)) == pytest.approx(share)


def test_a_random_order_is_not_taken_for_a_sorted_one() -> None:
    draw = random.Random(0)
    for _ in range(1500):
        classes, size = draw.choice([2, 3, 20, 150]), draw.choice([100, 1000])
        weights = [draw.random() ** draw.choice([1, 4, 10]) + 1e-4 for _ in range(classes)]
        labels = draw.choices(range(classes), weights, k=size)
        assert noticed(labels, draw.choice([1, 8, 64])) is None


@pytest.mark.parametrize("chunk", [1, 8, 64])
@pytest.mark.parametrize("classes", [2, 3, 77])
def test_one_label_after_the_other_is_told_soon_after_the_second(classes: int, chunk: int) -> None:
    labels = [label for label in range(classes) for _ in range(64)]
    assert 64 < (noticed(labels, chunk) or 0) <= 128
    grouped = [label for _ in range(40) for label in (0, 1) for _ in range(8)]
    assert (noticed(grouped, chunk) or math.inf) <= 128


def test_what_is_sorted_behind_much_that_is_mixed_is_told_at_once() -> None:
    mixed = [random.Random(0).randrange(20) for _ in range(20_000)]
    began = time.process_time()
    assert noticed(mixed + [label for label in range(20) for _ in range(4000)], 64)
    assert time.process_time() - began < 2


def test_a_few_of_a_rare_label_beside_one_another_are_nothing() -> None:
    assert noticed([0] * 500 + [1] * 2 + [0] * 500, 1) is None


def test_a_stream_tells_that_it_is_sorted(encoder: Backbone, caplog: pytest.LogCaptureFixture) -> None:
    amortizer, rows = AutoAmortizer.from_pretrained("iterative", backbone=encoder), examples(256)
    amortizer.adapt(rows, progress=False)
    assert "runs" not in caplog.text
    amortizer.adapt(sorted(rows, key=lambda row: row["output"]), progress=False, chunk_size=16)
    assert caplog.text.count("shuffle_seed") == 1


def test_one_label_alone_of_more_that_come_behind_is_told_so(encoder: Backbone) -> None:
    amortizer, rows = AutoAmortizer.from_pretrained("iterative", backbone=encoder), examples(64)
    rows.sort(key=lambda row: row["output"])
    with pytest.raises(DataError, match="others come behind"):
        amortizer.adapt(rows, progress=False, max_examples=8)
