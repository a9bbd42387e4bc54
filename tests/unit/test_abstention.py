"""Answers with a stated error: coverage is as asked, strange texts get None, what can't be promised is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from conftest import LABELS, examples

from iai_hf import AutoAmortizer, Chunk, TaskSpec, TaskState
from iai_hf.amortizer import Amortizer
from iai_hf.backbones import Backbone, load_backbone
from iai_hf.errors import ConfigError, DataError, StateError
from iai_hf.features.calibrated import ConformalFeatures
from iai_hf.features.heads import ExplicitHead, Head, ImplicitHead, ParametricHead
from iai_hf.features.heads.calibration import PREFIX, Sample, Scored, label_scores, text_scores
from iai_hf.metrics import answered, covered, score
from iai_hf.task import Tensors

HEADS: dict[str, Head] = {
    "parametric": ParametricHead(),
    "data": ParametricHead("data"),
    "explicit": ExplicitHead(),
    "implicit": ImplicitHead(),
}
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "parametric": ("iterative", {}),
    "explicit": ("iterative-explicit", {"calibration_examples": 256}),
    "implicit": ("iterative-implicit", {}),
}
ROWS = [{"input": f"{row['input']} {number}", "output": row["output"]} for number, row in enumerate(examples(64))]
QUERIES = [row["input"] for row in examples(40, seed=9)]


def made(name: str, backbone: Backbone, **more: Any) -> ConformalFeatures:
    method, settings = SETTINGS[name]
    amortizer = AutoAmortizer.from_pretrained(method, backbone=backbone, config={**settings, "weights": None, **more})
    assert isinstance(amortizer, ConformalFeatures)
    return amortizer


def adapt(amortizer: Amortizer, rows: list[dict[str, str]], chunk_size: int = 16) -> TaskState:
    return amortizer.adapt(rows, task=TaskSpec(labels=LABELS), chunk_size=chunk_size, progress=False)


def drawn(seed: int, count: int, classes: int = 4, size: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """Classes that overlap, drawn independently."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(classes, size, generator=torch.Generator().manual_seed(7))
    targets = torch.randint(classes, (count,), generator=generator)
    noisy = means[targets] + 2.0 * torch.randn(count, size, generator=generator)
    return torch.nn.functional.normalize(noisy, dim=1), targets


def kept(state: TaskState) -> Sample:
    sample = Sample.of(state.tensors)
    assert sample is not None
    return sample


@pytest.mark.parametrize("chunk_size", [8, 64])
@pytest.mark.parametrize("name", HEADS)
def test_sets_hold_the_right_label_as_often_as_asked_and_texts_of_the_kind_are_answered(
    name: str, chunk_size: int
) -> None:
    head = HEADS[name]
    held: list[float] = []
    none: list[float] = []
    read_again: list[float] = []
    for seed in range(16):
        (features, targets), (queries, answers) = drawn(seed, 64), drawn(1000 + seed, 400)
        tensors: Tensors = head.grow(
            head.initial(24), torch.randn(4, 4, 24, generator=torch.Generator().manual_seed(1))
        )
        with torch.no_grad():
            for first in range(0, 64, chunk_size):
                part = slice(first, first + chunk_size)
                tensors = head.refine(tensors, features[part], targets[part])
            unread = head.unread(tensors, features, targets, torch.ones_like(targets))
            read = head.logits(head.prepare(tensors), features)
            logits = head.logits(head.prepare(tensors), queries)
        for found, shares in ((unread, held), (read, read_again)):
            own = label_scores(found).gather(1, targets[:, None])[:, 0]
            limit = Scored(own, own, torch.ones(64)).threshold(own, 0.1)
            assert limit is not None
            shares.append(float((label_scores(logits).gather(1, answers[:, None]) <= limit).float().mean()))
        texts = text_scores(unread, tensors["counts"])
        limit = Scored(texts, texts, torch.ones(64)).threshold(texts, 0.1)
        assert limit is not None
        none.append(float((text_scores(logits, tensors["counts"]) > limit).float().mean()))
    assert 0.87 < numpy.mean(held) < 0.945  # 0.908, and three standard errors
    assert numpy.mean(none) < 0.115
    assert numpy.mean(read_again) < numpy.mean(held) - 0.03  # what the examples that were read would have promised


