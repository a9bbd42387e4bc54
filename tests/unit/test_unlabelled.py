"""Unlabelled text: it helps, it moves nothing that labels have made, it knows no order, it is never read unasked."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy
import pandas
import pytest
import torch
from conftest import LABELS, examples
from sklearn.exceptions import NotFittedError
from test_heads import CLASSES, SIZE, blobs, names_of
from torch.nn.functional import cross_entropy

from iai_hf import AutoAmortizer, Chunk, TaskSpec, TaskState
from iai_hf.amortizer import Amortizer
from iai_hf.backbones import Backbone
from iai_hf.data import Columns, open_stream
from iai_hf.errors import ConfigError, DataError, StateError
from iai_hf.estimator import IAIClassifier
from iai_hf.features.heads import TEMPLATES, ExplicitHead, Head, ParametricHead
from iai_hf.features.heads.unlabelled import KEPT, Sample, split

HEADS = {
    "both": ParametricHead,
    "data": lambda: ParametricHead("data"),
    "gradient": lambda: ParametricHead("gradient"),
    "explicit": ExplicitHead,
}
ROWS, TEXTS = examples(40), [row["input"] for row in examples(60, seed=3)]
UNLABELLED = [{"input": text} for text in TEXTS]
ALLOWED = Columns(allow_missing_outputs=True)


@pytest.fixture(params=["iterative", "iterative-explicit"])
def amortizer(request: pytest.FixtureRequest, encoder: Backbone) -> Amortizer:
    return AutoAmortizer.from_pretrained(request.param, backbone=encoder)


def sample(count: int, seed: int, moved: float = 0.0) -> Sample:
    x, _ = blobs(count, seed)
    x = torch.nn.functional.normalize(x + moved, dim=1)
    return Sample.read(x, [f"{seed} {number}" for number in range(count)])


def hints(seed: int) -> torch.Tensor:
    """Names that are near the middle of their classes."""
    centres = torch.randn(CLASSES, SIZE, generator=torch.Generator().manual_seed(42))  # as those of `blobs`
    noise = torch.randn(CLASSES, SIZE, generator=torch.Generator().manual_seed(seed))
    found = torch.nn.functional.normalize(torch.nn.functional.normalize(centres, dim=1) + 0.4 * noise, dim=1)
    return found.expand(len(TEMPLATES), -1, -1)


def answers(amortizer: Amortizer, state: TaskState) -> torch.Tensor:
    found = amortizer.predict(state, [row["input"] for row in examples(20, seed=9)]).log_probs
    assert found is not None
    return found


def same(one: TaskState, other: TaskState) -> bool:
    return one.tensors.keys() == other.tensors.keys() and all(
        torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors
    )


# The heads.


@pytest.mark.parametrize("kind", HEADS)
def test_it_helps_before_the_first_label(kind: str) -> None:
    head: Head = HEADS[kind]().requires_grad_(False)
    test, answer = blobs(600, seed=100)
    gains, losses = [], []
    for seed in range(4):
        state = head.grow(head.initial(SIZE), hints(seed))
        plain, found = (
            head.logits(head.prepare(tensors), test) for tensors in (state, {**state, **sample(500, seed + 50).tensors})
        )
        gains.append(float((found.argmax(1) == answer).float().mean() - (plain.argmax(1) == answer).float().mean()))
        losses.append(float(cross_entropy(found, answer) - cross_entropy(plain, answer)))
    assert sum(gains) / 4 > 0.03, gains
    assert sum(losses) / 4 < 0, losses


@pytest.mark.parametrize("kind", HEADS)
def test_text_of_another_task_counts_nothing_once_labels_tell(kind: str) -> None:
    head: Head = HEADS[kind]().requires_grad_(False)
    x, y = blobs(32, 1)
    state = head.refine(head.grow(head.initial(SIZE), names_of()), x, y)
    test, _ = blobs(300, seed=100)
    plain, of_this, of_another = (
        head.logits(head.prepare(tensors), test).softmax(1)
        for tensors in (state, {**state, **sample(500, 2).tensors}, {**state, **sample(500, 2, moved=0.6).tensors})
    )
    assert float((of_this - plain).abs().max()) > 20 * float((of_another - plain).abs().max())


def test_it_counts_less_and_less_as_labels_come() -> None:
    head = ParametricHead("data").requires_grad_(False)
    test, _ = blobs(300, seed=100)
    changes = []
    for count in (16, 256, 4096):
        state = head.refine(head.grow(head.initial(SIZE), names_of()), *blobs(count, 1))
        plain, found = (
            head.logits(head.prepare(tensors), test).softmax(1)
            for tensors in (state, {**state, **sample(500, 2).tensors})
        )
        changes.append(float((found - plain).abs().mean()))
    assert changes[0] > 3 * changes[1] > 9 * changes[2]


# The sample.


def test_a_sample_knows_no_order_and_no_chunks() -> None:
    x, _ = blobs(2000)
    texts = [f"text {number}" for number in range(2000)]
    whole = Sample.read(x, texts)
    order = torch.randperm(2000, generator=torch.Generator().manual_seed(1)).tolist()
    parts = [
        Sample.read(x[order[first : first + 300]], [texts[i] for i in order[first : first + 300]])
        for first in range(0, 2000, 300)
    ]
    joined = parts[0].joined(*parts[1:])
    assert len(whole.features) == KEPT
    assert all(torch.equal(one, other) for one, other in zip(vars(whole).values(), vars(joined).values(), strict=True))
    in_turn = parts[0]
    for part in parts[1:]:
        in_turn = in_turn.joined(part)
    assert torch.equal(in_turn.features, whole.features)


def test_a_sample_is_drawn_evenly_and_holds_a_text_once() -> None:
    texts = [f"text {number}" for number in range(4000)]
    x = torch.arange(4000.0)[:, None] / 4000
    found = Sample.read(x, texts)
    assert abs(float(found.features.float().mean()) - 0.5) < 4 * 0.29 / math.sqrt(KEPT)
    twice = found.joined(found)
    assert torch.equal(twice.features, found.features)
    assert float(twice.rows) == 8000


def test_a_faded_sample_follows_the_newest_rows() -> None:
    x = torch.ones(KEPT, 1)
    old = Sample.read(0 * x, [f"old {number}" for number in range(KEPT)])
    new = Sample.read(x, [f"new {number}" for number in range(KEPT)])
    assert float(old.joined(new).features.float().mean()) == pytest.approx(0.5, abs=0.1)
    assert float(old.faded(0.1).joined(new).features.float().mean()) > 0.8
    assert float(old.faded(0.0).joined(new).features.float().mean()) == 1.0  # of a half-life that underflows


# States.


def test_what_labels_have_made_is_the_same_with_it_and_without(amortizer: Amortizer) -> None:
    plain = amortizer.adapt(ROWS, chunk_size=8, progress=False)
    state = amortizer.adapt(ROWS, unlabelled=UNLABELLED, chunk_size=8, progress=False)
    labelled, kept = split(state.tensors)
    assert labelled.keys() == plain.tensors.keys()
    assert all(torch.equal(labelled[name], plain.tensors[name]) for name in labelled)
    assert kept is not None
    assert len(kept.features) == len(set(TEXTS))
    assert (state.header.examples, state.header.counts["unlabelled"]) == (40, 60)
    assert "unlabelled" not in plain.header.counts
    assert not torch.equal(answers(amortizer, state), answers(amortizer, plain))


def test_its_place_in_the_stream_does_not_matter(amortizer: Amortizer) -> None:
    task = TaskSpec("classification", LABELS)
    labelled, rows = Chunk(*zip(*[tuple(row.values()) for row in ROWS], strict=True)), Chunk((), (), tuple(TEXTS))
    first, last = (amortizer.init_state(task) for _ in range(2))
    for chunk in (rows, labelled):
        first = amortizer.update(first, chunk)
    for chunk in (labelled, Chunk((), (), tuple(TEXTS[:7])), Chunk((), (), tuple(TEXTS[7:]))):
        last = amortizer.update(last, chunk)
    together = amortizer.update(amortizer.init_state(task), Chunk(labelled.inputs, labelled.outputs, tuple(TEXTS)))
    torch.testing.assert_close(answers(amortizer, first), answers(amortizer, last), atol=1e-3, rtol=0)
    torch.testing.assert_close(answers(amortizer, first), answers(amortizer, together), atol=1e-3, rtol=0)


def test_a_run_that_was_cut_off_ends_in_the_same_state(amortizer: Amortizer, tmp_path: Path) -> None:
    options: dict[str, Any] = {"unlabelled": UNLABELLED, "chunk_size": 8, "progress": False}
    mixed = [row if number % 3 else {**row, "output": None} for number, row in enumerate(ROWS)]
    for data, columns in ((ROWS, None), (mixed, ALLOWED)):
        whole = amortizer.adapt(data, columns=columns, **options)
        for seen in (3, 8, 20):  # amid the unlabelled rows, at their end, amid the labelled ones

            class Cut(Exception):
                pass

            def cut(state: TaskState, chunk: Chunk, seen: int = seen) -> None:
                if state.header.steps == seen:
                    state.save_pretrained(tmp_path / str(seen))
                    raise Cut

            steps = whole.header.steps
            if seen >= steps:
                continue
            with pytest.raises(Cut):
                amortizer.adapt(data, columns=columns, on_step=cut, **options)
            left = TaskState.from_pretrained(tmp_path / str(seen))
            state = amortizer.adapt(data, left, columns=columns, resume=True, **options)
            assert state.header == whole.header
            assert same(state, whole)
    with pytest.raises(StateError, match="same unlabelled text"):
        amortizer.adapt(ROWS, left, chunk_size=8, resume=True, progress=False)


def test_the_data_itself_as_unlabelled_text_is_told(
    amortizer: Amortizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    amortizer.adapt(data, unlabelled=data, progress=False)
    assert "those of the data itself" in caplog.text


def test_files_are_resumed_too_and_max_examples_counts_the_data_alone(amortizer: Amortizer, tmp_path: Path) -> None:
    data, other = tmp_path / "data.jsonl", tmp_path / "unlabelled.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    other.write_text("".join(json.dumps(row) + "\n" for row in UNLABELLED))
    options: dict[str, Any] = {"unlabelled": other, "chunk_size": 8, "shuffle_seed": 1, "progress": False}
    part = amortizer.adapt(data, max_examples=16, **options)
    assert (part.header.examples, part.header.counts["unlabelled"]) == (16, 60)
    whole = amortizer.adapt(data, part, resume=True, **options)
    assert (whole.header.examples, whole.header.counts["unlabelled"]) == (40, 60)
    assert same(whole, amortizer.adapt(data, **options))
    with pytest.raises(StateError, match="another dataset"):
        amortizer.adapt(data, part, resume=True, **{**options, "unlabelled": None})


def test_merged_parts_have_the_sample_of_the_whole(amortizer: Amortizer, tmp_path: Path) -> None:
    options: dict[str, Any] = {"chunk_size": 8, "progress": False, "task": TaskSpec("classification", LABELS)}
    one = amortizer.adapt(ROWS[:20], unlabelled=UNLABELLED[:30], **options)
    two = amortizer.adapt(ROWS[20:], unlabelled=UNLABELLED[30:], **options)
    none = amortizer.adapt(examples(8, seed=7), **options)
    whole = amortizer.adapt(ROWS, unlabelled=UNLABELLED, **options)
    merged = amortizer.merge([one, two])
    torch.testing.assert_close(
        merged.tensors["unlabelled.features"], whole.tensors["unlabelled.features"], atol=1e-3, rtol=0
    )
    assert torch.equal(merged.tensors["unlabelled.priorities"], whole.tensors["unlabelled.priorities"])
    assert merged.header.counts["unlabelled"] == 60
    for parts in ([none, one], [one, none]):
        assert amortizer.merge(parts).header.counts["unlabelled"] == 30
        assert torch.equal(amortizer.merge(parts).tensors["unlabelled.rows"], one.tensors["unlabelled.rows"])
    loaded = TaskState.from_pretrained(merged.save_pretrained(tmp_path))
    assert torch.equal(answers(amortizer, loaded), answers(amortizer, merged))


def test_data_that_were_read_twice_are_told_also_where_other_texts_stand_before(
    amortizer: Amortizer, tmp_path: Path
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(json.dumps(row) for row in ROWS))
    one = amortizer.adapt(data, progress=False)
    two = amortizer.adapt(data, unlabelled=unlabelled_file(tmp_path), progress=False)
    with pytest.raises(StateError, match="the same data"):
        amortizer.merge([one, two])


def unlabelled_file(folder: Path) -> Path:
    path = folder / "unlabelled.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in UNLABELLED))
    return path


def test_unlabelled_data_without_a_row_are_refused(amortizer: Amortizer, tmp_path: Path) -> None:
    empty = tmp_path / "empty.csv"
    empty.write_text("input,output\n")
    with pytest.raises(DataError, match=r"no rows|is empty"):
        amortizer.adapt(ROWS, unlabelled=empty, progress=False)


def test_labels_that_turn_up_later_are_found_in_it(amortizer: Amortizer) -> None:
    state = amortizer.update(amortizer.init_state(), Chunk((), (), tuple(TEXTS)))
    state = amortizer.adapt(ROWS, state, chunk_size=8, progress=False)
    assert answers(amortizer, state).isfinite().all()
    assert set(state.task.labels) == set(LABELS)


def test_a_half_life_keeps_new_texts(encoder: Backbone) -> None:
    for half_life, least, most in ((None, 0.2, 0.8), (50, 0.9, 1.0)):
        amortizer = AutoAmortizer.from_pretrained("iterative", backbone=encoder, config={"half_life": half_life})
        state = amortizer.init_state(TaskSpec("classification", LABELS))
        for kind in ("old", "new"):
            texts = [f"{kind} {number}" for number in range(600)]
            state = amortizer.update(state, Chunk((), (), tuple(texts)))
        new = set(Sample.read(torch.zeros(600, 1), texts).priorities.tolist())
        kept = state.tensors["unlabelled.priorities"].tolist()
        assert least <= sum(priority in new for priority in kept) / len(kept) <= most


def test_queries_inform_each_other_where_that_is_asked(amortizer: Amortizer) -> None:
    state = amortizer.adapt(ROWS[:8], task=TaskSpec("classification", LABELS), progress=False)
    before = {name: tensor.clone() for name, tensor in state.tensors.items()}
    found = amortizer.predict(state, TEXTS, transductive=True)
    expected = amortizer.predict(amortizer.update(state, Chunk((), (), tuple(TEXTS))), TEXTS)
    torch.testing.assert_close(found.log_probs, expected.log_probs)
    assert not torch.equal(found.log_probs, amortizer.predict(state, TEXTS).log_probs)  # type: ignore[arg-type]
    assert all(torch.equal(before[name], tensor) for name, tensor in state.tensors.items())
    assert torch.equal(amortizer.predict(state, TEXTS).log_probs, amortizer.predict(state, TEXTS).log_probs)  # type: ignore[arg-type]


# Data.


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
@pytest.mark.parametrize("shuffle_seed", [None, 2])
def test_a_missing_output_is_an_error_unless_it_is_allowed(
    suffix: str, shuffle_seed: int | None, tmp_path: Path
) -> None:
    path = tmp_path / f"data{suffix}"
    rows = [{"input": row["input"], "output": None if number % 2 else row["output"]} for number, row in enumerate(ROWS)]
    if suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        frame = pandas.DataFrame(rows)
        frame.to_csv(path, index=False) if suffix == ".csv" else frame.to_parquet(path)
    with pytest.raises(DataError, match=r"'output' is (missing|empty)"):
        list(open_stream(path, shuffle_seed=shuffle_seed).records())
    chunks = list(open_stream(path, ALLOWED, shuffle_seed=shuffle_seed).chunks(16))
    assert sum(len(chunk) for chunk in chunks) == sum(len(chunk.unlabelled) for chunk in chunks) == 20
    assert all(chunk.rows == 16 for chunk in chunks[:-1])
    assert sorted(text for chunk in chunks for text in chunk.unlabelled) == sorted(row["input"] for row in ROWS[1::2])
    with pytest.raises(DataError, match="no column 'topic'"):  # a typo in a name is none of missing outputs
        list(open_stream(path, Columns(output="topic", allow_missing_outputs=True)).records())


def test_a_line_without_the_key_is_told_how_to_miss_an_output(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"input": "a", "output": "x"}\n{"input": "b"}\n')
    with pytest.raises(DataError, match="write null"):
        list(open_stream(tmp_path / "rows.jsonl", ALLOWED).records())


def test_class_numbers_mark_rows_without_a_label_by_minus_one() -> None:
    import datasets

    features = datasets.Features({"input": datasets.Value("string"), "output": datasets.ClassLabel(names=["a", "b"])})
    data = datasets.Dataset.from_dict({"input": ["x", "y", "z"], "output": [0, -1, 1]}, features=features)
    with pytest.raises(DataError, match="-1"):
        list(open_stream(data).records())
    assert [record.output for record in open_stream(data, ALLOWED).records()] == ["a", None, "b"]
    plain = [{"input": "x", "output": -1}]
    assert [record.output for record in open_stream(plain, ALLOWED).records()] == ["-1"]  # a class like any other


def test_what_can_not_be_done_is_told(amortizer: Amortizer, encoder: Backbone) -> None:
    task = TaskSpec("classification", LABELS)
    empty = [{**row, "output": None} for row in ROWS]
    with pytest.raises(DataError, match="no row has a label"):
        amortizer.adapt(empty, columns=ALLOWED, progress=False)
    assert amortizer.adapt(empty, columns=ALLOWED, task=task, progress=False).header.examples == 0
    with pytest.raises(DataError, match="not known ahead"):
        amortizer.adapt(ROWS, unlabelled=iter(UNLABELLED), progress=False)
    with pytest.raises(DataError, match="no column 'input'"):
        amortizer.adapt(ROWS, unlabelled=[{"text": "a"}], progress=False)
    with pytest.raises(DataError, match="row 0 is a str; expected a dictionary"):
        amortizer.adapt(ROWS, unlabelled=TEXTS, progress=False)
    with pytest.raises(DataError, match="unlabelled inputs"):
        Chunk((), (), "a text")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="empty"):
        Chunk((), ())
    deep = AutoAmortizer.from_pretrained("iterative", backbone=encoder, config={"depth": 1})
    with pytest.raises(ConfigError, match="where it has a depth, here 1; leave them out, or set depth=0"):
        deep.adapt(ROWS, unlabelled=UNLABELLED, progress=False)
    other = AutoAmortizer.from_pretrained("iterative-implicit", backbone=encoder)
    state = other.init_state(task)
    for wrong in (
        lambda: other.adapt(ROWS, unlabelled=UNLABELLED, progress=False),
        lambda: other.adapt(ROWS, columns=ALLOWED, progress=False),
        lambda: other.update(state, Chunk((), (), ("a",))),
        lambda: other.predict(state, ["a"], transductive=True),
    ):
        with pytest.raises(ConfigError, match=r"can't take rows without a label.*\(iterative, iterative-explicit\)"):
            wrong()


# scikit-learn.


def test_minus_one_and_none_are_rows_without_a_label_where_that_is_asked(encoder: Backbone) -> None:
    options: dict[str, Any] = {"backbone": encoder, "chunk_size": 8}
    outputs: list[Any] = [row["output"] for row in ROWS]
    texts = [row["input"] for row in ROWS] + TEXTS
    plain = IAIClassifier(**options).fit(texts[:40], outputs)
    for mark in (-1, None, math.nan):
        y = numpy.array(outputs + [mark] * 60, dtype=object)
        found = IAIClassifier(**options, unlabelled=True).fit(texts, y)
        assert list(found.classes_) == list(plain.classes_)
        assert found.state_.header.counts["unlabelled"] == 60
        for name, tensor in plain.state_.tensors.items():
            assert torch.equal(tensor, found.state_.tensors[name])
        with pytest.raises(DataError):
            IAIClassifier(**options).fit(texts, y)
    with pytest.raises(DataError, match="the text '-1'"):  # what numpy makes of -1 among texts
        IAIClassifier(**options, unlabelled=True).fit(texts, numpy.array([*outputs, *[-1] * 60]))
    numbers = numpy.array([sorted(LABELS).index(output) for output in outputs] + [-1] * 60)
    found = IAIClassifier(**options, unlabelled=True).fit(texts, numbers)
    assert found.classes_.tolist() == [0, 1, 2]
    assert found.predict(texts[:3]).dtype == numbers.dtype
    assert IAIClassifier(**options).fit(texts, numbers).classes_.tolist() == [-1, 0, 1, 2]  # a class, as ever


def test_parts_of_a_fit_may_lack_labels(encoder: Backbone) -> None:
    model = IAIClassifier(backbone=encoder, unlabelled=True)
    model.partial_fit(TEXTS, [-1] * 60, classes=list(LABELS))
    model.partial_fit([row["input"] for row in ROWS], [row["output"] for row in ROWS])
    model.partial_fit(TEXTS[:5], numpy.array([None] * 5))
    assert model.state_.header.counts["unlabelled"] == 65
    assert list(model.classes_) == sorted(LABELS)
    with pytest.raises(DataError, match="at least two"):
        IAIClassifier(backbone=encoder, unlabelled=True).fit(TEXTS, [-1] * 60)
    with pytest.raises(NotFittedError):
        IAIClassifier(backbone=encoder, unlabelled=True).predict(TEXTS)
    with pytest.raises(ConfigError, match="can't take rows without a label"):
        IAIClassifier("iterative-implicit", encoder, unlabelled=True).fit(
            TEXTS, numpy.array(["a", "b", *[-1] * 58], dtype=object)
        )


@pytest.mark.parametrize("labelled", [0, 8])
def test_a_query_beside_which_no_other_stands_is_answered_as_ever(amortizer: Amortizer, labelled: int) -> None:
    state = amortizer.init_state(TaskSpec(labels=LABELS))
    if labelled:
        rows = ROWS[:labelled]
        state = amortizer.update(
            state, Chunk(tuple(row["input"] for row in rows), tuple(row["output"] for row in rows))
        )
    alone = amortizer.predict(state, TEXTS[:1], transductive=True).log_probs
    plain = amortizer.predict(state, TEXTS[:1]).log_probs
    assert alone is not None
    assert plain is not None
    assert torch.equal(alone, plain)
