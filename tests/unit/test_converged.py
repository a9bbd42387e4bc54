"""Regression beside the stream's linear map: it counts where left-out examples tell for it, and follows the state."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import VOCABULARY, WORDS, log_probs

from iai_hf import AutoAmortizer, Chunk, TaskSpec, TaskState
from iai_hf.backbones import Backbone
from iai_hf.errors import ConfigError
from iai_hf.features.heads import converged as module
from iai_hf.features.heads.calibration import Sample
from iai_hf.features.heads.converged import FEWEST_CLASSES, Compact, converged
from iai_hf.features.iterative import Iterative
from iai_hf.features.sampled import sample_of

ALL_WORDS = [word for words in WORDS.values() for word in words]
LABELS = tuple(f"{ALL_WORDS[i]} {ALL_WORDS[-1 - i % 7]}" for i in range(FEWEST_CLASSES))
TASK = TaskSpec(labels=LABELS)


def examples(count: int, seed: int = 0, labels: tuple[str, ...] = LABELS) -> list[dict[str, str]]:
    """Texts of their label's words and any others, no two alike."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for number in range(count):
        label = labels[number % len(labels)]
        others = [VOCABULARY[int(i)] for i in torch.randint(len(VOCABULARY), (5,), generator=generator)]
        rows.append({"input": " ".join([*others, label, str(number)]), "output": label})
    return [rows[int(i)] for i in torch.randperm(count, generator=generator)]


