"""What every method promises whose tasks may have several labels a text; the others refuse such a task by name."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import LABELS, VOCABULARY, WORDS, examples
from matrix import METHODS, Row, made, rows_of, task_of

from iai_hf import AutoAmortizer, Chunk, Prediction, TaskSpec, TaskState
from iai_hf.amortizer import Amortizer
from iai_hf.auto import amortizer_class
from iai_hf.backbones import Backbone
from iai_hf.card import state_card
from iai_hf.data import Columns
from iai_hf.errors import ConfigError, DataError, IAIError, StateError
from iai_hf.language_model.prompted import Prompted
from iai_hf.language_model.prompting import Question
from iai_hf.metrics import score
from iai_hf.pipeline import StatePipeline
from iai_hf.task import Kind

KIND: Kind = "multi-label"
OF_ONE_LABEL = {"depth": "depth=0", "watch": "watching a stream takes"}  # settings, and what is said of them
ABLE = [
    name
    for name, row in METHODS.items()
    if KIND in amortizer_class(row.method).kinds and not any(map(row.config.get, OF_ONE_LABEL))
]
BY_LABEL, OF_ALL = ("counts", "sums"), ("gram", "whole", "squares", "examples")  # sums that states have, where they do
QUERIES = [row["input"] for row in examples(20, seed=9)]


def sets(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Texts of none, one or several labels, of which each brings its words."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(count):
        own = [label for label in LABELS if float(torch.rand((), generator=generator)) < 0.4]
        pools = [WORDS[label] for label in own] or [VOCABULARY[-6:]]
        drawn = torch.randint(1000, (9,), generator=generator).tolist()
        words = [pools[i % len(pools)][number % len(pools[i % len(pools)])] for i, number in enumerate(drawn)]
        rows.append({"input": " ".join(words), "output": own})
    return rows


@pytest.fixture(params=ABLE)
def amortizer(request: pytest.FixtureRequest, encoder: Backbone, causal: Backbone) -> Amortizer:
    return made(METHODS[request.param], encoder, causal)


@pytest.fixture(params=[name for name in ABLE if METHODS[name].learns == "task"])
def on_features(request: pytest.FixtureRequest, encoder: Backbone, causal: Backbone) -> Amortizer:
    """Those that learn from what the features of a tiny backbone tell, and whose states are merged and edited."""
    return made(METHODS[request.param], encoder, causal)


@pytest.fixture(params=[name for name in ABLE if METHODS[name].learns != "task"])
def in_words(request: pytest.FixtureRequest, causal: Backbone) -> Amortizer:
    """Those whose language model writes the labels."""
    return made(METHODS[request.param], causal, causal)


def adapt(amortizer: Amortizer, rows: Any, state: TaskState | None = None, **options: Any) -> TaskState:
    return amortizer.adapt(rows, state, **{"chunk_size": 8, "progress": False, **options})


def probabilities(prediction: Prediction) -> torch.Tensor:
    assert prediction.probabilities is not None
    assert prediction.log_probs is None
    return prediction.probabilities


def same(first: TaskState, second: TaskState) -> bool:
    return first.header == second.header and all(
        torch.equal(first.tensors[name], second.tensors[name]) for name in (*first.tensors, *second.tensors)
    )


def chunk_of(rows: list[dict[str, Any]]) -> Chunk:
    return Chunk(tuple(row["input"] for row in rows), tuple(row["output"] for row in rows))


def same_sums(first: TaskState, second: TaskState, order: list[int]) -> None:
    """Sums of the same examples; label `i` of the second is label `order[i]` of the first."""
    for name in {*BY_LABEL} & set(second.tensors):
        torch.testing.assert_close(first.tensors[name][order], second.tensors[name], atol=1e-4, rtol=1e-4)
    for name in {*OF_ALL} & set(second.tensors):
        torch.testing.assert_close(first.tensors[name], second.tensors[name], atol=1e-3, rtol=1e-4)


def observed(state: TaskState) -> set[tuple[Any, ...]]:
    """Observations that are kept, each by its features and its labels in the order of their names."""
    places = sorted(range(len(state.task.labels)), key=state.task.labels.__getitem__)
    pairs = zip(state.tensors["features"], state.tensors["targets"][:, places], strict=True)
    return {(*x.tolist(), *own.tolist()) for x, own in pairs}


@pytest.mark.parametrize("row", METHODS.values(), ids=METHODS)
def test_it_is_answered_or_refused_by_name(row: Row, encoder: Backbone, causal: Backbone) -> None:
    amortizer = made(row, encoder, causal)
    task = TaskSpec(KIND, LABELS, task_of(amortizer).columns)
    if KIND not in amortizer.kinds:
        with pytest.raises(DataError, match=r"choose a method that does \([^)]*\biterative\b"):
            amortizer.init_state(task)
    elif refused := [words for setting, words in OF_ONE_LABEL.items() if row.config.get(setting)]:
        with pytest.raises(ConfigError, match=refused[0]):
            amortizer.init_state(task)
    else:
        assert amortizer.init_state(task).task.kind == KIND


def test_it_learns(on_features: Amortizer) -> None:
    test = sets(120, seed=5)
    queries, right = [row["input"] for row in test], [tuple(row["output"]) for row in test]
    few, many = (adapt(on_features, sets(count), chunk_size=32) for count in (8, 400))
    before, after = (score(on_features.predict(state, queries), right) for state in (few, many))
    assert after["negative_log_likelihood"] < before["negative_log_likelihood"] - 0.1
    assert after["ranking_loss"] < min(before["ranking_loss"], 0.45)


def test_probabilities_are_each_labels_own_and_sets_follow_thresholds(on_features: Amortizer) -> None:
    prediction = on_features.predict(adapt(on_features, sets(60)), QUERIES)
    found = probabilities(prediction)
    assert found.shape == (20, 3)
    assert bool(((found >= 0) & (found <= 1)).all())
    for column, label in enumerate(prediction.labels):
        own = torch.tensor([label in several for several in prediction.outputs])
        if own.any() and not own.all():  # one threshold parts those that have the label from those that have not
            assert float(found[own, column].min()) > float(found[~own, column].max())
    assert not torch.allclose(found.sum(1), torch.ones(20), atol=1e-3)


def test_a_language_model_writes_the_labels_in_the_order_of_the_task(in_words: Amortizer) -> None:
    assert isinstance(in_words, Prompted)
    rows = sets(8)
    mixed = [{**row, "output": row["output"][::-1]} for row in rows]
    first, second = (adapt(in_words, some, task=TaskSpec(KIND, LABELS)) for some in (rows, mixed))
    assert all(torch.equal(first.tensors[name], tensor) for name, tensor in second.tensors.items())
    sampled = in_words.prompter.answer(("food", "sports"))
    assert in_words.prompter.decode_answer(sampled).replace(" ", "") == "food;sports;"
    assert len({in_words.prompter.answer(some) for some in (("a", "b"), ("b", "a"), ("a; b",), ("a",), ())}) == 5


def test_a_set_that_is_read_again_and_again_is_known_by_heart(in_words: Amortizer) -> None:
    if in_words.method == "in-context":
        pytest.skip("nothing is fitted")
    outputs: tuple[list[str], ...] = (["music", "food"], [], ["sports"])
    rows = [{**row, "output": own} for row, own in zip(sets(3), outputs, strict=True)]
    queries, right = [row["input"] for row in rows], [tuple(row["output"]) for row in rows]
    task = TaskSpec(KIND, ("music", "food", "sports"))
    state = in_words.init_state(task)
    losses = [score(in_words.predict(state, queries), right)["negative_log_likelihood"]]
    for _ in range(60):
        state = in_words.update(state, chunk_of(rows))
    losses.append(score(in_words.predict(state, queries), right)["negative_log_likelihood"])
    assert losses[1] < 0.9 * losses[0]


def test_a_label_is_what_comes_next_behind_those_that_apply(in_words: Amortizer) -> None:
    """The chain by its definition, a candidate at a time."""
    assert isinstance(in_words, Prompted)
    state = adapt(in_words, sets(8), task=TaskSpec(KIND, LABELS))
    prediction, prepared = in_words.predict(state, QUERIES[:3]), in_words.prepared(state)
    for text, several, found in zip(QUERIES, prediction.outputs, probabilities(prediction), strict=False):
        for place, label in enumerate(LABELS):
            before = tuple(own for own in LABELS[:place] if own in several)
            question = Question(text, LABELS[place:], 0, before)
            (scores,) = in_words.prompter.scores(prepared, [question])
            assert float(found[place]) == pytest.approx(float(scores.softmax(0)[0]), abs=1e-4)
            assert (float(found[place]) > 0.5) == (label in several)


def test_updates_are_pure_and_the_same_input_gives_the_same_state(amortizer: Amortizer) -> None:
    state = adapt(amortizer, sets(16))
    kept = {name: tensor.clone() for name, tensor in state.tensors.items()}
    amortizer.update(state, chunk_of(sets(8, seed=1)))
    amortizer.predict(state, QUERIES)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in state.tensors.items())
    assert same(adapt(amortizer, sets(16)), state) or state.header.stream is None


def test_a_saved_state_is_the_same_state(amortizer: Amortizer, tmp_path: Path) -> None:
    state = adapt(amortizer, sets(24))
    loaded = TaskState.from_pretrained(state.save_pretrained(tmp_path))
    assert same(loaded, state)
    assert loaded.task == TaskSpec(KIND, state.task.labels)
    rebuilt = AutoAmortizer.for_state(loaded, amortizer.backbone)
    first, second = amortizer.predict(state, QUERIES), rebuilt.predict(loaded, QUERIES)
    assert first.outputs == second.outputs
    assert torch.equal(probabilities(first), probabilities(second))


class Killed(Exception):
    pass


def test_a_run_that_is_killed_resumes_to_the_same_state(amortizer: Amortizer, tmp_path: Path) -> None:
    rows = sets(40)
    whole = adapt(amortizer, rows)

    def kill(state: TaskState, _: Chunk) -> None:
        if state.header.examples == 24:
            raise Killed

    with pytest.raises(Killed):
        adapt(amortizer, rows, output=tmp_path, checkpointing_steps=1, on_step=kill)
    left = TaskState.from_pretrained(tmp_path)
    assert left.header.examples == 16
    assert same(adapt(amortizer, rows, left, resume=True), whole)
    again = adapt(amortizer, (row for row in rows), left, resume=True)
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in whole.tensors.items())


def test_states_of_parts_merge_into_the_state_of_the_whole(on_features: Amortizer) -> None:
    rows = sets(48)
    parts = [adapt(on_features, rows[i::2]) for i in (0, 1)]
    merged, whole = on_features.merge(parts), adapt(on_features, rows)
    assert (merged.header.examples, merged.task.kind) == (48, KIND)
    order = [merged.task.labels.index(label) for label in whole.task.labels]
    same_sums(merged, whole, order)
    if "features" in whole.tensors:
        assert observed(merged) <= observed(parts[0]) | observed(parts[1])
        assert all(16 < len(observed(state)) <= 32 for state in (merged, whole))
    if getattr(on_features.config, "signal", None) == "data":
        found, wanted = (probabilities(on_features.predict(state, QUERIES)) for state in (merged, whole))
        torch.testing.assert_close(found[:, order], wanted, atol=1e-3, rtol=0)
    with pytest.raises(StateError, match="same data"):
        on_features.merge([parts[0], parts[0]])


def test_states_of_one_label_and_of_several_are_asked_together_but_not_merged(amortizer: Amortizer) -> None:
    several, one = adapt(amortizer, sets(24)), adapt(amortizer, rows_of(amortizer, 24))
    mixed = amortizer.predict_each([several, one] * 3, QUERIES[:6])
    for number, (state, found) in enumerate(zip(itertools.cycle((several, one)), mixed, strict=False)):
        alone = amortizer.predict(state, [QUERIES[number]])
        assert found.outputs == alone.outputs
        assert found.kind == state.task.kind
        for name in ("log_probs", "probabilities"):
            torch.testing.assert_close(getattr(found, name), getattr(alone, name), atol=1e-4, rtol=1e-4)
    for states in ([several, one], [one, several]):
        with pytest.raises(StateError, match="kind"):
            amortizer.merge(states)


def test_it_answers_by_names_alone_and_grows(amortizer: Amortizer) -> None:
    state = amortizer.init_state(TaskSpec(KIND, LABELS[:1]))
    assert probabilities(amortizer.predict(state, QUERIES)).shape == (20, 1)
    grown = amortizer.update(state, chunk_of(sets(8)))
    assert grown.task.labels[0] == LABELS[0]
    assert set(grown.task.labels) == set(LABELS)
    assert probabilities(amortizer.predict(grown, QUERIES)).shape == (20, 3)
    with pytest.raises(DataError, match="at least one"):
        amortizer.predict(amortizer.init_state(TaskSpec(KIND)), QUERIES)
    with pytest.raises(DataError, match="no row has a label"):
        adapt(amortizer, [{"input": "a text", "output": []}] * 3)


@pytest.mark.parametrize("stream", ["sorted", "the same example", "none of the labels", "all of them"])
def test_odd_chunks_do_no_harm(on_features: Amortizer, stream: str) -> None:
    rows, test = sets(96), sets(60, seed=5)
    odd = {
        "sorted": sorted(rows, key=lambda row: str(row["output"])),
        "the same example": rows + rows[:1] * 96,
        "none of the labels": rows + [{**row, "output": []} for row in sets(48, 3) if not row["output"]],
        "all of them": rows
        + [{"input": row["input"], "output": list(LABELS)} for row in sets(48, 3) if len(row["output"]) == 3],
    }
    queries, right = [row["input"] for row in test], [tuple(row["output"]) for row in test]
    task = TaskSpec(KIND, LABELS)
    found = score(on_features.predict(adapt(on_features, odd[stream], task=task), queries), right)
    assert found["ranking_loss"] < 0.5  # better than chance
    assert found["negative_log_likelihood"] < 3 * 0.7 + 0.3  # and hardly worse than knowing nothing of three labels


@pytest.mark.parametrize("named", ["late", "ahead"])
def test_a_label_that_comes_late_is_corrected_no_further_than_its_examples_bear(named: str, encoder: Backbone) -> None:
    early = [row for row in sets(2400, seed=1) if LABELS[2] not in row["output"]][:1200]
    late, test = sets(64, seed=4), sets(100, seed=8)
    queries, right = [row["input"] for row in test], [tuple(row["output"]) for row in test]
    task = TaskSpec(KIND, LABELS if named == "ahead" else LABELS[:2])

    def loss(signal: str, size: int) -> tuple[float, TaskState]:
        amortizer = AutoAmortizer.from_pretrained("iterative", backbone=encoder, config={"signal": signal})
        state = adapt(amortizer, early, chunk_size=64, task=task)
        state = adapt(amortizer, late, state, chunk_size=size)
        return score(amortizer.predict(state, queries), right)["negative_log_likelihood"], state

    alone, _ = loss("data", 64)
    for size in (8, 64):
        corrected, state = loss("both", size)
        assert corrected < alone + 0.1
        assert float(state.tensors["correction"].abs().max()) < 50  # unbounded steps were of several hundred


def test_a_list_for_a_label_and_the_reverse_are_refused(amortizer: Amortizer) -> None:
    several, one = adapt(amortizer, sets(24)), adapt(amortizer, rows_of(amortizer, 24))
    with pytest.raises(DataError, match="choose the kind"):
        amortizer.update(one, chunk_of(sets(8)))
    with pytest.raises(DataError, match="each is a list"):
        amortizer.update(several, chunk_of(rows_of(amortizer, 8)))
    with pytest.raises(DataError, match="each is a list"):
        adapt(amortizer, rows_of(amortizer, 8), task=TaskSpec(KIND))
    with pytest.raises(DataError, match="choose the kind"):
        adapt(amortizer, sets(8), task=TaskSpec("classification"))
    with pytest.raises(DataError, match="each is a list"):
        score(amortizer.predict(several, QUERIES[:2]), ["sports", "music"])
    with pytest.raises(DataError, match="choose the kind"):
        score(amortizer.predict(one, QUERIES[:2]), [("sports",), ()])


def test_what_is_of_one_label_alone_is_refused_by_name(on_features: Amortizer, tmp_path: Path) -> None:
    rows = sets(24)
    state = adapt(on_features, rows)
    kept = {name: tensor.clone() for name, tensor in state.tensors.items()}
    refused: list[Any] = [
        lambda: on_features.update(state, Chunk((), (), ("a text",))),
        lambda: on_features.predict(state, QUERIES, transductive=True),
        lambda: on_features.export(state, tmp_path / "peft", "peft"),
        lambda: on_features.merge_labels(state, LABELS[:2], "both"),
        lambda: on_features.relabel(state, rows, "sports"),
    ]
    remedies = ["leave the[sm]", "leave the[sm]", "sentence-transformers or onnx|no PEFT form", "one name", "adapt"]
    for call, remedy in zip(refused, remedies, strict=True):
        with pytest.raises(IAIError, match=remedy):
            call()
    assert not list(tmp_path.iterdir())
    assert all(torch.equal(tensor, kept[name]) for name, tensor in state.tensors.items())


def test_what_is_forgotten_is_gone_from_the_sums(on_features: Amortizer) -> None:
    rows = sets(32)
    state, left = adapt(on_features, rows), adapt(on_features, rows[8:], task=TaskSpec(KIND, tuple(LABELS)))
    edited = on_features.forget(state, rows[:8])
    assert edited.header.examples == 24
    assert edited.header.history[-1].edit == "forget"
    order = [state.task.labels.index(label) for label in left.task.labels]
    same_sums(edited, left, order)
    if "features" in left.tensors:
        assert observed(edited) == observed(left)
    nothing = on_features.forget(state, rows, strict=True)
    assert not any(bool(nothing.tensors[name].any()) for name in (*BY_LABEL, *OF_ALL) if name in nothing.tensors)
    assert probabilities(on_features.predict(nothing, QUERIES)).isfinite().all()
    with pytest.raises(DataError, match="does not know the label"):
        on_features.forget(state, [{"input": "a text", "output": ["nothing of the kind"]}])
    with pytest.raises(DataError, match=r"to forget|never read"):
        on_features.forget(state, sets(60, seed=4)[:30])
    with pytest.raises(DataError, match="each is a list"):
        on_features.forget(state, rows_of(on_features, 2))


def test_labels_that_a_text_never_had_are_not_forgotten_with_it(on_features: Amortizer) -> None:
    rows = sets(20)
    state = adapt(on_features, rows)
    if "squares" in state.tensors:
        pytest.skip("of each dimension alone too little is known to tell")
    kept = {name: tensor.clone() for name, tensor in state.tensors.items()}
    for row in rows[:6]:
        others = [label for label in LABELS if label not in row["output"]]
        for wrong in (others, row["output"][1:] if row["output"] else others[:1], list(LABELS) if others else []):
            with pytest.raises(DataError, match="never read, or not with these labels"):
                on_features.forget(state, [{**row, "output": wrong}])
        on_features.forget(state, [row])
    assert all(torch.equal(tensor, kept[name]) for name, tensor in state.tensors.items())


def test_what_is_forgotten_may_have_a_label_that_all_have_or_none(on_features: Amortizer) -> None:
    rows = [{**row, "output": ["common", *row["output"]]} for row in sets(20)]
    state = adapt(on_features, rows, task=TaskSpec(KIND, ("common", *LABELS, "rare")))
    assert on_features.forget(state, rows[:5]).header.examples == 15
    for wrong in (rows[0]["output"][1:], [*rows[0]["output"], "rare"]):
        with pytest.raises(DataError, match=r"to forget|never read"):
            on_features.forget(state, [{**rows[0], "output": wrong}])


def test_labels_are_renamed_added_and_dropped_while_their_texts_stay(on_features: Amortizer) -> None:
    state = adapt(on_features, sets(32))
    first, *others = state.task.labels
    renamed = on_features.rename_label(state, first, "another name")
    assert renamed.task.labels == ("another name", *others)
    assert renamed.header.examples == 32
    added = on_features.add_label(state, "politics")
    assert probabilities(on_features.predict(added, QUERIES)).shape == (20, 4)
    dropped = on_features.drop_label(state, first)
    assert dropped.task.labels == tuple(others)
    assert dropped.header.examples == 32
    texts = sum(first in row["output"] for row in sets(32))
    assert dropped.header.history[-1].examples == texts  # not their share of all labels
    assert all(share == texts / 32 for share in dropped.header.history[-1].approximate.values())
    assert all(torch.equal(dropped.tensors[name], state.tensors[name]) for name in {*OF_ALL} & set(state.tensors))
    assert on_features.predict(dropped, QUERIES).labels == tuple(others)


def test_a_stream_is_resumed_with_the_separator_that_it_was_read_with(amortizer: Amortizer, tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    rows = [{**row, "output": "; ".join(row["output"])} for row in sets(24)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = Columns(label_separator=";")
    left = adapt(amortizer, path, columns=columns, max_examples=16)
    assert same(adapt(amortizer, path, left, columns=columns, resume=True), adapt(amortizer, path, columns=columns))
    with pytest.raises(StateError, match="was left in a stream of columns"):
        adapt(amortizer, path, left, columns=Columns(label_separator=","), resume=True)


def test_a_pipeline_answers_with_the_labels_that_apply(amortizer: Amortizer) -> None:
    state = adapt(amortizer, sets(60))
    prediction, answer = amortizer.predict(state, QUERIES), StatePipeline(state, amortizer)
    for found, labels in zip(answer(QUERIES), prediction.outputs, strict=True):
        assert {one["label"] for one in found} == set(labels)
        assert [one["score"] for one in found] == sorted((one["score"] for one in found), reverse=True)
    assert [len(found) for found in answer(QUERIES[:2], top_k=2)] == [2, 2]
    assert answer(QUERIES[0], top_k=None) == answer(QUERIES[:1], top_k=None)[0]


def test_a_card_says_what_is_answered(amortizer: Amortizer) -> None:
    state = adapt(amortizer, sets(16))
    card = state_card(state.header, state.nbytes, "you/tags")
    assert "those of 3 labels that apply, if any" in card
    assert "pipeline_tag: text-classification" in card


def test_what_fades_leaves_room_for_a_label_whose_meaning_changes(encoder: Backbone) -> None:
    new = {"sports": "music", "music": "food", "food": "sports"}
    moved = [{**row, "output": [new[label] for label in row["output"]]} for row in sets(120, seed=2)]
    test = sets(90, seed=5)
    queries, right = [row["input"] for row in test], [tuple(new[label] for label in row["output"]) for row in test]

    def loss(half_life: int | None) -> float:
        amortizer = AutoAmortizer.from_pretrained("iterative", backbone=encoder, config={"half_life": half_life})
        state = adapt(amortizer, sets(240) + moved, task=TaskSpec(KIND, LABELS))
        return score(amortizer.predict(state, queries), right)["ranking_loss"]

    assert loss(24) < loss(None) - 0.1
