"""Fast weights: what a state that reaches into the backbone promises beyond the contract."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny_backbones
import torch
from conftest import LABELS, examples, log_probs

from iai_hf import AutoAmortizer, Chunk, TaskSpec, TaskState
from iai_hf.backbones import Backbone, load_backbone
from iai_hf.backbones.adapter import FeatureAdapter
from iai_hf.backbones.low_rank import LowRank
from iai_hf.card import state_card
from iai_hf.errors import BackboneError, ConfigError, DataError
from iai_hf.features.adapted_features import ADAPTED, EVIDENCE, RETAINED, WEIGHTS
from iai_hf.features.fast_weights import Descent, Evidence, FastWeights, Retained, Schedule, batches
from iai_hf.features.iterative import Iterative
from iai_hf.features.peft_export import stacked

SETTINGS = {"depth": "auto", "rank": 2, "steps": 2.0, "learning_rate": 3e-3, "weights": None}


def deep(backbone: Backbone, **settings: Any) -> Iterative:
    amortizer = AutoAmortizer.from_pretrained("iterative", backbone=backbone, config={**SETTINGS, **settings})
    assert isinstance(amortizer, Iterative)
    return amortizer


def chunk(count: int, seed: int = 0) -> Chunk:
    rows = examples(count, seed)
    return Chunk(tuple(row["input"] for row in rows), tuple(row["output"] for row in rows))


def random_weights(backbone: Backbone, seed: int) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    sizes = backbone.linear_layers
    return LowRank(
        {name: torch.randn(2, inputs, generator=generator) for name, (inputs, _) in sizes.items()},
        {name: 0.05 * torch.randn(outputs, 2, generator=generator) for name, (_, outputs) in sizes.items()},
    )


@pytest.fixture(params=["encoder", "causal"])
def backbone(request: pytest.FixtureRequest) -> Backbone:
    found: Backbone = request.getfixturevalue(request.param)
    return found


def test_the_floor_is_the_shallow_state(backbone: Backbone) -> None:
    shallow = AutoAmortizer.from_pretrained("iterative", backbone=backbone, config={"weights": None})
    amortizer, rows = deep(backbone), examples(50)
    # The parts in which a deep state absorbs a chunk are its own.
    plain, state = shallow.init_state(TaskSpec(labels=LABELS)), amortizer.init_state(TaskSpec(labels=LABELS))
    for first, last in ((0, 8), (8, 16), (16, 32), (32, 50)):
        taken = rows[first:last]
        part = Chunk(tuple(row["input"] for row in taken), tuple(row["output"] for row in taken))
        plain, state = shallow.update(plain, part), amortizer.update(state, part)
    kept = {name: tensor for name, tensor in plain.tensors.items() if not name.startswith("calibration.")}
    assert len(kept) > 5
    for name, tensor in kept.items():
        assert torch.equal(state.tensors[name], tensor), name


def test_before_any_example_it_answers_as_the_shallow_one(backbone: Backbone) -> None:
    shallow = AutoAmortizer.from_pretrained("iterative", backbone=backbone, config={"weights": None})
    amortizer, task = deep(backbone), TaskSpec(labels=LABELS)
    queries = [row["input"] for row in examples(5, 3)]
    mine = amortizer.predict(amortizer.init_state(task), queries).log_probs
    theirs = shallow.predict(shallow.init_state(task), queries).log_probs
    assert mine is not None
    assert theirs is not None
    assert torch.allclose(mine, theirs, atol=1e-4)


def test_without_steps_adapted_features_are_the_frozen_ones(encoder: Backbone) -> None:
    amortizer = deep(encoder, steps=0.0, learning_rate=1e-12)
    state = amortizer.update(amortizer.init_state(), chunk(30))
    assert torch.allclose(state.tensors["sums"], state.tensors[ADAPTED + "sums"], atol=1e-3)


def test_steps_lower_the_loss_that_they_are_taken_on(encoder: Backbone) -> None:
    weights, rows = FastWeights(encoder, None, 2), examples(48)
    texts, targets = [row["input"] for row in rows], torch.tensor([LABELS.index(row["output"]) for row in rows])
    head = torch.randn(3, encoder.hidden_size, generator=torch.Generator().manual_seed(0))

    def logits(part: Sequence[str], low_rank: LowRank) -> torch.Tensor:
        return 3 * encoder.differentiable_features(part, None, (low_rank,)).vectors @ head.T

    def descended() -> Any:
        descent = Descent(weights, start, 30, 3e-3)
        for batch in itertools.islice(batches(48, 16, seed=0), 30):
            descent.step(logits([texts[i] for i in batch], descent.low_rank), targets[batch], torch.ones(16))
        return descent.tensors

    def loss(tensors: Any) -> float:
        with torch.no_grad():
            return float(torch.nn.functional.cross_entropy(logits(texts, weights.low_rank(tensors)), targets))

    start = weights.initial()
    moved, again = descended(), descended()
    assert loss(moved) < loss(start) - 0.2
    assert all(torch.equal(moved[name], again[name]) for name in moved)
    assert all(tensor.dtype == torch.float16 for tensor in moved.values())


def test_features_under_weights_are_those_of_the_merged_model(backbone: Backbone) -> None:
    texts = [row["input"] for row in examples(6)]
    weights = [random_weights(backbone, seed) for seed in (1, 2)]
    merged = [FeatureAdapter(each, backbone.fingerprint).merged(backbone).features(texts).vectors for each in weights]
    plain = backbone.features(texts).vectors
    assert torch.allclose(backbone.features(texts, None, weights[:1]).vectors, merged[0], atol=1e-4)
    assert not torch.allclose(merged[0], merged[1], atol=1e-2)
    mixed = backbone.features(texts, None, weights, [0, 1, -1, 1, 0, -1]).vectors
    expected = torch.stack([(merged[0], merged[1], plain)[which][i] for i, which in enumerate((0, 1, 2, 1, 0, 2))])
    assert torch.allclose(mixed, expected, atol=1e-4)


def test_gradients_are_those_of_finite_differences(encoder: Backbone) -> None:
    weights = FastWeights(encoder, None, 2)
    tensors = {name: tensor.float() for name, tensor in weights.initial().items()}
    name = next(name for name in tensors if name.startswith("up_"))
    texts = [row["input"] for row in examples(3)]
    direction = torch.randn(3, encoder.hidden_size, generator=torch.Generator().manual_seed(0))

    def value(up: torch.Tensor) -> torch.Tensor:
        low_rank = weights.low_rank({**tensors, name: up})
        return (encoder.differentiable_features(texts, None, (low_rank,)).vectors * direction).sum()

    start = tensors[name].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(start), start)
    step = torch.randn(start.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = (value(start + 1e-2 * step) - value(start - 1e-2 * step)) / 2e-2
    assert float(found) == pytest.approx(float((gradient * step).sum()), rel=0.05)


def test_states_are_answered_in_one_pass_as_alone(encoder: Backbone) -> None:
    amortizer = deep(encoder)
    states = [amortizer.update(amortizer.init_state(), chunk(40, seed)) for seed in (1, 2)]
    states.append(amortizer.init_state(TaskSpec(labels=("x", "y"))))
    queries = [row["input"] for row in examples(3, 5)]
    together = amortizer.predict_each(states, queries)
    for state, query, found in zip(states, queries, together, strict=True):
        alone = amortizer.predict(state, [query])
        assert found.labels == alone.labels
        assert torch.allclose(log_probs(found), log_probs(alone), atol=1e-3)


def test_a_depth_that_the_backbone_does_not_have_is_refused(encoder: Backbone) -> None:
    with pytest.raises(BackboneError, match="expected 0 to 2"):
        deep(encoder, depth=9).init_state()
    for wrong in (-1, "deep"):
        with pytest.raises(ConfigError, match="depth is"):
            deep(encoder, depth=wrong)


def test_depth_counts_from_the_last_layer(encoder: Backbone) -> None:
    assert {name.split(".")[2] for name in FastWeights(encoder, 1, 2).sizes} == {"1"}
    assert {name.split(".")[2] for name in FastWeights(encoder, None, 2).sizes} == {"0", "1"}


def test_a_state_of_another_depth_is_refused(encoder: Backbone) -> None:
    from iai_hf.errors import StateError

    state = deep(encoder, depth=1).init_state()
    with pytest.raises(StateError):
        deep(encoder).predict(state, ["a ball"])


@pytest.mark.parametrize("half_life", [None, 20])
def test_retained_examples_do_not_depend_on_chunks(half_life: int | None) -> None:
    texts, targets = [f"text number {i}" for i in range(200)], list(range(200))
    whole = Retained().joined(Retained.chunk(texts, targets, 0), 500, half_life)
    parts = Retained()
    for first in range(0, 200, 13):
        new = Retained.chunk(texts[first : first + 13], targets[first : first + 13], first)
        parts = parts.joined(new, 500, half_life)
    if half_life is None:
        assert parts == whole
    assert 0 < sum(len(text.encode()) for text in parts.texts) <= 500
    assert list(parts.targets) == sorted(parts.targets)


def test_retained_examples_are_a_uniform_sample_or_recent_ones() -> None:
    texts, targets = [f"text number {i:04}" for i in range(2000)], [0] * 2000
    plain = Retained().joined(Retained.chunk(texts, targets, 0), 3000)
    recent = Retained().joined(Retained.chunk(texts, targets, 0), 3000, 100)
    mean = sum(example.place for example in plain.examples) / len(plain)
    assert 850 < mean < 1150
    assert sum(example.place for example in recent.examples) / len(recent) > 1700


def test_what_is_retained_is_read_back() -> None:
    texts = ["plain", "Zürich 東京 🙂", "", "x" * 5000, "\udcff broken"]
    kept = Retained.chunk(texts, [0, 1, 2, 3, 4], 10)
    again = Retained.of(kept.tensors())
    assert again == kept
    assert again.texts[:3] == texts[:3]
    assert len(again.texts[3]) == 1024
    assert len(Retained.of(Retained().tensors())) == 0


def test_a_state_keeps_to_its_budget(encoder: Backbone) -> None:
    amortizer = deep(encoder, retained_bytes=300, steps=0.0)
    state = amortizer.adapt(examples(300), progress=False)
    assert state.tensors[RETAINED + "texts"].numel() <= 300
    assert float(state.tensors[ADAPTED + "counts"].sum()) == 300


def test_evidence_takes_the_features_that_were_right() -> None:
    targets = torch.arange(40) % 2
    right = 4.0 * torch.nn.functional.one_hot(targets, 2).float()
    seen = torch.tensor(16.0)
    assert Evidence.none().after(-right, right, targets, seen).prefers_adapted
    assert not Evidence.none().after(right, -right, targets, seen).prefers_adapted


def test_evidence_of_overconfident_logits_cools_them() -> None:
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(2, (200,), generator=generator)
    said = torch.where(torch.rand(200, generator=generator) < 0.7, targets, 1 - targets)
    logits = 10.0 * torch.nn.functional.one_hot(said, 2).float()
    evidence = Evidence.none()
    for part in range(0, 200, 20):
        rows = slice(part, part + 20)
        evidence = evidence.after(torch.zeros(20, 2), logits[rows], targets[rows], torch.tensor(float(part)))
    assert float(10 * evidence.log_temperature.exp()) < 3


@pytest.mark.parametrize("sizes", [(64,), (16, 48), (1,) * 64])
def test_the_schedule_does_not_depend_on_parts(sizes: Sequence[int]) -> None:
    schedule, seen, total = Schedule(steps=5.0, rate=1e-3, batch_size=32), 0, 0
    for size in sizes:
        total += schedule.between(seen, seen + size)
        seen += size
    assert total == 40


def test_the_rate_settles_on_a_long_stream() -> None:
    schedule = Schedule(steps=5.0, rate=1e-3, batch_size=32)
    assert schedule.rate_after(0) == schedule.rate_after(1024) == 1e-3
    assert schedule.rate_after(4096) == pytest.approx(5e-4)


def test_every_example_is_trained_on_though_few_are_retained(
    encoder: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    amortizer = deep(encoder, retained_bytes=200)
    seen: list[str] = []
    read = Backbone.differentiable_features

    def noted(self: Backbone, texts: Sequence[str], *args: Any) -> Any:
        seen.extend(texts)
        return read(self, texts, *args)

    monkeypatch.setattr(Backbone, "differentiable_features", noted)
    rows = examples(96)
    state = amortizer.adapt(rows, chunk_size=32, progress=False)
    assert len(state.tensors[RETAINED + "lengths"]) < 10
    assert {row["input"] for row in rows} <= set(seen)


@pytest.mark.parametrize("max_tokens", [None, 3])
def test_a_text_that_is_learned_from_as_it_comes_is_absorbed_as_it_was_before(
    encoder: Backbone, max_tokens: int | None
) -> None:
    amortizer = deep(encoder, retained_bytes=1, steps=1e-9, max_tokens=max_tokens)
    state = amortizer.update(amortizer.init_state(), chunk(8))
    assert torch.allclose(state.tensors[ADAPTED + "gram"], state.tensors["gram"], atol=1e-3)
    start = FastWeights(encoder, None, 2).initial()
    assert any(not torch.equal(state.tensors[WEIGHTS + name], tensor) for name, tensor in start.items())


def test_with_fewer_examples_than_half_the_classes_the_head_on_frozen_features_answers(encoder: Backbone) -> None:
    task = TaskSpec(labels=tuple(f"class {number}" for number in range(40)))
    plain = AutoAmortizer.from_pretrained("iterative", backbone=encoder, config={"weights": None})
    reaching = deep(encoder)
    queries = [row["input"] for row in examples(6, 3)]
    for count, same in ((8, True), (60, False)):
        rows = Chunk(tuple(row["input"] for row in examples(count)), tuple(task.labels[i % 40] for i in range(count)))
        floor, state = (amortizer.update(amortizer.init_state(task), rows) for amortizer in (plain, reaching))
        moved = any(bool(tensor.any()) for name, tensor in state.tensors.items() if name.startswith(WEIGHTS + "up"))
        assert moved != same
        if same:
            expected = log_probs(plain.predict(floor, queries))
            assert torch.allclose(log_probs(reaching.predict(state, queries)), expected, atol=1e-3)


def test_a_rank_larger_than_a_layer_is_refused(encoder: Backbone) -> None:
    with pytest.raises(BackboneError, match="rank is 1000; expected at most 32"):
        deep(encoder, rank=1000).init_state()


def test_a_state_tells_which_features_answer_and_how_many_texts_it_keeps(encoder: Backbone) -> None:
    amortizer = deep(encoder)
    state = amortizer.adapt(examples(24), progress=False)
    for gain, answering in ((50.0, "adapted features"), (-50.0, "frozen features")):
        told = amortizer.summary(TaskState({**state.tensors, EVIDENCE + "gain": torch.tensor(gain)}, state.header))
        assert told["answers from"] == answering
        assert told["texts kept in the state"] == "24"
    shallow = AutoAmortizer.from_pretrained("iterative", backbone=encoder)
    assert shallow.summary(shallow.adapt(examples(24), progress=False)) == {}


def test_a_loss_that_is_not_finite_leaves_the_state(encoder: Backbone) -> None:
    amortizer = deep(encoder, learning_rate=1e30)
    state = amortizer.init_state(TaskSpec(labels=LABELS))
    before = {name: tensor.clone() for name, tensor in state.tensors.items()}
    with pytest.raises((DataError, BackboneError)):
        amortizer.update(state, chunk(64))
    assert all(torch.equal(state.tensors[name], tensor) for name, tensor in before.items())


def test_a_merged_state_knows_the_parts(encoder: Backbone) -> None:
    amortizer = deep(encoder, steps=4.0)
    rows = examples(128)
    parts = [amortizer.adapt(rows[first : first + 64], progress=False) for first in (0, 64)]
    merged, whole = amortizer.merge(parts), amortizer.adapt(rows, progress=False)
    assert torch.allclose(merged.tensors["sums"], whole.tensors["sums"], atol=1e-3)
    assert (
        len(Retained.of({k.removeprefix(RETAINED): v for k, v in merged.tensors.items() if k.startswith(RETAINED)}))
        == 128
    )
    held_out = examples(100, 7)

    def hits(state: TaskState) -> int:
        found = amortizer.predict(state, [row["input"] for row in held_out])
        return sum(mine == row["output"] for mine, row in zip(found.outputs, held_out, strict=True))

    assert hits(merged) >= hits(whole) - 8


def test_an_exported_state_gives_the_same_answers_without_this_package(encoder: Backbone, tmp_path: Path) -> None:
    import peft
    from safetensors.torch import load_file
    from transformers import AutoModel

    amortizer = deep(encoder, steps=6.0)
    state = amortizer.adapt(examples(64), progress=False)
    amortizer.export(state, tmp_path / "adapter")
    model = peft.PeftModel.from_pretrained(AutoModel.from_pretrained(encoder.name), tmp_path / "adapter").eval()
    head = load_file(tmp_path / "adapter" / "head.safetensors")
    queries = [row["input"] for row in examples(8, 5)]
    batch = encoder.tokenizer(queries, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    mask = batch["attention_mask"][..., None]
    features = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)
    found = (features @ head["weight"].T + head["bias"]).log_softmax(1)
    expected = amortizer.predict(state, queries)
    assert json.loads((tmp_path / "adapter" / "head.json").read_text())["labels"] == list(expected.labels)
    assert expected.log_probs is not None
    assert torch.allclose(found, expected.log_probs, atol=2e-2)


def test_a_state_whose_frozen_features_are_ahead_is_not_exported(encoder: Backbone, tmp_path: Path) -> None:
    amortizer = deep(encoder)
    state = amortizer.adapt(examples(64), progress=False)
    behind = TaskState({**state.tensors, EVIDENCE + "gain": torch.tensor(-50.0)}, state.header)
    with pytest.raises(ConfigError, match="no PEFT form"):
        amortizer.export(behind, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize("standardize", [False, True])
def test_an_exported_language_model_tells_how_it_is_read(causal: Backbone, standardize: bool, tmp_path: Path) -> None:
    import peft
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    amortizer = deep(causal, steps=0.5, standardize=standardize)
    state = amortizer.adapt(examples(16), progress=False)
    amortizer.export(state, tmp_path / "adapter")
    told = json.loads((tmp_path / "adapter" / "head.json").read_text())["features"]
    assert told["model"] == "LlamaForCausalLM"
    base = AutoModelForCausalLM.from_pretrained(causal.name)
    model = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    query = examples(1, 5)[0]["input"]
    prompt, ids = (causal.tokenizer(text)["input_ids"] for text in (told["prompt"], told["prompt"] + query))
    with torch.no_grad():
        states = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
    assert told["hidden_state"] == "middle"
    assert not told["prompt_counts"]
    head = load_file(tmp_path / "adapter" / "head.safetensors")
    pooled = states[len(states) // 2][:, len(prompt) :].mean(1)
    assert told["then"] == ["standardize", "normalize"][not standardize :]
    if standardize:
        pooled = (pooled - head["mean"]) / head["deviation"]
    feature = torch.nn.functional.normalize(pooled, dim=1)
    found = (feature @ head["weight"].T + head["bias"]).log_softmax(1)
    assert torch.allclose(found, log_probs(amortizer.predict(state, [query])), atol=5e-2)


def test_low_rank_weights_add_up() -> None:
    generator = torch.Generator().manual_seed(0)

    def drawn(rank: int, names: Sequence[str]) -> LowRank:
        return LowRank(
            {name: torch.randn(rank, 5, generator=generator) for name in names},
            {name: torch.randn(3, rank, generator=generator) for name in names},
        )

    parts = [drawn(2, ["a", "b"]), drawn(4, ["b"])]
    whole = stacked(parts)
    for name in ("a", "b"):
        expected = sum((part.up[name] @ part.down[name] for part in parts if name in part.up), torch.zeros(3, 5))
        assert torch.allclose(whole.up[name] @ whole.down[name], expected, atol=1e-5)
    assert {len(down) for down in whole.down.values()} == {6}


def test_the_parts_of_a_state_are_named(encoder: Backbone) -> None:
    state = deep(encoder).init_state()
    prefixes = {name.split(".")[0] + "." for name in state.tensors if "." in name}
    assert prefixes == {ADAPTED, WEIGHTS, RETAINED, EVIDENCE}


def test_labels_ahead_of_which_the_first_chunk_has_none(encoder: Backbone) -> None:
    amortizer = deep(encoder, steps=0.0)
    state = amortizer.update(amortizer.init_state(TaskSpec(labels=("x", "y"))), Chunk(("a ball",), ("z",)))
    assert float(state.tensors[EVIDENCE + "gain"]) == 0
    assert amortizer.predict(state, ["a ball"]).outputs


def test_states_of_no_example_merge(encoder: Backbone) -> None:
    amortizer = deep(encoder)
    merged = amortizer.merge([amortizer.init_state(TaskSpec(labels=labels)) for labels in (("x", "y"), ("z", "y"))])
    assert merged.task.labels == ("x", "y", "z")
    assert all(torch.equal(merged.tensors[WEIGHTS + n], t) for n, t in FastWeights(encoder, None, 2).initial().items())


@pytest.mark.parametrize("half_life", [1, 50])
def test_adapted_moments_of_a_merge_count_as_much_as_the_frozen_ones(encoder: Backbone, half_life: int) -> None:
    amortizer = deep(encoder, steps=0.1, half_life=half_life)
    parts = [amortizer.adapt(examples(40, seed), chunk_size=20, progress=False) for seed in (1, 2)]
    moved = [dict(part.tensors) for part in parts]
    for tensors in moved:  # as behind a long stream, which would take minutes
        tensors[RETAINED + "places"] = tensors[RETAINED + "places"] + 3000
    merged = amortizer.merge([TaskState(tensors, part.header) for tensors, part in zip(moved, parts, strict=True)])
    counts = sum(float(part.tensors[ADAPTED + "counts"].sum()) for part in parts)
    assert float(merged.tensors[ADAPTED + "counts"].sum()) == pytest.approx(counts, rel=1e-4)


def test_a_batch_of_examples_that_are_all_but_forgotten(encoder: Backbone) -> None:
    fast, kept = FastWeights(encoder, 1, 2), Retained.chunk(["a ball"] * 400, [0, 1] * 200, 0)
    shares = kept.weights(2)
    assert float(shares[0]) == 0

    descent = Descent(fast, fast.initial(), 3, 1e-3)
    for batch in itertools.islice(batches(400, 4, seed=0), 3):
        found = encoder.differentiable_features([kept.texts[i] for i in batch], None, (descent.low_rank,))
        descent.step(found.vectors[:, :2], kept.targets[batch], shares[batch] / shares.mean())
    assert all(bool(tensor.isfinite().all()) for tensor in descent.tensors.values())


def test_it_learns_the_same_under_inference_mode(encoder: Backbone) -> None:
    amortizer = deep(encoder, steps=0.5)
    plain = amortizer.update(amortizer.init_state(), chunk(16))
    with torch.inference_mode():
        state = amortizer.update(amortizer.init_state(), chunk(16))
    assert all(torch.equal(state.tensors[name], tensor) for name, tensor in plain.tensors.items())


@pytest.mark.parametrize("family", ["longformer", "deberta-v2"])
def test_rows_of_one_batch_have_weights_of_their_own_in_every_order_of_layers(family: str, tmp_path: Path) -> None:
    """Longformer puts tokens before texts, DeBERTa reads distances by the same layers: one mask fits neither."""
    backbone = load_backbone(str(tiny_backbones.make(tmp_path / family, family)), dtype="float32")
    texts = [row["input"] for row in examples(4)]
    weights = [random_weights(backbone, seed) for seed in (1, 2)]
    alone = [backbone.features(texts, None, weights[:1]), backbone.features(texts, None, weights[1:])]
    alone.append(backbone.features(texts))
    mixed = backbone.features(texts, None, weights, [0, 1, -1, 1])
    expected = torch.stack([alone[which].vectors[row] for row, which in enumerate((0, 1, 2, 1))])
    assert torch.allclose(mixed.vectors, expected, atol=1e-4)
    assert mixed.tokens == alone[2].tokens


def test_the_model_is_copied_only_for_a_state_that_is_asked_alone(encoder: Backbone) -> None:
    amortizer = deep(encoder)
    states = [amortizer.init_state(TaskSpec(labels=LABELS)) for _ in range(2)]
    amortizer.predict_each(states, ["a ball", "a song"])
    assert not any("backbone" in vars(amortizer.prepared(state)) for state in states)


def test_the_card_says_that_texts_are_kept(encoder: Backbone) -> None:
    state = deep(encoder, retained_bytes=4096).init_state(TaskSpec(labels=LABELS))
    told = "up to 4,096 bytes of its examples' texts as they are"
    assert told in state_card(state.header, state.nbytes, "someone/films")
    shallow = AutoAmortizer.from_pretrained("iterative", backbone=encoder).init_state(TaskSpec(labels=LABELS))
    assert "as they are" not in state_card(shallow.header, shallow.nbytes, "someone/films")


def test_settings_of_a_depth_are_refused_without_one(encoder: Backbone) -> None:
    with pytest.raises(ConfigError, match="rank, steps is set, but depth is 0"):
        AutoAmortizer.from_pretrained("iterative", backbone=encoder, config={"rank": 8, "steps": 20.0})


def test_a_budget_that_holds_no_text_is_told(encoder: Backbone, caplog: pytest.LogCaptureFixture) -> None:
    amortizer = deep(encoder, retained_bytes=1)
    amortizer.update(amortizer.init_state(), chunk(8))
    assert "no text fits into retained_bytes=1" in caplog.text
    caplog.clear()
    amortizer.merge([amortizer.init_state(), deep(encoder, retained_bytes=1).init_state()])
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_half_life_shorter_than_the_classes_does_not_silence_what_was_learned(encoder: Backbone) -> None:
    task = TaskSpec(labels=tuple(f"class {number}" for number in range(40)))
    amortizer = deep(encoder, half_life=2)
    state = amortizer.init_state(task)
    for start in range(0, 80, 10):
        inputs = tuple(row["input"] for row in examples(10, start))
        state = amortizer.update(state, Chunk(inputs, tuple(task.labels[(start + i) % 40] for i in range(10))))
    ahead = TaskState({**state.tensors, EVIDENCE + "gain": torch.tensor(50.0)}, state.header)
    assert float(state.tensors["counts"].sum()) < 20
    assert amortizer.summary(ahead)["answers from"] == "adapted features"


def test_a_step_on_a_single_example_is_short(encoder: Backbone) -> None:
    amortizer, start = deep(encoder, retained_bytes=1, steps=1e-9), FastWeights(encoder, None, 2).initial()

    def moved(count: int) -> float:
        state = amortizer.init_state(TaskSpec(labels=("food", "sports")))
        state = amortizer.update(state, Chunk(("a ball",) * count, ("food",) * count))
        names = [name for name in start if name.startswith("up")]
        return sum(float(state.tensors[WEIGHTS + name].float().abs().sum()) for name in names)

    assert 0 < moved(1) < 0.3 * moved(8)
