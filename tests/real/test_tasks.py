"""Real text on real weights: the untrained head against logistic regression on the same frozen features."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sklearn.linear_model import LogisticRegression

from iai_hf import AutoAmortizer
from iai_hf.backbones import Backbone

MARGIN = 0.01  # a point of accuracy


def read(path: Path) -> tuple[list[str], list[str]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [row["input"] for row in rows], [row["output"] for row in rows]


@pytest.mark.parametrize("task", ["trec6", "fv_person_sport", "banking77"])
def test_all_examples_give_at_least_logistic_regression_less_a_point(task: str, tasks: Path, minilm: Backbone) -> None:
    folder = tasks / "meta_test" / task
    inputs, outputs = read(folder / "train.jsonl")
    test_inputs, test_outputs = read(folder / "test.jsonl")
    amortizer = AutoAmortizer.from_pretrained("iterative", backbone=minilm)
    state = amortizer.adapt(folder / "train.jsonl", shuffle_seed=0, progress=False)
    found = amortizer.predict(state, test_inputs).outputs
    ours = sum(a == b for a, b in zip(found, test_outputs, strict=True)) / len(found)
    train, test = minilm.features(inputs).vectors.numpy(), minilm.features(test_inputs).vectors.numpy()
    reference = LogisticRegression(max_iter=2000).fit(train, outputs).score(test, test_outputs)
    assert ours >= reference - MARGIN
    assert state.nbytes < 1_000_000


def test_depth_learns_what_frozen_features_do_not_tell(tasks: Path, minilm: Backbone) -> None:
    inputs, outputs = read(tasks / "meta_train" / "dailydialog_act" / "train.jsonl")
    rows = [{"input": text, "output": act} for text, act in zip(inputs[:128], outputs[:128], strict=True)]
    found = []
    for depth in (0, "auto"):
        amortizer = AutoAmortizer.from_pretrained("iterative", backbone=minilm, config={"depth": depth})
        state = amortizer.adapt(rows, progress=False)
        answers = amortizer.predict(state, inputs[-300:]).outputs
        found.append(sum(a == b for a, b in zip(answers, outputs[-300:], strict=True)) / 300)
        assert state.nbytes < 2**20
    assert found[1] >= found[0] + 4 * MARGIN


def test_the_language_model_learns_from_demonstrations(tasks: Path, smollm: Backbone) -> None:
    inputs, outputs = read(tasks / "meta_test" / "sst2" / "test.jsonl")
    amortizer = AutoAmortizer.from_pretrained("in-context", backbone=smollm)
    state = amortizer.adapt(tasks / "meta_test" / "sst2" / "train.jsonl", max_examples=16, progress=False)
    found = amortizer.predict(state, inputs[:60]).outputs
    assert sum(a == b for a, b in zip(found, outputs[:60], strict=True)) >= 36
