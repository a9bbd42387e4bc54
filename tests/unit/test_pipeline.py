"""A state as a transformers pipeline: the same answers, in transformers' own form."""

from __future__ import annotations

import pytest
from conftest import examples

from iai_hf import AutoAmortizer, Chunk, TaskSpec
from iai_hf.backbones import Backbone
from iai_hf.errors import DataError
from iai_hf.pipeline import StatePipeline

TEXTS = [row["input"] for row in examples(7, seed=4)]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_classes_come_with_their_scores(encoder: Backbone, batch_size: int) -> None:
    amortizer = AutoAmortizer.from_pretrained("iterative", backbone=encoder)
    state = amortizer.adapt(examples(60), progress=False)
    pipeline = StatePipeline(state, amortizer, batch_size=batch_size)
    wanted = amortizer.predict(state, TEXTS)
    assert wanted.log_probs is not None
    found = pipeline(TEXTS)
    assert [answer["label"] for answer in found] == list(wanted.outputs)
    for answer, row in zip(found, wanted.log_probs.exp().max(1).values.tolist(), strict=True):
        assert answer["score"] == pytest.approx(row, abs=1e-3)
    assert pipeline(TEXTS[0])["label"] == wanted.outputs[0]
    every = pipeline(TEXTS[:2], top_k=None)
    assert [len(answers) for answers in every] == [3, 3]
    assert sum(answer["score"] for answer in every[0]) == pytest.approx(1, abs=1e-4)
    assert [answer["label"] for answer in pipeline(text for text in TEXTS)] == list(wanted.outputs)


def test_texts_are_generated(causal: Backbone) -> None:
    amortizer = AutoAmortizer.from_pretrained("in-context", backbone=causal)
    state = amortizer.adapt(examples(4), task=TaskSpec("generation"), progress=False)
    found = StatePipeline(state, amortizer)(TEXTS[:2])
    assert [answer[0]["generated_text"] for answer in found] == list(amortizer.predict(state, TEXTS[:2]).outputs)


def test_a_table_has_no_text_pipeline_and_other_parameters_are_named(encoder: Backbone) -> None:
    numeric = AutoAmortizer.from_pretrained("numeric-parametric")
    task = TaskSpec("regression", columns=("a", "b"))
    table = numeric.update(numeric.init_state(task), Chunk(((1.0, 2.0), (0.0, 1.0)), ("1", "2")))
    with pytest.raises(DataError, match="table of numbers"):
        StatePipeline(table, numeric)
    amortizer = AutoAmortizer.from_pretrained("iterative", backbone=encoder)
    state = amortizer.adapt(examples(20), progress=False)
    with pytest.raises(DataError, match="temperature"):
        StatePipeline(state, amortizer, temperature=2)