def test_a_threshold_is_that_of_exchangeable_draws() -> None:
    scores = torch.arange(1.0, 20.0)
    scored = Scored(scores, scores, torch.ones(19))
    assert [scored.threshold(scores, rate) for rate in (0.5, 0.1, 0.05)] == [10, 18, 19]
    assert scored.threshold(scores, 0.04) is None
    twice = Scored(scores, scores, torch.tensor([1.0] * 18 + [19.0]) * 19 / 37)
    assert twice.threshold(scores, 0.5) == 19


def test_a_set_is_never_without_the_answer_and_more_coverage_takes_more(encoder: Backbone) -> None:
    for name in SETTINGS:
        amortizer = made(name, encoder)
        state = adapt(amortizer, ROWS)
        some, more = (amortizer.predict(state, QUERIES, coverage=share).sets for share in (0.5, 0.95))
        assert some is not None
        assert more is not None
        outputs = amortizer.predict(state, QUERIES).outputs
        assert all(output in labels for output, labels in zip(outputs, some, strict=True))
        assert all(set(few) <= set(many) for few, many in zip(some, more, strict=True))
        assert sum(map(len, more)) > sum(map(len, some))
        single = amortizer.predict(state, QUERIES[:1], coverage=numpy.float32(0.5), abstain=0.5)
        assert single.sets == (some[0],)
        assert single.row(0).sets == (some[0],)


def test_a_text_is_strange_where_no_label_is_likely_or_none_more_than_another() -> None:
    counts = torch.tensor([8.0, 8.0, 8.0])
    known, between, foreign = text_scores(torch.tensor([[6.0, 0, 0], [6.0, 6.0, 0], [0.0, 0, 0]]), counts).tolist()
    assert known < between < foreign
    often, rare = text_scores(torch.tensor([[3.0, 0, 0], [0.0, 3.0, 0]]), torch.tensor([80.0, 2.0, 8.0])).tolist()
    assert rare < often  # a logit that a frequency has made tells little


def test_none_is_answered_to_as_many_as_asked(encoder: Backbone) -> None:
    amortizer = made("parametric", encoder)
    state = adapt(amortizer, ROWS)
    half, few = (amortizer.predict(state, QUERIES, abstain=share).outputs for share in (0.5, 0.05))
    assert half.count(None) > few.count(None)
    plain = amortizer.predict(state, QUERIES).outputs
    assert all(found in (None, output) for found, output in zip(half, plain, strict=True))


def test_a_sample_follows_from_the_examples_alone() -> None:
    features, targets = drawn(0, 40)
    texts = [f"text {number}" for number in range(40)]
    whole = Sample.read(texts, features, targets).joined([], 16)
    parts = [Sample.read(texts[i::2], features[i::2], targets[i::2]).joined([], 16) for i in (0, 1)]
    streamed = Sample.read(texts[:1], features[:1], targets[:1])
    for first in range(1, 40, 3):
        part = slice(first, first + 3)
        streamed = streamed.joined([Sample.read(texts[part], features[part], targets[part])], 16)
    for other in (parts[0].joined(parts[1:], 16), parts[1].joined(parts[:1], 16), streamed):
        assert all(torch.equal(tensor, whole.tensors[name]) for name, tensor in other.tensors.items())
    assert len(whole.targets) == 16
    again = whole.joined([Sample.read(texts, features, targets)], 16)
    assert again.times.tolist() == [2] * 16
    gone = again.without(texts, targets)
    assert gone.times.tolist() == [1] * 16
    empty = gone.without(texts, targets)
    assert len(empty.times) == 0
    # Others that were pushed out do not come back in their place, so that it stays a fair sample.
    assert float(empty.limit) == float(whole.limit)
    assert len(empty.joined([Sample.read(texts, features, targets)], 16).times) == 16


