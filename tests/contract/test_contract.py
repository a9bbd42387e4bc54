"""What every method promises, through the same tests. A new method is a line in `matrix.py`, nothing else."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import numpy
import pandas
import pyarrow
import pytest
import torch
from conftest import LABELS, examples
from huggingface_hub import ModelCard
from matrix import METHODS, adapt, chunk_of, input_of, made, queries_of, rows_of, task_of

from iai_hf import AutoAmortizer, Chunk, TaskSpec, TaskState
from iai_hf.amortizer import Amortizer
from iai_hf.auto import methods
from iai_hf.backbones import Backbone
from iai_hf.backbones.causal_lm import CausalLM
from iai_hf.errors import BackboneError, ConfigError, DataError, StateError
from iai_hf.features.frozen_features import FrozenFeatures
from iai_hf.language_model.prompted import Prompted


@pytest.fixture(params=METHODS)
def amortizer(request: pytest.FixtureRequest, encoder: Backbone, causal: Backbone) -> Amortizer:
    return made(METHODS[request.param], encoder, causal)


def same(first: TaskState, second: TaskState) -> bool:
    return first.header == second.header and same_tensors(first, second)


def same_tensors(first: TaskState, second: TaskState) -> bool:
    return first.tensors.keys() == second.tensors.keys() and all(
        torch.equal(first.tensors[name], second.tensors[name]) for name in first.tensors
    )


def log_probs(amortizer: Amortizer, state: TaskState) -> torch.Tensor:
    scores = amortizer.predict(state, queries_of(amortizer)).log_probs
    assert scores is not None
    return scores


def test_every_registered_method_is_tested() -> None:
    assert {row.method for row in METHODS.values()} == set(methods())


def test_update_and_predict_leave_the_state_untouched(amortizer: Amortizer) -> None:
    state = adapt(amortizer, rows_of(amortizer, 16), chunk_size=8)
    before = {name: tensor.clone() for name, tensor in state.tensors.items()}
    header = dataclasses.replace(state.header)
    amortizer.update(state, chunk_of(rows_of(amortizer, 8, seed=1)))
    amortizer.predict(state, queries_of(amortizer))
    assert state.header == header
    assert all(torch.equal(before[name], tensor) for name, tensor in state.tensors.items())
    with pytest.raises(TypeError):
        state.tensors["new"] = torch.zeros(1)  # type: ignore[index]


def test_the_same_input_gives_the_same_state(amortizer: Amortizer) -> None:
    first, second = (adapt(amortizer, rows_of(amortizer, 16), chunk_size=8) for _ in range(2))
    assert same_tensors(first, second)


def test_threads_get_what_each_gets_alone(amortizer: Amortizer) -> None:
    def answers(seed: int) -> torch.Tensor:
        return log_probs(amortizer, adapt(amortizer, rows_of(amortizer, 16, seed), chunk_size=8))

    alone = [answers(seed) for seed in range(3)]
    with ThreadPoolExecutor(3) as pool:
        for found, expected in zip(pool.map(answers, range(3)), alone, strict=True):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_an_update_that_is_not_finite_is_told_before_it_is_saved(
    amortizer: Amortizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = adapt(amortizer, rows_of(amortizer, 16), output=tmp_path)
    refine = amortizer.refine

    def broken(*arguments: Any) -> Any:
        tensors, counts = refine(*arguments)
        return {
            name: tensor * (math.nan if tensor.is_floating_point() else 1) for name, tensor in tensors.items()
        }, counts

    monkeypatch.setattr(amortizer, "refine", broken)
    if not any(tensor.is_floating_point() for tensor in state.tensors.values()):
        pytest.skip("the state holds no floats")
    with pytest.raises(StateError, match="not finite"):
        adapt(amortizer, rows_of(amortizer, 16), state, output=tmp_path)
    assert same(TaskState.from_pretrained(tmp_path), state)


def test_a_saved_state_is_the_same_state(amortizer: Amortizer, tmp_path: Path) -> None:
    state = adapt(amortizer, rows_of(amortizer, 16), chunk_size=8)
    loaded = TaskState.from_pretrained(state.save_pretrained(tmp_path))
    assert same(state, loaded)
    rebuilt = AutoAmortizer.for_state(loaded, amortizer.backbone)
    assert torch.equal(log_probs(amortizer, state), log_probs(rebuilt, loaded))


def test_a_saved_amortizer_is_the_same_amortizer(amortizer: Amortizer, tmp_path: Path) -> None:
    amortizer.save_pretrained(tmp_path)
    loaded = AutoAmortizer.from_pretrained(tmp_path, backbone=amortizer.backbone)
    # The fingerprint covers method, settings and weights; where the weights lie may differ.
    assert (type(loaded), loaded.fingerprint) == (type(amortizer), amortizer.fingerprint)


def test_a_resumed_stream_ends_in_the_same_state(amortizer: Amortizer, tmp_path: Path) -> None:
    rows = rows_of(amortizer, 30)
    whole = adapt(amortizer, rows, chunk_size=8)
    part = adapt(amortizer, rows, chunk_size=8, max_examples=16)
    loaded = TaskState.from_pretrained(part.save_pretrained(tmp_path))
    rest = adapt(amortizer, rows, loaded, chunk_size=8, resume=True)
    assert same(whole, rest)


def test_resume_refuses_what_the_state_was_not_left_in(amortizer: Amortizer) -> None:
    rows = rows_of(amortizer, 30)
    part = adapt(amortizer, rows, chunk_size=8, max_examples=16)
    for name, other in (
        ("another list", rows_of(amortizer, 30, seed=5)),
        ("one that differs in its first row", [*rows_of(amortizer, 1, seed=5), *rows[1:]]),
        ("a shorter one", rows[:12]),
        ("a generator of other rows", iter(rows_of(amortizer, 30, seed=5))),
    ):
        with pytest.raises(StateError, match="another dataset"):
            pytest.fail(f"{name} was accepted: {adapt(amortizer, other, part, chunk_size=8, resume=True)}")
    by_hand = amortizer.update(part, chunk_of(rows[16:24]))
    with pytest.raises(StateError, match="no position in a stream"):
        adapt(amortizer, rows, by_hand, chunk_size=8, resume=True)
    with pytest.raises(StateError, match="not generation"):
        adapt(amortizer, rows, part, chunk_size=8, resume=True, task=TaskSpec("generation"))
    with pytest.raises(StateError, match="labels"):
        adapt(amortizer, rows, part, chunk_size=8, resume=True, task=TaskSpec("classification", ("chess",)))


def test_a_generator_is_resumed_as_a_list_is(amortizer: Amortizer) -> None:
    rows = rows_of(amortizer, 30)
    part = adapt(amortizer, iter(rows), chunk_size=8, max_examples=16)
    assert same(adapt(amortizer, rows, chunk_size=8), adapt(amortizer, iter(rows), part, chunk_size=8, resume=True))


def test_going_on_with_more_data_counts_all_examples(amortizer: Amortizer) -> None:
    state = adapt(amortizer, rows_of(amortizer, 16), chunk_size=8)
    state = adapt(amortizer, rows_of(amortizer, 8, seed=1), state, chunk_size=8)
    assert (state.header.examples, state.header.steps) == (24, 3)


def test_chunk_size_does_not_matter_where_the_method_promises_it(amortizer: Amortizer) -> None:
    if not amortizer.chunk_free:
        pytest.skip("no such promise")
    states = [adapt(amortizer, rows_of(amortizer, 24), chunk_size=size) for size in (1, 5, 24)]
    assert all(same_tensors(states[0], state) for state in states[1:])


def test_prepared_answers_equal_fresh_ones(amortizer: Amortizer, tmp_path: Path) -> None:
    state = adapt(amortizer, rows_of(amortizer, 16), chunk_size=8)
    first, again = log_probs(amortizer, state), log_probs(amortizer, state)
    copy = TaskState(dict(state.tensors), state.header)
    assert torch.equal(first, again)
    assert torch.equal(first, log_probs(amortizer, copy))


def test_queries_of_several_states_are_answered_as_each_alone(amortizer: Amortizer) -> None:
    one = adapt(amortizer, rows_of(amortizer, 16), chunk_size=8)
    other = adapt(amortizer, rows_of(amortizer, 16, seed=1), chunk_size=8)
    states, queries = [one, other, one, other], queries_of(amortizer, 4)
    for state, query, answer in zip(states, queries, amortizer.predict_each(states, queries), strict=True):
        alone = amortizer.predict(state, [query])
        torch.testing.assert_close(answer.log_probs, alone.log_probs, rtol=1e-3, atol=1e-3)
    with pytest.raises(DataError, match="one for each"):
        amortizer.predict_each([one], [queries_of(amortizer)[0]] * 2)


def test_an_export_is_a_peft_adapter_or_refused_by_name(amortizer: Amortizer, tmp_path: Path) -> None:
    state = adapt(amortizer, rows_of(amortizer, 16), chunk_size=8)
    if isinstance(amortizer, Prompted) or getattr(amortizer.config, "depth", None):
        amortizer.export(state, tmp_path / "adapter")
        assert (tmp_path / "adapter" / "adapter_config.json").is_file()
        card = (tmp_path / "adapter" / "README.md").read_text()
        assert ModelCard(card).data.to_dict()["library_name"] == "peft"
        assert "PeftModel.from_pretrained" in card
    else:
        with pytest.raises(ConfigError, match=f"{amortizer.method!r} .* no PEFT form"):
            amortizer.export(state, tmp_path / "adapter")
        assert not (tmp_path / "adapter").exists()


def test_an_export_is_a_sentence_transformers_folder_or_refused_by_name(amortizer: Amortizer, tmp_path: Path) -> None:
    state = adapt(amortizer, rows_of(amortizer, 16), chunk_size=8)
    if amortizer.method == "iterative" and not isinstance(amortizer.backbone, CausalLM):
        amortizer.export(state, tmp_path / "model", "sentence-transformers")
        assert (tmp_path / "model" / "modules.json").is_file()
    else:
        with pytest.raises((ConfigError, BackboneError), match="sentence-transformers"):
            amortizer.export(state, tmp_path / "model", "sentence-transformers")
        assert not (tmp_path / "model").exists()


def test_answers_come_with_a_stated_error_or_are_refused_by_name(amortizer: Amortizer, tmp_path: Path) -> None:
    state, queries = adapt(amortizer, rows_of(amortizer, 24), chunk_size=8), queries_of(amortizer)
    follows = getattr(amortizer.config, "depth", 0) or getattr(amortizer.config, "watch", False)
    able = amortizer.method.startswith("iterative") and not follows
    if not able:
        with pytest.raises(ConfigError, match=f"{amortizer.method!r} can't state the error of its answers"):
            amortizer.predict(state, queries, coverage=0.9)
        return
    found = amortizer.predict(state, queries, coverage=0.9, abstain=0.2)
    assert found.sets is not None
    assert all(output is None or output in labels for output, labels in zip(found.outputs, found.sets, strict=True))
    torch.testing.assert_close(found.log_probs, log_probs(amortizer, state))
    again = TaskState.from_pretrained(state.save_pretrained(tmp_path)).predict(
        queries, coverage=0.9, abstain=0.2, backbone=amortizer.backbone
    )
    assert (again.sets, again.outputs) == (found.sets, found.outputs)
    for share in (0, 1, 90, True, "0.9"):
        with pytest.raises(DataError, match="expected a share between 0 and 1"):
            amortizer.predict(state, queries, abstain=share)  # type: ignore[arg-type]
    with pytest.raises(StateError, match="takes at least 99 examples"):
        amortizer.predict(state, queries, coverage=0.99)


def test_an_empty_output_is_named(amortizer: Amortizer) -> None:
    with pytest.raises(DataError, match="example 1 of a chunk: output is empty"):
        amortizer.update(amortizer.init_state(task_of(amortizer)), Chunk(("a", "b"), ("music", " ")))


def test_answers_do_not_depend_on_the_other_queries(amortizer: Amortizer) -> None:
    state = adapt(amortizer, rows_of(amortizer, 16), chunk_size=8)
    together = log_probs(amortizer, state)
    alone = torch.cat([amortizer.predict(state, [query]).log_probs for query in queries_of(amortizer)])  # type: ignore[misc]
    torch.testing.assert_close(together, alone, atol=1e-3, rtol=1e-3)


def test_predictions_are_distributions_over_the_labels(amortizer: Amortizer) -> None:
    state = adapt(amortizer, rows_of(amortizer, 16), chunk_size=8)
    prediction = amortizer.predict(state, queries_of(amortizer))
    assert prediction.log_probs is not None
    assert prediction.log_probs.shape == (len(queries_of(amortizer)), len(prediction.labels))
    torch.testing.assert_close(prediction.log_probs.exp().sum(1), torch.ones(len(queries_of(amortizer))))
    assert set(prediction.outputs) <= set(prediction.labels)


def test_it_answers_before_the_first_example(amortizer: Amortizer) -> None:
    assert log_probs(amortizer, amortizer.init_state(task_of(amortizer))).isfinite().all()


def test_labels_that_turn_up_grow_the_state(amortizer: Amortizer) -> None:
    state = amortizer.update(
        amortizer.init_state(task_of(amortizer, ())), chunk_of(rows_of(amortizer, 8, labels=LABELS[:2]))
    )
    assert set(state.task.labels) == set(LABELS[:2])
    state = amortizer.update(state, chunk_of(rows_of(amortizer, 4, labels=LABELS[2:])))
    assert state.task.labels[2:] == LABELS[2:]
    assert log_probs(amortizer, state).shape[1] == 3


@pytest.mark.parametrize("stream", ["one class a chunk", "the same example", "sorted"])
def test_odd_chunks_do_no_harm(amortizer: Amortizer, stream: str) -> None:
    rows = rows_of(amortizer, 24)
    if stream == "one class a chunk":
        rows = [row for label in LABELS for row in rows if row["output"] == label][:24]
    elif stream == "the same example":
        rows = rows + rows[:1] * 24
    else:
        rows = sorted(rows, key=lambda row: row["output"])
    state = amortizer.init_state(task_of(amortizer))
    for first in range(0, len(rows), 8):
        state = amortizer.update(state, chunk_of(rows[first : first + 8]))
    assert all(tensor.isfinite().all() for tensor in state.tensors.values() if tensor.is_floating_point())
    assert log_probs(amortizer, state).isfinite().all()


def test_the_state_stays_as_large_as_it_is(amortizer: Amortizer) -> None:
    sizes = [adapt(amortizer, rows_of(amortizer, n), task=task_of(amortizer), chunk_size=16).nbytes for n in (160, 320)]
    assert abs(sizes[0] - sizes[1]) <= 200  # in-context: a demonstration more or less within the budget


def test_a_state_of_another_backbone_is_refused(amortizer: Amortizer, tmp_path: Path) -> None:
    state = amortizer.init_state(task_of(amortizer))
    foreign = TaskState(state.tensors, dataclasses.replace(state.header, backbone_fingerprint="0" * 32))
    with pytest.raises(StateError, match="belongs to backbone"):
        amortizer.predict(foreign, queries_of(amortizer))
    with pytest.raises(StateError, match="belongs to backbone"):
        amortizer.update(foreign, chunk_of(rows_of(amortizer, 4)))


def test_a_state_of_another_method_or_setting_is_refused(amortizer: Amortizer) -> None:
    state = amortizer.init_state(task_of(amortizer))
    changes: tuple[dict[str, Any], ...] = ({"method": "other"}, {"amortizer": "0" * 32})
    for change, words in zip(changes, ("made by", "another configuration"), strict=True):
        with pytest.raises(StateError, match=words):
            amortizer.predict(
                TaskState(state.tensors, dataclasses.replace(state.header, **change)), queries_of(amortizer)
            )


def test_bad_queries_are_refused(amortizer: Amortizer) -> None:
    state = amortizer.init_state(task_of(amortizer))
    for queries in ([], [""], ["   "], [3]):
        with pytest.raises(DataError):
            amortizer.predict(state, queries)
    with pytest.raises(DataError, match="at least two"):
        amortizer.predict(amortizer.init_state(task_of(amortizer, ())), queries_of(amortizer))


def test_a_bare_string_or_dictionary_is_never_read_by_its_parts(amortizer: Amortizer) -> None:
    state = adapt(amortizer, rows_of(amortizer, 16), chunk_size=8)
    query = queries_of(amortizer)[0]
    for wrong in ("a fine film", b"bytes", {"text": "a fine film"}, {"a", "b"}, 3, None, numpy.asarray("text")):
        with pytest.raises(DataError, match="expected a sequence"):
            amortizer.predict(state, wrong)  # type: ignore[arg-type]
        with pytest.raises(DataError, match="expected a sequence"):
            amortizer.predict_each([state], wrong)  # type: ignore[arg-type]
        with pytest.raises(DataError, match="expected a sequence"):
            Chunk(wrong, ("a",))  # type: ignore[arg-type]
        with pytest.raises(DataError, match="expected a sequence"):
            Chunk((query,), wrong)  # type: ignore[arg-type]


def test_columns_of_every_library_are_queries_and_chunks(amortizer: Amortizer) -> None:
    rows = rows_of(amortizer, 12)
    state = adapt(amortizer, rows, chunk_size=8)
    inputs, outputs = [input_of(row) for row in rows], [row["output"] for row in rows]
    wanted = amortizer.predict(state, inputs).log_probs
    kinds: list[Callable[[list[Any]], Any]] = [
        iter,
        lambda column: pandas.Series(column, index=range(5, 17)),
        numpy.asarray,
        pyarrow.array,
        lambda column: datasets.Dataset.from_dict({"column": column})["column"],
    ]
    for kind in kinds:
        assert torch.equal(amortizer.predict(state, kind(inputs)).log_probs, wanted)  # type: ignore[arg-type]
        chunk = Chunk(kind(inputs), kind(outputs))
        assert (chunk.inputs, chunk.outputs) == (tuple(inputs), tuple(outputs))
        assert {type(value) for value in chunk.outputs} == {str}
    assert len(amortizer.predict_each(iter([state] * 12), kinds[1](inputs))) == 12  # type: ignore[arg-type]


def test_one_class_is_refused(amortizer: Amortizer) -> None:
    with pytest.raises(DataError, match="one label"):
        adapt(amortizer, rows_of(amortizer, 8, labels=LABELS[:1]), task=TaskSpec())


def test_unknown_settings_are_named(amortizer: Amortizer) -> None:
    with pytest.raises(ConfigError, match="colour"):
        AutoAmortizer.from_pretrained(amortizer.method, backbone=amortizer.backbone, config={"colour": 1})
    known = "max_tokens" if amortizer.reads == "texts" else "width"
    with pytest.raises(ConfigError, match=known):
        AutoAmortizer.from_pretrained(amortizer.method, backbone=amortizer.backbone, config={known: "many"})


def test_texts_cut_at_max_tokens_are_counted(amortizer: Amortizer) -> None:
    if amortizer.reads == "numbers":
        pytest.skip("there are no texts")
    short = AutoAmortizer.from_pretrained(amortizer.method, backbone=amortizer.backbone, config={"max_tokens": 3})
    assert short.adapt(rows_of(amortizer, 8)).header.counts["texts_cut"] == 8


def test_states_of_parts_merge_into_the_state_of_the_whole(amortizer: Amortizer) -> None:
    rows = rows_of(amortizer, 48)
    parts = [adapt(amortizer, rows[i::2], chunk_size=8) for i in (0, 1)]
    if not isinstance(amortizer, FrozenFeatures):
        with pytest.raises(ConfigError, match="can't be merged"):
            amortizer.merge(parts)
        return
    merged, whole = amortizer.merge(parts), adapt(amortizer, rows, chunk_size=8)
    assert (merged.header.examples, merged.header.steps) == (48, 6)
    # The labels turn up in another order in each part, and are brought into one.
    order = [merged.task.labels.index(label) for label in whole.task.labels]
    for name in ("counts", "sums"):
        if name in whole.tensors:
            torch.testing.assert_close(merged.tensors[name][order], whole.tensors[name], atol=1e-4, rtol=1e-4)
    for name in ("gram", "squares"):
        if name in whole.tensors:
            torch.testing.assert_close(merged.tensors[name], whole.tensors[name], atol=1e-4, rtol=1e-4)
    closed_form = {"iterative-explicit", "iterative-implicit"} & {amortizer.method} or (
        getattr(amortizer.config, "signal", None) == "data"
    )
    if closed_form and amortizer.method != "iterative-implicit":
        torch.testing.assert_close(
            log_probs(amortizer, merged)[:, order], log_probs(amortizer, whole), atol=1e-3, rtol=0
        )
    assert log_probs(amortizer, merged).isfinite().all()
    with pytest.raises(StateError, match="at least two"):
        amortizer.merge(parts[:1])


def test_rows_without_a_label_are_taken_or_refused_by_name(amortizer: Amortizer, tmp_path: Path) -> None:
    rows, others = rows_of(amortizer, 16), tuple(map(input_of, rows_of(amortizer, 12, seed=1)))
    state, only = adapt(amortizer, rows, chunk_size=8), Chunk((), (), others)
    mixed = Chunk(tuple(map(input_of, rows)), tuple(row["output"] for row in rows), others)
    if not amortizer.takes_unlabelled or bool(getattr(amortizer.config, "depth", False)):
        for chunk in (only, mixed):
            with pytest.raises(ConfigError, match=f"{amortizer.method!r} can't take rows without a label"):
                amortizer.update(state, chunk)
        with pytest.raises(ConfigError, match="queries that inform each other"):
            amortizer.predict(state, others, transductive=True)
        return
    after = amortizer.update(state, only)
    assert (after.header.examples, after.header.steps, after.header.counts["unlabelled"]) == (16, 3, 12)
    assert all(torch.equal(after.tensors[name], tensor) for name, tensor in state.tensors.items())
    assert same(TaskState.from_pretrained(after.save_pretrained(tmp_path)), after)
    alone, both = amortizer.update(state, chunk_of(rows)), amortizer.update(state, mixed)
    assert all(torch.equal(both.tensors[name], tensor) for name, tensor in alone.tensors.items())
    for informed in (after, both, adapt(amortizer, rows, after, chunk_size=8)):
        assert log_probs(amortizer, informed).isfinite().all()
    transductive = amortizer.predict(state, others, transductive=True).log_probs
    torch.testing.assert_close(transductive, amortizer.predict(after, others).log_probs)


def test_forgetting_follows_a_stream_that_drifts(encoder: Backbone) -> None:
    old, new = examples(240), examples(120, seed=2)
    swapped = [{**row, "output": LABELS[(LABELS.index(row["output"]) + 1) % 3]} for row in new]
    test = examples(90, seed=5)
    wanted = [LABELS[(LABELS.index(row["output"]) + 1) % 3] for row in test]

    def hits(half_life: int | None) -> int:
        config = {"half_life": half_life}
        amortizer = AutoAmortizer.from_pretrained("iterative", backbone=encoder, config=config)
        state = adapt(amortizer, old + swapped, chunk_size=12, task=task_of(amortizer))
        found = amortizer.predict(state, list(map(input_of, test))).outputs
        return sum(answer == right for answer, right in zip(found, wanted, strict=True))

    assert hits(24) > hits(None) + 5


def test_torchs_default_dtype_changes_nothing(amortizer: Amortizer) -> None:
    rows = rows_of(amortizer, 16)
    expected = adapt(amortizer, rows, chunk_size=8)
    torch.set_default_dtype(torch.float64)
    try:
        again = type(amortizer)(amortizer.backbone, amortizer.config)
        state = adapt(again, rows, chunk_size=8)
        scores = log_probs(again, state)
    finally:
        torch.set_default_dtype(torch.float32)
    assert again.fingerprint == amortizer.fingerprint
    assert {name: tensor.dtype for name, tensor in state.tensors.items()} == {
        name: tensor.dtype for name, tensor in expected.tensors.items()
    }
    torch.testing.assert_close(scores, log_probs(amortizer, expected), atol=1e-3, rtol=1e-3)
