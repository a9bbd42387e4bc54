"""Edits of states: what is forgotten is gone, labels are renamed, merged, added and dropped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import LABELS, examples, log_probs

from iai_hf import AutoAmortizer, Chunk, TaskSpec, TaskState
from iai_hf.amortizer import Amortizer
from iai_hf.backbones import Backbone
from iai_hf.errors import ConfigError, DataError
from iai_hf.features.frozen_features import FrozenFeatures

DEEP = {"depth": 1, "rank": 2, "steps": 0.5, "batch_size": 8, "learning_rate": 3e-3}
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "parametric": ("iterative", {}),
    "data": ("iterative", {"signal": "data"}),
    "gradient": ("iterative", {"signal": "gradient"}),
    "deep": ("iterative", DEEP),
    "explicit": ("iterative-explicit", {}),
    "implicit": ("iterative-implicit", {}),
}
QUERIES = [row["input"] for row in examples(20, 9)]
QUERIES_AS_ROWS = [{"input": text} for text in QUERIES]
ROWS = [{"input": f"{row['input']} {number}", "output": row["output"]} for number, row in enumerate(examples(48))]


def made(name: str, backbone: Backbone, **more: Any) -> FrozenFeatures:
    method, settings = SETTINGS[name]
    amortizer = AutoAmortizer.from_pretrained(method, backbone=backbone, config={**settings, "weights": None, **more})
    assert isinstance(amortizer, FrozenFeatures)
    return amortizer


def adapt(amortizer: Amortizer, rows: list[dict[str, str]], **options: Any) -> TaskState:
    return amortizer.adapt(rows, task=TaskSpec(labels=LABELS), chunk_size=16, progress=False, **options)


def chunk(rows: list[dict[str, str]]) -> Chunk:
    return Chunk(tuple(row["input"] for row in rows), tuple(row["output"] for row in rows))


def moments(amortizer: FrozenFeatures, state: TaskState) -> dict[str, torch.Tensor]:
    """What is a sum over examples, or, of the implicit regime, observations."""
    kept = ("features", "targets") if "targets" in state.tensors else ()
    return {name: state.tensors[name].float() for name in (*amortizer.head.moments, *kept)}


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=1e-5, rtol=1e-5, msg=name)


@pytest.fixture(params=SETTINGS)
def amortizer(request: pytest.FixtureRequest, encoder: Backbone) -> FrozenFeatures:
    return made(request.param, encoder)


def test_what_is_forgotten_is_gone_from_all_sums(amortizer: FrozenFeatures) -> None:
    gone = [*ROWS[3:9], ROWS[30]]
    state = adapt(amortizer, ROWS)
    before = {name: tensor.clone() for name, tensor in state.tensors.items()}
    left = amortizer.forget(state, gone)
    never = adapt(amortizer, [row for row in ROWS if row not in gone])
    assert_same(moments(amortizer, left), moments(amortizer, never))
    assert left.header.examples == never.header.examples == 41
    assert all(torch.equal(before[name], tensor) for name, tensor in state.tensors.items())
    assert state.header.history == ()
    (line,) = left.header.history
    assert (line.edit, line.examples) == ("forget", 7)


def test_what_is_forgotten_and_read_again_is_as_before(amortizer: FrozenFeatures) -> None:
    state = adapt(amortizer, ROWS)
    again = amortizer.update(amortizer.forget(state, ROWS[40:]), chunk(ROWS[40:]))
    assert_same(moments(amortizer, again), moments(amortizer, state))


def test_all_can_be_forgotten(amortizer: FrozenFeatures) -> None:
    left = amortizer.forget(adapt(amortizer, ROWS), ROWS)
    for name, tensor in amortizer.init_state(TaskSpec(labels=LABELS)).tensors.items():
        assert torch.equal(left.tensors[name], tensor), name
    assert left.header.history[-1].approximate == {}


def test_strictly_forgotten_nothing_depends_on_the_example(encoder: Backbone) -> None:
    amortizer = made("parametric", encoder)
    one, other = (amortizer.forget(adapt(amortizer, [*ROWS, row]), [row], strict=True) for row in examples(2, 77))
    assert one.header.history[-1].approximate == {}
    for name, tensor in one.tensors.items():
        torch.testing.assert_close(tensor, other.tensors[name], atol=1e-5, rtol=1e-5)
    loose = amortizer.forget(adapt(amortizer, [*ROWS, ROWS[0]]), [ROWS[0]])
    assert set(loose.header.history[-1].approximate) == set(amortizer.head.stepped)
    assert loose.header.history[-1].approximate["correction"] == pytest.approx(1 / 49)


@pytest.mark.parametrize("budget", [65536, 600])
def test_of_a_forgotten_text_no_byte_remains(encoder: Backbone, budget: int) -> None:
    amortizer = made("deep", encoder, retained_bytes=budget)
    rows = [{"input": f"secret{number} {row['input']}", "output": row["output"]} for number, row in enumerate(ROWS)]
    state = adapt(amortizer, rows)
    written = b"".join(state.contents().values())
    gone = [row for row in rows if row["input"].encode() in written][:3]
    assert len(gone) == 3
    left = amortizer.forget(state, gone)
    content = b"".join(left.contents().values())
    assert not [
        row for row in gone if row["input"].encode() in content or row["input"].split()[0].encode() + b" " in content
    ]
    assert left.header.history[-1].restepped == (45 if budget == 65536 else len(left.tensors["retained.lengths"]))
    if budget == 65536:  # all were retained: it is the state that never read them
        never = adapt(amortizer, [row for row in rows if row not in gone])
        for name, tensor in moments(amortizer, never).items():
            torch.testing.assert_close(left.tensors[name], tensor, atol=1e-5, rtol=1e-5)
        for name, tensor in never.tensors.items():
            if name.startswith("retained."):
                assert torch.equal(left.tensors[name], tensor)
    assert log_probs(amortizer.predict(left, QUERIES)).isfinite().all()
    amortizer.update(left, chunk(examples(8, 5)))


def test_what_can_not_have_been_read_is_not_forgotten(amortizer: FrozenFeatures) -> None:
    state = adapt(amortizer, ROWS[:24])
    label = state.task.labels[0]
    other = next(name for name in LABELS if name != ROWS[0]["output"])
    few = min(LABELS, key=lambda name: sum(row["output"] == name for row in ROWS[:24]))
    count = sum(row["output"] == few for row in ROWS[:24])
    wrong: dict[str, list[dict[str, str]]] = {
        "never read": [{"input": "guitar oven coach the of a", "output": label}],
        "not with these labels": [{**ROWS[0], "output": other}],
        rf"{count + 1} examples of {few!r} to forget; the state has read {count}": [
            {"input": text, "output": few} for text in QUERIES[: count + 1]
        ],
        "does not know the label 'weather'": [{**ROWS[0], "output": "weather"}],
        "25 examples to forget; the state has read 24": ROWS[:25],
        "0 unlabelled|there are no examples": [],
    }
    if amortizer.method == "iterative-explicit":  # squares alone tell of few that they were never read
        del wrong["never read"], wrong["not with these labels"]
    for message, rows in wrong.items():
        with pytest.raises(DataError, match=message):
            amortizer.forget(state, rows)


def test_an_unlabelled_text_is_forgotten(encoder: Backbone) -> None:
    for name in ("parametric", "explicit"):
        amortizer = made(name, encoder)
        state = adapt(amortizer, ROWS, unlabelled=[{"input": text} for text in QUERIES])
        left = amortizer.forget(state, ROWS[:2], unlabelled=[{"input": text} for text in QUERIES[:5]])
        never = adapt(amortizer, ROWS[2:], unlabelled=[{"input": text} for text in QUERIES[5:]])
        for tensor in ("rows", "priorities", "features"):
            assert torch.equal(left.tensors[f"unlabelled.{tensor}"], never.tensors[f"unlabelled.{tensor}"])
        assert_same(moments(amortizer, left), moments(amortizer, never))
        assert left.header.counts == never.header.counts
        assert left.header.history[-1].unlabelled == 5
        gone = amortizer.forget(state, None, unlabelled=QUERIES_AS_ROWS)
        assert gone.tensors.keys() == adapt(amortizer, ROWS).tensors.keys()
        with pytest.raises(DataError, match="never read"):
            amortizer.forget(state, Chunk((), (), ("a text that is not there",)))
        with pytest.raises(DataError, match="has read 0"):
            amortizer.forget(adapt(amortizer, ROWS), None, unlabelled=QUERIES_AS_ROWS)


def test_a_relabelled_example_counts_for_its_new_label(amortizer: FrozenFeatures) -> None:
    state = adapt(amortizer, ROWS)
    moved = amortizer.relabel(state, ROWS[40:], "food")
    other = [row for row in ROWS[40:] if row["output"] != "food"]
    kept = [row for row in ROWS if row not in other]
    never = adapt(amortizer, [*kept, *({**row, "output": "food"} for row in other)])
    assert_same(moments(amortizer, moved), moments(amortizer, never))
    changed = len(other)
    assert [(line.edit, line.examples, line.name) for line in moved.header.history] == [("relabel", changed, "food")]
    assert moved.header.examples == 48
    assert moved.header.stream == state.header.stream
    each = amortizer.relabel(state, ROWS[40:], ["food"] * 8)
    assert_same(moments(amortizer, each), moments(amortizer, moved))
    for to, message in (("weather", "does not know"), (["food"], "8 examples and 1 new"), (None, "new labels")):
        with pytest.raises(DataError, match=message):
            amortizer.relabel(state, ROWS[40:], to)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="label that they are to get"):
        amortizer.relabel(state, [row for row in ROWS if row["output"] == "food"], "food")


def named(rows: list[dict[str, str]], names: dict[str, str]) -> list[dict[str, str]]:
    return [{**row, "output": names.get(row["output"], row["output"])} for row in rows]


def test_a_renamed_label_is_as_if_it_had_always_been_called_so(amortizer: FrozenFeatures) -> None:
    state = adapt(amortizer, ROWS)
    renamed = amortizer.rename_label(state, "music", "song")
    assert renamed.task.labels == ("sports", "song", "food")
    task = TaskSpec(labels=renamed.task.labels)
    never = amortizer.adapt(named(ROWS, {"music": "song"}), task=task, chunk_size=16, progress=False)
    assert_same(moments(amortizer, renamed), moments(amortizer, never))
    assert torch.equal(renamed.tensors["names"], never.tensors["names"])
    assert not torch.equal(renamed.tensors["names"], state.tensors["names"])
    (line,) = renamed.header.history
    assert (line.edit, line.labels, line.name) == ("rename_label", ("music",), "song")
    assert line.examples == sum(row["output"] == "music" for row in ROWS)
    assert renamed.header.stream is None
    assert amortizer.predict(renamed, QUERIES).labels == task.labels
    for label, name, message in (("x", "y", "does not know"), ("music", "food", "has a label 'food' already")):
        with pytest.raises(DataError, match=message):
            amortizer.rename_label(state, label, name)


@pytest.mark.parametrize("name", ["fun", "music"])
def test_merged_labels_are_as_if_they_had_always_been_one(amortizer: FrozenFeatures, name: str) -> None:
    state = adapt(amortizer, ROWS)
    merged = amortizer.merge_labels(state, ["sports", "music"], name)
    never = amortizer.adapt(
        named(ROWS, {"sports": name, "music": name}),
        task=TaskSpec(labels=(name, "food")),
        chunk_size=16,
        progress=False,
    )
    assert merged.task.labels == (name, "food")
    assert_same(moments(amortizer, merged), moments(amortizer, never))
    assert torch.equal(merged.tensors["names"], never.tensors["names"])
    assert merged.header.examples == 48
    assert log_probs(amortizer.predict(merged, QUERIES)).isfinite().all()
    amortizer.update(merged, chunk(named(examples(8, 5), {"sports": name, "music": name})))
    for labels, message in ((["music"], "at least two"), (["music", "x"], "does not know"), (LABELS, "1 would be")):
        with pytest.raises(DataError, match=message):
            amortizer.merge_labels(state, labels, "one")
    with pytest.raises(DataError, match="alone"):
        amortizer.merge_labels(state, "music", "one")


def test_an_added_label_is_answered_at_once(amortizer: FrozenFeatures) -> None:
    state = adapt(amortizer, ROWS)
    more = amortizer.add_label(state, "player")
    never = amortizer.adapt(ROWS, task=TaskSpec(labels=(*LABELS, "player")), chunk_size=16, progress=False)
    assert_same(moments(amortizer, more), moments(amortizer, never))
    assert torch.equal(more.tensors["names"], never.tensors["names"])
    assert more.header.history[-1].approximate == {}
    assert more.header.stream == state.header.stream
    assert log_probs(amortizer.predict(more, QUERIES)).exp()[:, 3].min() > 0
    assert amortizer.update(more, Chunk(("the player",), ("player",))).header.examples == 49
    with pytest.raises(DataError, match="already"):
        amortizer.add_label(state, "music")
    with pytest.raises(DataError, match="empty"):
        amortizer.add_label(state, " ")


def test_a_dropped_label_is_gone_with_its_examples(amortizer: FrozenFeatures) -> None:
    state, own = adapt(amortizer, ROWS), [row for row in ROWS if row["output"] == "music"]
    dropped = amortizer.drop_label(state, "music")
    never = amortizer.adapt(
        [row for row in ROWS if row not in own],
        task=TaskSpec(labels=("sports", "food")),
        chunk_size=16,
        progress=False,
    )
    assert dropped.task.labels == ("sports", "food")
    assert dropped.header.examples == never.header.examples
    estimated = set(amortizer.head.estimated) if not getattr(amortizer.config, "depth", 0) else set()
    exact, expected = moments(amortizer, dropped), moments(amortizer, never)
    assert_same(
        {name: exact[name] for name in exact if name not in estimated},
        {name: expected[name] for name in exact if name not in estimated},
    )
    share = len(own) / len(ROWS)
    assert dropped.header.history[-1].examples == len(own)
    assert estimated <= set(dropped.header.history[-1].approximate)
    for name in estimated:
        assert dropped.header.history[-1].approximate[name] == pytest.approx(share)
        assert (exact[name] - expected[name]).norm() < 0.15 * expected[name].norm()
    # With its examples forgotten first, nothing has to be estimated.
    wholly = amortizer.drop_label(amortizer.forget(state, own), "music")
    assert_same(moments(amortizer, wholly), expected)
    assert wholly.header.history[-1].approximate == {}
    assert log_probs(amortizer.predict(dropped, QUERIES)).isfinite().all()
    with pytest.raises(DataError, match="1 would be left"):
        amortizer.drop_label(dropped, "food")
    with pytest.raises(DataError, match="does not know"):
        amortizer.drop_label(dropped, "music")


def test_a_dropped_labels_texts_are_gone(encoder: Backbone) -> None:
    amortizer = made("deep", encoder, retained_bytes=900)
    dropped = amortizer.drop_label(adapt(amortizer, ROWS), "music")
    content = b"".join(dropped.contents().values())
    assert not [row for row in ROWS if row["output"] == "music" and row["input"].encode() in content]
    assert [row for row in ROWS if row["output"] != "music" and row["input"].encode() in content]
    line = dropped.header.history[-1]
    assert set(line.approximate) == {"gram"}
    assert line.restepped == len(dropped.tensors["retained.lengths"])
    assert log_probs(amortizer.predict(dropped, QUERIES)).isfinite().all()


def test_a_state_that_is_edited_answers_as_one_that_never_was_otherwise(encoder: Backbone) -> None:
    for name in ("data", "explicit", "implicit"):  # in which nothing follows the order of the stream
        amortizer = made(name, encoder)
        state = adapt(amortizer, ROWS)
        edited = amortizer.merge_labels(amortizer.forget(state, ROWS[:8]), ["sports", "music"], "fun")
        never = amortizer.adapt(
            named(ROWS[8:], {"sports": "fun", "music": "fun"}),
            task=TaskSpec(labels=("fun", "food")),
            chunk_size=16,
            progress=False,
        )
        found, expected = (log_probs(amortizer.predict(each, QUERIES)) for each in (edited, never))
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        assert all(line.approximate == {} for line in edited.header.history)


def test_labels_are_edited_where_examples_fade(encoder: Backbone) -> None:
    for name in ("parametric", "explicit", "implicit", "deep"):
        amortizer = made(name, encoder, half_life=20)
        state = adapt(amortizer, ROWS)
        with pytest.raises(ConfigError, match="half-life"):
            amortizer.forget(state, ROWS[:2])
        renamed = amortizer.rename_label(amortizer.drop_label(state, "sports"), "music", "song")
        assert renamed.task.labels == ("song", "food")
        assert 0 < renamed.header.examples < 48
        assert log_probs(amortizer.predict(renamed, QUERIES)).isfinite().all()


def test_the_history_is_saved_and_merged(encoder: Backbone, tmp_path: Path) -> None:
    amortizer = made("parametric", encoder)
    first = amortizer.rename_label(amortizer.forget(adapt(amortizer, ROWS[:24]), ROWS[:3]), "music", "song")
    back = TaskState.from_pretrained(first.save_pretrained(tmp_path / "state"))
    assert back.header == first.header
    assert [line.edit for line in back.header.history] == ["forget", "rename_label"]
    assert not [row for row in ROWS[:3] if row["input"] in (tmp_path / "state" / "config.json").read_text()]
    readable = json.loads((tmp_path / "state" / "config.json").read_text())["history"]
    assert readable[0]["approximate"]["correction"] == pytest.approx(3 / 24)
    merged = amortizer.merge([first, adapt(amortizer, ROWS[24:])])
    assert merged.header.history == first.header.history


def test_a_state_forgets_by_itself(encoder: Backbone) -> None:
    amortizer = made("explicit", encoder)
    state = adapt(amortizer, ROWS)
    left = state.without(ROWS[:3], loading={"backbone": encoder})
    assert_same(moments(amortizer, left), moments(amortizer, amortizer.forget(state, ROWS[:3])))


def test_states_of_other_methods_are_refused(causal: Backbone) -> None:
    amortizer = AutoAmortizer.from_pretrained("in-context", backbone=causal, config={"demonstration_tokens": 100})
    state = amortizer.adapt(ROWS[:8], progress=False)
    for edit in (
        lambda: amortizer.forget(state, ROWS[:1]),
        lambda: amortizer.relabel(state, ROWS[:1], "food"),
        lambda: amortizer.rename_label(state, "music", "song"),
        lambda: amortizer.merge_labels(state, ["music", "food"], "song"),
        lambda: amortizer.add_label(state, "song"),
        lambda: amortizer.drop_label(state, "music"),
    ):
        with pytest.raises(ConfigError, match=r"can't be edited.*iterative, iterative-explicit, iterative-implicit"):
            edit()