def test_a_text_that_was_read_twice_is_left_out_twice(encoder: Backbone) -> None:
    amortizer = made("parametric", encoder, signal="data")
    once, twice = adapt(amortizer, ROWS), adapt(amortizer, ROWS + ROWS)
    assert kept(twice).times.tolist() == [2] * len(ROWS)
    read, unread = (amortizer.scored(state).labels.mean() for state in (twice, once))
    assert read > 0.8 * unread
    left_out, tensors = amortizer.examples(twice), {key: part for key, part in twice.tensors.items() if "." not in key}
    one_copy_left = amortizer.head.unread(tensors, *left_out[:2], torch.ones_like(left_out.times))
    own = label_scores(one_copy_left).gather(1, left_out.targets[:, None]).mean()
    assert own < 0.8 * read


def test_edits_go_to_the_examples_too(encoder: Backbone) -> None:
    for name in ("parametric", "explicit"):
        amortizer = made(name, encoder)
        state = adapt(amortizer, ROWS)
        left, never = amortizer.forget(state, ROWS[5:9]), adapt(amortizer, ROWS[:5] + ROWS[9:])
        assert all(torch.equal(kept(left).tensors[key], tensor) for key, tensor in kept(never).tensors.items())
        rows = [row for row in ROWS if row["output"] == "music"][:3]
        moved = kept(amortizer.relabel(state, rows, "food"))
        assert len(moved.targets) == len(ROWS)
        assert int((moved.targets == 2).sum()) == int((kept(state).targets == 2).sum()) + 3
        merged = amortizer.merge_labels(state, ["sports", "food"], "other")
        assert set(kept(merged).targets.tolist()) == {0, 1}
        dropped = amortizer.drop_label(state, "sports")
        assert len(kept(dropped).targets) == sum(row["output"] != "sports" for row in ROWS)
        for edited in (left, merged, dropped, amortizer.rename_label(state, "food", "meal")):
            assert amortizer.predict(edited, QUERIES, coverage=0.9).sets


def test_states_of_parts_make_the_sample_of_the_whole(encoder: Backbone) -> None:
    amortizer = made("parametric", encoder, calibration_examples=24)
    whole, parts = adapt(amortizer, ROWS), [adapt(amortizer, ROWS[i::2]) for i in (0, 1)]
    merged = amortizer.merge(parts)
    assert all(torch.equal(kept(merged).tensors[name], tensor) for name, tensor in kept(whole).tensors.items())
    assert all(state.tensors[f"{PREFIX}features"].shape == (24, 32) for state in (whole, merged))


def test_what_can_not_be_promised_is_refused(encoder: Backbone, causal: Backbone) -> None:
    amortizer = made("parametric", encoder)
    state = adapt(amortizer, ROWS)
    for wrong in (0, 1, -0.1, 1.5, 90, True, float("nan"), "0.9"):
        for name in ("coverage", "abstain"):
            with pytest.raises(DataError, match=f"{name} is .* expected a share between 0 and 1"):
                amortizer.predict(state, QUERIES, **{name: wrong})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="leave transductive out"):
        amortizer.predict(state, QUERIES, transductive=True, coverage=0.9)
    young = adapt(amortizer, ROWS[:12])
    with pytest.raises(StateError, match=r"coverage=0.95 takes at least 19 .* this one has 12; adapt it on further"):
        amortizer.predict(young, QUERIES, coverage=0.95)
    with pytest.raises(StateError, match=r"abstain=0.001 takes at least 999 .* no more than 256 are kept"):
        amortizer.predict(state, QUERIES, abstain=0.001)
    with pytest.raises(StateError, match="this one has 0"):
        amortizer.predict(amortizer.init_state(TaskSpec(labels=LABELS)), QUERIES, coverage=0.9)
    for more, why in (
        ({"half_life": 100}, "with a half-life"),
        ({"depth": 1, "rank": 2}, "adapt with depth=0"),
        ({"watch": True}, "adapt with watch=False"),
        ({"calibration_examples": 0}, "adapt anew with calibration_examples=256"),
    ):
        other = made("parametric", encoder, **more)
        found = adapt(other, ROWS[:16])
        assert Sample.of(found.tensors) is None
        with pytest.raises(ConfigError, match=why):
            other.predict(found, QUERIES, coverage=0.9)
    fading = made("implicit", encoder, half_life=100)
    found = adapt(fading, ROWS)
    with pytest.raises(ConfigError, match="with a half-life"):
        fading.predict(found, QUERIES, abstain=0.1)
    with pytest.raises(ConfigError, match="calibration_examples is -1; expected 0 or more"):
        made("explicit", encoder, calibration_examples=-1)
    several = amortizer.update(
        amortizer.init_state(TaskSpec("multi-label", LABELS)),
        Chunk(tuple(QUERIES), tuple([("music",), ("music", "food")] * 20)),
    )
    assert Sample.of(several.tensors) is None
    with pytest.raises(ConfigError, match="coverage takes states whose texts have one label each"):
        amortizer.predict(several, QUERIES, coverage=0.9)
    model = AutoAmortizer.from_pretrained("in-context", backbone=causal)
    with pytest.raises(ConfigError, match=r"choose a method that can .*iterative"):
        model.predict(adapt(model, ROWS[:4]), QUERIES[:1], coverage=0.9)


