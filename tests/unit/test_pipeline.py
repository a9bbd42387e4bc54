"""A state as a transformers pipeline: the same answers, in transformers' own form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import datasets
import numpy
import pandas
import pytest
import torch
from conftest import LABELS, examples
from transformers import BertConfig, BertForSequenceClassification, TextClassificationPipeline
from transformers.pipelines.pt_utils import KeyDataset

from iai_hf import AutoAmortizer, Chunk, TaskSpec
from iai_hf.backbones import Backbone
from iai_hf.errors import ConfigError, DataError
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
    assert [answer["label"] for answer in pipeline(TEXTS[0])] == [wanted.outputs[0]]
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


@pytest.fixture
def pipeline(encoder: Backbone) -> StatePipeline:
    amortizer = AutoAmortizer.from_pretrained("iterative", backbone=encoder)
    return StatePipeline(amortizer.adapt(examples(60), progress=False), amortizer)


@pytest.fixture(scope="module")
def theirs(encoder: Backbone) -> TextClassificationPipeline:
    config = BertConfig(
        vocab_size=len(encoder.tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=1,
        intermediate_size=16, id2label=dict(enumerate(LABELS)),
    )  # fmt: skip
    return TextClassificationPipeline(model=BertForSequenceClassification(config), tokenizer=encoder.tokenizer)


def form(answer: object) -> object:
    """Types and keys of an answer, without what it says."""
    if isinstance(answer, dict):
        return {key: type(value) for key, value in answer.items()}
    return [form(part) for part in answer]  # type: ignore[attr-defined]


ASKED: dict[str, Callable[[], Any]] = {
    "one": lambda: TEXTS[0],
    "many": lambda: TEXTS[:3],
    "a list of one": lambda: TEXTS[:1],
    "dictionary": lambda: {"text": TEXTS[0]},
    "dictionaries": lambda: [{"text": text} for text in TEXTS[:3]],
    "generator": lambda: (text for text in TEXTS[:3]),
    "dataset": lambda: KeyDataset(datasets.Dataset.from_dict({"text": TEXTS[:3]}), "text"),
}


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("parameters", [{}, {"top_k": 1}, {"top_k": 2}, {"top_k": None}, {"truncation": True}], ids=str)
def test_answers_have_transformers_own_form(
    asked: str, parameters: dict[str, Any], pipeline: StatePipeline, theirs: TextClassificationPipeline
) -> None:
    made = ASKED[asked]
    ours = pipeline(made(), **parameters)
    assert form(ours) == form(theirs(made(), **parameters))
    assert isinstance(pipeline(made()), list | dict) == isinstance(theirs(made()), list | dict)


def test_parameters_of_the_constructor_count_at_each_call(
    pipeline: StatePipeline, theirs: TextClassificationPipeline
) -> None:
    ours = StatePipeline(pipeline.state, pipeline.amortizer, top_k=2, batch_size=2)
    other = TextClassificationPipeline(model=theirs.model, tokenizer=theirs.tokenizer, top_k=2, batch_size=2)
    for made in ASKED.values():
        assert form(ours(made())) == form(other(made()))


@pytest.mark.parametrize(
    "made",
    [
        tuple,
        pandas.Index,
        lambda texts: pandas.Series(texts, index=range(10, 10 + len(texts))),
        lambda texts: numpy.asarray(texts, dtype=object),
        numpy.asarray,
        lambda texts: datasets.Dataset.from_dict({"text": texts})["text"],
        lambda texts: datasets.Dataset.from_dict({"text": texts}),
    ],
)
def test_any_sequence_gets_an_answer_a_text(made, pipeline: StatePipeline) -> None:  # type: ignore[no-untyped-def]
    assert pipeline(made(TEXTS), batch_size=3) == pipeline(TEXTS, batch_size=3)
    assert len(pipeline(made(TEXTS))) == len(TEXTS)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"text": "a", "text_pair": "b"}, "text_pair"),
        ([{"text": "a"}, {"text": "a", "text_pair": "b"}], "query 1 .*text_pair"),
        ({"sentence": "a"}, "sentence"),
        ({}, "expected 'text'"),
        ({"text": ["a", "b"]}, "list"),
        (["a", ["b", "c"]], "query 1 "),
        (["a", ""], "query 1 "),
        (["a", None], "query 1 is missing"),
        (["a", float("nan")], "query 1 is missing"),
        (None, "NoneType"),
        (7, "int"),
        (b"bytes", "bytes"),
        (pandas.Series([]), "none"),
        ([], "none"),
        ({"a", "b"}, "set"),
        (pandas.DataFrame({"text": ["a", "b"], "title": ["a", "b"]}), "columns.*title"),
        ([{"role": "user", "content": "a"}], "role"),
        (datasets.Dataset.from_list(examples(2)), "columns.*output"),
    ],
)
def test_what_is_no_text_is_refused(asked: object, words: str, pipeline: StatePipeline) -> None:
    with pytest.raises(DataError, match=words):
        pipeline(asked)


def test_the_text_that_fails_in_a_stream_is_named(pipeline: StatePipeline) -> None:
    answers = pipeline((text for text in [*TEXTS, ""]), batch_size=2)
    with pytest.raises(DataError, match=f"query {len(TEXTS)} "):
        list(answers)


@pytest.mark.parametrize("parameters", [{"top_k": 0}, {"top_k": 1.5}, {"top_k": "all"}, {"batch_size": -1}])
def test_numbers_are_checked(parameters: dict[str, Any], pipeline: StatePipeline) -> None:
    with pytest.raises(ConfigError, match=next(iter(parameters))):
        pipeline(TEXTS, **parameters)


def test_truncation_reads_what_the_context_holds(pipeline: StatePipeline, encoder: Backbone) -> None:
    long = "ball team goal " * 100 + "song band guitar " * 300
    words = encoder.context - 2  # [CLS] and [SEP]
    start = " ".join(long.split()[:words])
    assert pipeline(long, truncation=True) == pipeline(start)
    assert pipeline(long, truncation=True) != pipeline(long)
    assert pipeline(long, truncation=False) == pipeline(long)
    assert pipeline(long, max_length=5) == pipeline("ball team goal")
    assert pipeline([long], max_length=5, truncation=True)[0] == pipeline(["ball team goal"])[0]
    assert pipeline(TEXTS[0], truncation=True) == pipeline(TEXTS[0])
    with pytest.raises(DataError, match="hold nothing"):
        pipeline(long, max_length=1)


def test_batches_need_no_padding_token(causal: Backbone) -> None:
    amortizer = AutoAmortizer.from_pretrained("in-context", backbone=causal)
    state = amortizer.adapt(examples(4), task=TaskSpec("classification", LABELS), progress=False)
    pad, causal.tokenizer.pad_token = causal.tokenizer.pad_token, None
    try:
        found = StatePipeline(state, amortizer, batch_size=4)(TEXTS)
    finally:
        causal.tokenizer.pad_token = pad
    assert [answer["label"] for answer in found] == list(amortizer.predict(state, TEXTS).outputs)
    assert torch.get_default_dtype() == torch.float32
