"""Merged states: what follows a stream comes as far as in one process, by the samples that states keep."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from conftest import LABELS, examples, log_probs

from iai_hf import AutoAmortizer, TaskSpec, TaskState
from iai_hf.backbones import Backbone
from iai_hf.errors import StateError
from iai_hf.features.heads import TEMPLATES, Head, ParametricHead
from iai_hf.features.heads.calibration import Sample, drawn
from iai_hf.task import Tensors

SIZE, CLASSES, PARTS, KEPT = 16, 12, 8, 128
HEAD = ParametricHead().requires_grad_(False)


def examples_of(seed: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Classes of several clusters, so that closed forms fall behind the logistic loss."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.nn.functional.normalize(
        torch.randn(CLASSES, 3, SIZE, generator=torch.Generator().manual_seed(42)), dim=2
    )
    targets, which = (torch.randint(most, (count,), generator=generator) for most in (CLASSES, 3))
    noisy = centres[targets, which] + 0.25 * torch.randn(count, SIZE, generator=generator)
    return torch.nn.functional.normalize(noisy, dim=1), targets


def stream(x: torch.Tensor, y: torch.Tensor, head: Head = HEAD) -> Tensors:
    names = torch.nn.functional.normalize(
        torch.randn(len(TEMPLATES), CLASSES, SIZE, generator=torch.Generator().manual_seed(7)), dim=2
    )
    tensors = head.grow(head.initial(SIZE), names)
    for first in range(0, len(x), 32):
        tensors = head.refine(tensors, x[first : first + 32], y[first : first + 32])
    return tensors


def loss(tensors: Tensors, x: torch.Tensor, y: torch.Tensor) -> float:
    return float(torch.nn.functional.cross_entropy(HEAD.logits(HEAD.prepare(tensors), x), y))


@pytest.mark.parametrize("ordered", [False, True], ids=["shuffled", "sorted by class"])
def test_what_is_lost_to_the_parts_is_made_up_from_samples_of_them(ordered: bool) -> None:
    x, y = examples_of(0, 2048)
    queries, answers = examples_of(1, 2000)
    whole = loss(stream(x, y), queries, answers)
    order = y.argsort(stable=True) if ordered else torch.arange(len(x))
    parts = list(order.chunk(PARTS))
    merged = HEAD.merge([stream(x[part], y[part]) for part in parts])
    generator = torch.Generator().manual_seed(1)
    sample = torch.cat([part[torch.randperm(len(part), generator=generator)[:KEPT]] for part in parts])
    found = HEAD.caught_up(merged, x[sample], y[sample], [len(part) for part in parts])
    plain, mended = loss(merged, queries, answers) - whole, loss(found, queries, answers) - whole
    assert plain > 0.02
    assert mended < plain / 2
    assert all(torch.equal(found[name], merged[name]) for name in HEAD.moments)


def test_beside_a_large_part_a_small_one_changes_nothing() -> None:
    x, y = examples_of(0, 2048)
    merged = HEAD.merge([stream(x[:2016], y[:2016]), stream(x[2016:], y[2016:])])
    found = HEAD.caught_up(merged, x[-96:], y[-96:], [2016.0, 1e-4])
    for name in merged:
        torch.testing.assert_close(found[name], merged[name], atol=1e-4, rtol=1e-4)


def test_what_follows_no_stream_is_merged_as_it_is() -> None:
    head, (x, y) = ParametricHead("data"), examples_of(0, 128)
    merged = head.merge([stream(x[:64], y[:64], head), stream(x[64:], y[64:], head)])
    assert head.caught_up(merged, x[:32], y[:32], [64, 64]) is merged


def sample_of(*texts: str, times: int = 1) -> Sample:
    targets = torch.arange(len(texts))
    sample = Sample.read(texts, torch.eye(8)[: len(texts)], targets)
    return Sample(**{**vars(sample), "times": sample.times * times})


def test_an_example_stands_for_those_of_its_part() -> None:
    large, small = sample_of("a", "b", "c", "d"), sample_of("e", "f", "g", "h")
    features, targets = drawn([large, small], [50, 50])
    assert sorted(targets.tolist()) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert features.shape == (8, 8)
    features, targets = drawn([large, sample_of("e", times=7)], [1000, 10])
    assert set(targets.tolist()) == {0, 1, 2, 3}  # one of a hundred is no part of five
    often = Sample(**{**vars(large), "times": torch.tensor([97, 1, 1, 1], dtype=torch.int32)})
    assert drawn([often], [100])[1].tolist() == [0]


def made(encoder: Backbone, **settings: int) -> tuple[TaskState, TaskState]:
    """Eight parts merged, and the whole."""
    amortizer = AutoAmortizer.from_pretrained("iterative", backbone=encoder, config={"weights": None, **settings})
    rows = [{**row, "input": f"{row['input']} {number}"} for number, row in enumerate(examples(192))]
    task = TaskSpec(labels=LABELS)
    parts = [amortizer.adapt(rows[i::8], task=task, chunk_size=8, progress=False) for i in range(8)]
    return amortizer.merge(parts), amortizer.adapt(rows, task=task, chunk_size=8, progress=False)


def test_states_that_keep_a_sample_use_it(encoder: Backbone) -> None:
    queries = [row["input"] for row in examples(40, seed=9)]
    mended, whole = made(encoder)
    plain, _ = made(encoder, calibration_examples=0)
    distances = [
        float((log_probs(state.predict(queries)) - log_probs(whole.predict(queries))).abs().mean())
        for state in (mended, plain)
    ]
    assert not torch.equal(mended.tensors["correction"], plain.tensors["correction"])
    assert distances[0] < distances[1]


@pytest.mark.parametrize("seed", [None, 0])
def test_the_same_rows_in_another_form_or_order_count_once(
    encoder: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture, seed: int | None
) -> None:
    rows, amortizer = examples(40), AutoAmortizer.from_pretrained("iterative", backbone=encoder)
    lines = tmp_path / "rows.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = amortizer.adapt(lines, shuffle_seed=seed, progress=False)
    table = tmp_path / "rows.csv"
    with open(table, "w", newline="") as file:
        writer = csv.DictWriter(file, ["output", "input"])
        writer.writeheader()
        writer.writerows(reversed(rows))
    turned = tmp_path / "turned.jsonl"
    turned.write_text("".join(json.dumps(row) + "\n" for row in reversed(rows)))
    for again in (table, turned):
        with pytest.raises(StateError, match="the same data"):
            amortizer.merge([read, amortizer.adapt(again, progress=False)])
        caplog.clear()
        amortizer.adapt(again, read, progress=False)
        assert "read this data already" in caplog.text
    part = amortizer.adapt([*rows[:-1], {"input": "another text", "output": "food"}], progress=False)
    assert amortizer.merge([read, part]).header.examples == 80
