"""States of older formats, committed as they were written: they load, answer the same, and go on in their stream."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from iai_hf import AutoAmortizer, TaskState
from iai_hf.backbones import Backbone, load_backbone
from iai_hf.errors import ConfigError, StateError

FORMAT_1 = Path(__file__).parents[1] / "fixtures" / "format-1"
EXPECTED = json.loads((FORMAT_1 / "expected.json").read_text())


@pytest.mark.parametrize(
    ("method", "backbone"), [("iterative", "encoder"), ("in-context", "causal"), ("lm-state", "causal")]
)
def test_a_state_of_format_1_answers_as_it_did_and_goes_on(method: str, backbone: str) -> None:
    state = TaskState.from_pretrained(FORMAT_1 / method)
    amortizer = AutoAmortizer.for_state(state, load_backbone(str(FORMAT_1 / backbone), dtype="float32"))
    whole = amortizer.adapt(FORMAT_1 / "train.jsonl", state, chunk_size=8, resume=True, progress=False)
    assert (state.header.examples, whole.header.examples) == (16, 24)
    for name, found in (("part", state), ("whole", whole)):
        expected = torch.tensor(EXPECTED["log_probs"][method][name])
        answers = amortizer.predict(found, EXPECTED["queries"]).log_probs
        torch.testing.assert_close(answers, expected, rtol=1e-3, atol=1e-3)


def test_settings_under_their_former_names_are_the_same_ones() -> None:
    backbone = load_backbone(str(FORMAT_1 / "causal"), dtype="float32")
    state = TaskState.from_pretrained(FORMAT_1 / "lm-state")
    assert {"demonstrations", "decay"} <= set(state.header.config)
    former = AutoAmortizer.for_state(state, backbone)
    assert former.config.demonstration_tokens == state.header.config["demonstrations"]
    assert former.config.learning_rate_exponent == state.header.config["decay"]
    today = TaskState(state.tensors, former.init_state(state.task).header)
    assert {"demonstration_tokens", "learning_rate_exponent"} <= set(today.header.config)
    assert state.header.amortizer == today.header.amortizer == AutoAmortizer.for_state(today, backbone).fingerprint


def test_a_budget_of_demonstrations_is_counted_in_tokens_under_its_former_name(causal: Backbone) -> None:
    backbone = load_backbone(str(FORMAT_1 / "causal"), dtype="float32")
    state = TaskState.from_pretrained(FORMAT_1 / "in-context")
    former = AutoAmortizer.for_state(state, backbone)
    assert former.config.demonstration_tokens == state.header.config["budget"]
    assert state.header.amortizer == former.fingerprint == former.init_state(state.task).header.amortizer
    with pytest.raises(ConfigError, match="budget is now demonstration_tokens"):
        AutoAmortizer.from_pretrained("in-context", backbone=causal, config={"budget": 8})


def test_an_amortizer_of_an_older_format_loads_and_a_new_value_counts(causal: Backbone, tmp_path: Path) -> None:
    settings = {"rank": 2, "layers": 1, "target_modules": ["v_proj"], "demonstrations": 8, "decay": -0.5}
    older = {"method": "lora", "config": settings, "base_model_name_or_path": causal.name, "format_version": 1}
    (tmp_path / "config.json").write_text(json.dumps(older))
    loaded = AutoAmortizer.from_pretrained(tmp_path, backbone=causal).config
    assert (loaded.demonstration_tokens, loaded.learning_rate_exponent) == (8, -0.5)
    changed = AutoAmortizer.from_pretrained(tmp_path, backbone=causal, config={"demonstration_tokens": 16}).config
    assert (changed.demonstration_tokens, changed.learning_rate_exponent) == (16, -0.5)


def test_a_former_name_that_a_user_gives_is_refused_with_the_new_one(causal: Backbone) -> None:
    with pytest.raises(ConfigError, match="demonstrations is now demonstration_tokens"):
        AutoAmortizer.from_pretrained("lm-state", backbone=causal, config={"demonstrations": 8})


def test_states_of_format_1_load_where_first_tokens_are_pooled_and_later_ones_only_on_their_own(tmp_path: Path) -> None:
    folder = shutil.copytree(FORMAT_1 / "encoder", tmp_path / "encoder")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    mean, first = load_backbone(str(FORMAT_1 / "encoder")), load_backbone(str(folder))
    assert first.fingerprint != mean.fingerprint
    old = TaskState.from_pretrained(FORMAT_1 / "iterative")  # its fingerprint tells no pooling
    assert AutoAmortizer.for_state(old, first).predict(old, EXPECTED["queries"]).log_probs is not None
    new = AutoAmortizer.from_pretrained("iterative", backbone=mean).init_state()
    with pytest.raises(StateError, match="belongs to backbone"):
        AutoAmortizer.for_state(new, first)