def test_a_state_of_before_says_how_to_get_one() -> None:
    folder = Path(__file__).parents[1] / "fixtures" / "format-1"
    state = TaskState.from_pretrained(folder / "iterative")
    amortizer = AutoAmortizer.for_state(state, load_backbone(str(folder / "encoder"), dtype="float32"))
    later = amortizer.adapt(folder / "train.jsonl", state, chunk_size=8, resume=True, progress=False)
    for found in (state, later):
        assert Sample.of(found.tensors) is None
        with pytest.raises(ConfigError, match=r"a version without that setting.* adapt anew with calibration_examples"):
            amortizer.predict(found, QUERIES, coverage=0.9)


def test_unlabelled_texts_inform_the_examples_that_are_left_out(encoder: Backbone, tmp_path: Path) -> None:
    amortizer = made("explicit", encoder)
    state = amortizer.update(adapt(amortizer, ROWS), Chunk((), (), tuple(QUERIES)))
    found = amortizer.predict(state, QUERIES, coverage=0.9, abstain=0.1)
    again = TaskState.from_pretrained(state.save_pretrained(tmp_path))
    assert amortizer.predict(again, QUERIES, coverage=0.9, abstain=0.1).sets == found.sets
    plain = amortizer.scored(adapt(amortizer, ROWS)).labels
    assert not torch.allclose(amortizer.scored(state).labels, plain)


def test_figures_of_sets_and_of_answers_that_were_given(encoder: Backbone) -> None:
    amortizer = made("parametric", encoder)
    found = amortizer.predict(adapt(amortizer, ROWS), QUERIES, coverage=0.9, abstain=0.5)
    right = [row["output"] for row in examples(40, seed=9)]
    plain = score(amortizer.predict(adapt(amortizer, ROWS), QUERIES), right)
    assert score(found, right) == plain
    given = [pair for pair in zip(found.outputs, right, strict=True) if pair[0] is not None]
    figures = answered(found.outputs, right)
    assert figures["answered"] == len(given) / 40
    assert figures["accuracy_of_answered"] == pytest.approx(sum(a == b for a, b in given) / len(given))
    assert answered([None, None], ["a", "b"]) == {"answered": 0}
    assert covered([("a", "b"), ("a",)], ["b", "b"]) == {"coverage": 0.5, "labels_a_set": 1.5}
    assert json.loads(json.dumps(found.outputs)).count(None) == 40 - len(given)
    assert found.sets is not None
    assert 0 < len(given) < 40
    assert [labels is None for labels in found.sets] == [output is None for output in found.outputs]
    rest = amortizer.predict(adapt(amortizer, ROWS), QUERIES, coverage=0.9).sets or ()
    assert all(labels in (None, other) for labels, other in zip(found.sets, rest, strict=True))
    assert covered([("a", "b"), None, ("a",)], ["b", "a", "b"]) == {"coverage": 0.5, "labels_a_set": 1.5}
    assert covered([None], ["b"]) == {}