ROWS = examples(128)
QUERIES = [row["input"] for row in examples(40, seed=9)]


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts, though features of a random encoder tell nothing for it."""
    monkeypatch.setattr(module, "EVIDENCE", -1e9)
    monkeypatch.setattr(module, "_weighed", lambda logits, targets: torch.tensor([0.8, 0.4]))


def made(encoder: Backbone, **settings: object) -> Iterative:
    amortizer = AutoAmortizer.from_pretrained("iterative", backbone=encoder, config={"weights": None, **settings})
    assert isinstance(amortizer, Iterative)
    return amortizer


def adapt(amortizer: Iterative, rows: list[dict[str, str]], chunk_size: int = 16) -> TaskState:
    return amortizer.adapt(rows, task=TASK, chunk_size=chunk_size, progress=False)


def kept(state: TaskState) -> Compact:
    sample = sample_of(state.tensors)
    assert isinstance(sample, Compact)
    return sample


def same(one: Sample, other: Sample) -> bool:
    return all(torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items())


def clusters(count: int, seed: int, noise: float, classes: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    """Classes of two clusters each, which closed forms around means tell apart less well than regression."""
    centres = torch.randn(classes, 2, 48, generator=torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(count) % classes
    which = torch.randint(2, (count,), generator=generator)
    drawn = centres[targets, which] + noise * torch.randn(count, 48, generator=generator)
    return torch.nn.functional.normalize(drawn, dim=1), targets


def test_regression_is_fitted_until_it_no_longer_improves() -> None:
    features, targets = clusters(120, 0, 0.5)
    weights = torch.ones(120)
    weights[targets == 3] = 0
    found = module._fitted(features, targets, weights, 20).requires_grad_()
    ones = torch.cat([features, torch.ones(120, 1)], 1)[weights > 0]
    logits = (ones @ found.T).index_fill(1, torch.tensor([3]), -torch.inf)
    loss = torch.nn.functional.cross_entropy(logits, targets[weights > 0], reduction="sum")
    (loss + module.RIDGE / 2 * found.square().sum()).backward()
    assert found.grad is not None
    assert float(found.grad.norm()) < 0.02 * float(found.detach().norm())
    assert not bool(found[3].any())  # of a class that no example is of nothing is said


def test_it_counts_where_left_out_examples_tell_for_it() -> None:
    features, targets = clusters(200, 0, 0.4)
    sample = Compact.read([str(number) for number in range(200)], features, targets)
    right = torch.nn.functional.one_hot(targets, 20).float()
    weak = 0.5 * right
    found = converged(sample, 20, lambda x, y, times: weak)
    assert found is not None
    assert found.shares[1] > 0
    shuffled = targets[torch.randperm(200, generator=torch.Generator().manual_seed(0))]
    wrong = Compact.read([str(number) for number in range(200)], features, shuffled)
    assert converged(wrong, 20, lambda x, y, times: torch.zeros(200, 20)) is None
    few = Compact.read([str(number) for number in range(60)], features[:60], targets[:60])
    assert converged(few, 20, lambda x, y, times: 0 * right[:60]) is None
    assert converged(sample, FEWEST_CLASSES - 1, lambda x, y, times: weak) is None


def test_eight_bits_are_as_good_as_the_features(encoder: Backbone) -> None:
    features, targets = clusters(50, 1, 1.0)
    sample = Compact.read([str(number) for number in range(50)], 3 * features, targets)
    order = Sample.read([str(number) for number in range(50)], features, targets)
    assert sample.features.dtype == torch.int8
    assert float((sample.vectors - 3 * features).norm() / (3 * features).norm()) < 0.01
    again = Compact.from_sample(sample)
    assert same(again, sample)
    zeros = Compact.read(["a"], torch.zeros(1, 48), targets[:1])
    assert not bool(zeros.vectors.any())
    assert torch.equal(order.priorities, sample.priorities)


@pytest.mark.usefixtures("counting")
def test_answers_are_others_with_it_and_the_state_else_the_same(encoder: Backbone) -> None:
    amortizer, plain = made(encoder), made(encoder, converged_examples=0)
    state, without = adapt(amortizer, ROWS), adapt(plain, ROWS)
    head = {name for name in state.tensors if "." not in name}
    assert all(torch.equal(state.tensors[name], without.tensors[name]) for name in head)
    assert len(kept(state).times) == len(ROWS)
    assert type(sample_of(without.tensors)) is Sample
    assert not torch.allclose(log_probs(amortizer.predict(state, QUERIES)), log_probs(plain.predict(without, QUERIES)))


@pytest.mark.usefixtures("counting")
def test_a_stream_its_parts_and_a_resumed_one_keep_the_same_and_answer_the_same(
    encoder: Backbone, tmp_path: Path
) -> None:
    amortizer = made(encoder)
    whole = adapt(amortizer, ROWS)
    half = amortizer.adapt(ROWS, task=TASK, chunk_size=16, max_examples=64, progress=False)
    half = TaskState.from_pretrained(half.save_pretrained(tmp_path / "half"))
    resumed = amortizer.adapt(ROWS, half, chunk_size=16, resume=True, progress=False)
    assert all(torch.equal(tensor, whole.tensors[name]) for name, tensor in resumed.tensors.items())
    assert torch.equal(log_probs(amortizer.predict(resumed, QUERIES)), log_probs(amortizer.predict(whole, QUERIES)))
    assert same(kept(adapt(amortizer, ROWS, chunk_size=5)), kept(whole))
    merged = amortizer.merge([adapt(amortizer, ROWS[i::2]) for i in (0, 1)])
    assert same(kept(merged), kept(whole))
    small = made(encoder, converged_examples=40, calibration_examples=24)
    parts = small.merge([adapt(small, ROWS[i::2]) for i in (0, 1)])
    assert same(kept(parts), kept(adapt(small, ROWS)))
    assert len(kept(parts).times) == 40


@pytest.mark.usefixtures("counting")
def test_states_of_many_and_of_few_classes_are_answered_side_by_side(encoder: Backbone) -> None:
    amortizer = made(encoder)
    states = [
        adapt(amortizer, ROWS),
        amortizer.adapt(examples(32, 1, LABELS[:3]), task=TaskSpec(labels=LABELS[:3]), progress=False),
    ]
    together = amortizer.predict_each([states[i % 2] for i in range(8)], QUERIES[:8])
    for number, found in enumerate(together):
        alone = amortizer.predict(states[number % 2], QUERIES[number : number + 1])
        torch.testing.assert_close(log_probs(found), log_probs(alone), atol=1e-5, rtol=1e-4)


@pytest.mark.usefixtures("counting")
def test_what_is_forgotten_leaves_no_trace_in_it(encoder: Backbone) -> None:
    amortizer = made(encoder, signal="data")
    left, never = amortizer.forget(adapt(amortizer, ROWS), ROWS[5:25]), adapt(amortizer, ROWS[:5] + ROWS[25:])
    assert same(kept(left), kept(never))
    found, expected = (log_probs(amortizer.predict(state, QUERIES)) for state in (left, never))
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=1e-3)
    fewer = amortizer.merge_labels(adapt(amortizer, ROWS), [*LABELS[:2]], "both")
    assert len(kept(fewer).times) == len(ROWS)
    assert log_probs(amortizer.predict(fewer, QUERIES)).isfinite().all()
    assert amortizer.update(fewer, Chunk(("ball",), ("both",))).header.examples == len(ROWS) + 1


def test_it_begins_where_a_stream_comes_to_know_many_labels(encoder: Backbone) -> None:
    amortizer = made(encoder)
    rows = sorted(ROWS, key=lambda row: LABELS.index(row["output"]))
    state = amortizer.adapt(rows, chunk_size=8, progress=False)
    assert len(kept(state).times) == len(ROWS)
    assert type(sample_of(amortizer.adapt(rows[:64], chunk_size=8, progress=False).tensors)) is Sample


@pytest.mark.usefixtures("counting")
def test_its_share_counts_in_stated_errors_and_exports(encoder: Backbone, tmp_path: Path) -> None:
    amortizer = made(encoder, calibration_examples=100)
    state = adapt(amortizer, ROWS)
    answers = amortizer.predict(state, QUERIES, coverage=0.8)
    assert answers.sets is not None
    assert answers.outputs == amortizer.predict(state, QUERIES).outputs
    assert len(amortizer.scored(state).labels) == 100
    assert all(output in names for output, names in zip(answers.outputs, answers.sets, strict=True))
    linear = amortizer.linear_classifier(state)
    logits = encoder.features(QUERIES, None).vectors @ linear.weight.T + linear.bias
    torch.testing.assert_close(
        logits.log_softmax(1), log_probs(amortizer.predict(state, QUERIES)), atol=1e-4, rtol=1e-4
    )


def test_states_without_it_answer_as_they_did(encoder: Backbone) -> None:
    others: list[dict[str, object]] = [{"depth": 1, "rank": 2, "steps": 0.0}, {"watch": True}, {"half_life": 50}]
    for settings in others:
        state = adapt(made(encoder, **settings), ROWS[:64])
        assert sample_of(state.tensors) is None
    before = adapt(made(encoder, converged_examples=0), ROWS)
    config = {name: value for name, value in before.header.config.items() if name != "converged_examples"}
    older = TaskState(before.tensors, replace(before.header, config=config))
    amortizer = AutoAmortizer.for_state(older, encoder)
    expected = made(encoder, converged_examples=0).predict(before, QUERIES)
    assert torch.equal(log_probs(amortizer.predict(older, QUERIES)), log_probs(expected))
    later = amortizer.adapt(examples(32, seed=3), older, chunk_size=16, progress=False)
    assert type(sample_of(later.tensors)) is Sample
    with pytest.raises(ConfigError, match="converged_examples is -1; expected 0 or more"):
        made(encoder, converged_examples=-1)


def test_without_a_sample_from_the_start_nothing_is_kept_for_regression(encoder: Backbone) -> None:
    amortizer = made(encoder, calibration_examples=0)
    assert sample_of(amortizer.adapt(ROWS, chunk_size=16, progress=False).tensors) is None


def test_a_state_of_77_labels_is_at_most_a_megabyte(encoder: Backbone) -> None:
    size, labels, amortizer = 384, 77, made(encoder)
    head = amortizer.head.grow(amortizer.head.initial(size), torch.randn(4, labels, size))
    features = torch.randn(2000, size)
    sample = Compact.read([str(number) for number in range(2000)], features, torch.arange(2000) % labels)
    limit = amortizer.limit(Compact)
    tensors = {**head, **sample.joined([], limit).tensors}
    assert limit == 1000
    assert sum(tensor.nbytes for tensor in tensors.values()) <= 2**20
