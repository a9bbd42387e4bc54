"""Free text: greedy is greedy, and every output that a task has can come back."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import pytest
import tiny_backbones
import torch

from iai_hf import AutoAmortizer, Chunk, TaskSpec, TaskState
from iai_hf.backbones import Backbone, load_backbone
from iai_hf.config import first_names
from iai_hf.errors import ConfigError
from iai_hf.language_model.answers import PICTURES, escape, unescape
from iai_hf.language_model.prompting import PromptConfig, Prompter

GENERATION = TaskSpec("generation")
LONG = {"max_new_tokens": 9}
QUERIES = ["ball team goal", "a song of the band", "soup"]
# What a folder may ask of generation; each changed answers or ended in a traceback.
ASKED: list[dict[str, Any]] = [
    {"repetition_penalty": 5.0},
    {"no_repeat_ngram_size": 1},
    {"min_new_tokens": 30},
    {"num_beams": 3},
    {"num_beams": 2, "num_return_sequences": 2},
    {"return_dict_in_generate": True},
    {"use_cache": False},
    {"cache_implementation": "static"},
    {"stop_strings": ["a"]},
    {"do_sample": True, "min_p": 0.9, "temperature": 3.0},
    {"suppress_tokens": list(range(5, 300))},
    {"forced_bos_token_id": 7, "forced_eos_token_id": 7},
    {"max_length": 3},
    {"prompt_lookup_num_tokens": 3},
    {"output_scores": True, "output_attentions": True},
    {"top_k": 1, "typical_p": 0.1, "epsilon_cutoff": 0.5},
]
OUTPUTS = (
    "two\nlines",
    "\n\nblank lines first\n\n",
    "windows\r\nlines\r",
    "  indented\tcode  ",
    "</s> and <pad>",
    "music , and food .",
    "the ␊ and ␛ of text",
    "\\nabla \\n",
    "\u00a0no break\u3000",
    "Input: a\nOutput: b\n",
)


def folder(tmp_path: Path, **asked: Any) -> str:
    made = tiny_backbones.make(tmp_path / "model", "llama", tiny_backbones.tokenizer("bytes"))
    path = made / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **asked}))
    return str(made)


def answers(name: str, sampling: Any = None) -> Any:
    amortizer: Any = AutoAmortizer.from_pretrained(
        "in-context", backbone=load_backbone(name, dtype="float32"), config={"max_new_tokens": 6}
    )
    state = amortizer.init_state(GENERATION)
    state = amortizer.update(state, Chunk(("ball goal", "band"), ("sports of ball", "music")))
    return amortizer.generate(state, QUERIES, sampling)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], list[str]]:
    from iai_hf.backbones.conditions import Sampling

    name = folder(tmp_path_factory.mktemp("plain"))
    return answers(name), answers(name, Sampling(temperature=1.5))


@pytest.mark.parametrize("asked", ASKED, ids=lambda asked: "-".join(asked))
def test_greedy_is_greedy_whatever_the_folder_asks_for(tmp_path: Path, asked: dict[str, Any], plain: Any) -> None:
    from iai_hf.backbones.conditions import Sampling

    name = folder(tmp_path, **asked)
    assert (answers(name), answers(name, Sampling(temperature=1.5))) == plain


@pytest.mark.parametrize("asked", [{"return_dict": False}, {"output_hidden_states": True}, {"use_cache": False}])
@pytest.mark.parametrize("family", ["llama", "bert"])
def test_what_a_folder_asks_of_outputs_changes_nothing(tmp_path: Path, family: str, asked: dict[str, Any]) -> None:
    made = tiny_backbones.make(tmp_path, family)
    expected = load_backbone(str(made), dtype="float32").features(QUERIES).vectors
    path = made / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **asked}))
    torch.testing.assert_close(load_backbone(str(made), dtype="float32").features(QUERIES).vectors, expected)
    if family == "llama":
        answers(str(made))


def test_what_is_written_can_be_read() -> None:
    draw = random.Random(0)
    signs = [*PICTURES, *PICTURES.values(), "␛", "a", "é", "\\", "\u2028", "\u00a0"]
    for output in [*OUTPUTS, *("".join(draw.choices(signs, k=draw.randint(0, 6))) for _ in range(3000))]:
        line = escape(output)
        assert unescape(line) == output
        assert line.strip(" \t\n\r\v\f") == line
        assert "\n" not in line


def test_ordinary_outputs_are_written_as_they_are() -> None:
    for output in ("positive", "a b  c", "a\tb", "\\frac{1}{2}", "naïve → 東京"):
        assert escape(output) == output


@pytest.mark.parametrize("output", OUTPUTS)
def test_every_output_can_come_back(tmp_path: Path, output: str) -> None:
    model: Any = load_backbone(folder(tmp_path), dtype="float32")
    prompter = Prompter(model, PromptConfig(max_new_tokens=100))
    tokens = prompter.answer(output)
    assert model.tokenizer.decode(tokens).count("\n") == 1
    assert prompter.decode_answer(tokens) == output
    assert prompter.unanswerable([output]) == ([], [])


def test_a_language_model_answers_in_several_lines(smollm: Backbone) -> None:
    amortizer: Any = AutoAmortizer.from_pretrained("in-context", backbone=smollm, config={"max_new_tokens": 10})
    rows = [("red, green", "red\ngreen"), ("cat, dog", "cat\ndog"), ("up, down", "up\ndown"), ("one, two", "one\ntwo")]
    chunk = Chunk(*(tuple(column) for column in zip(*rows, strict=True)))
    state = amortizer.update(amortizer.init_state(GENERATION), chunk)
    assert amortizer.predict(state, ["left, right"]).outputs == ("left\nright",)


def adapted(backbone: Backbone, rows: list[tuple[str, str]], **config: Any) -> Any:
    amortizer: Any = AutoAmortizer.from_pretrained("in-context", backbone=backbone, config=config)
    chunk = Chunk(*(tuple(column) for column in zip(*rows, strict=True)))
    return amortizer, amortizer.update(amortizer.init_state(GENERATION), chunk)


@pytest.mark.parametrize("method", ["in-context", "lora", "prompt-tuning", "lm-state"])
def test_outputs_that_cannot_come_back_are_counted_and_told(
    tmp_path: Path, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    backbone = load_backbone(folder(tmp_path), dtype="float32")
    amortizer: Any = AutoAmortizer.from_pretrained(method, backbone=backbone, config={"max_new_tokens": 4})
    rows = [{"input": "ball", "output": "team of the band and song"}, {"input": "goal", "output": "a b"}] * 4
    state = amortizer.adapt(rows, task=GENERATION, chunk_size=2, progress=False)
    assert state.header.counts["outputs_cut"] == 4
    assert state.header.counts["outputs_changed"] == 0
    told = [message for message in caplog.messages if "max_new_tokens" in message]
    assert len(told) == 1


def test_outputs_that_the_tokenizer_cannot_write_are_counted_and_told(
    causal: Backbone, caplog: pytest.LogCaptureFixture
) -> None:
    _, state = adapted(causal, [("ball", "naïve"), ("team", "food")])
    assert (state.header.counts["outputs_changed"], state.header.counts["outputs_cut"]) == (1, 0)
    assert "naïve" in caplog.text


def test_settings_of_answering_can_be_changed_for_a_state(tmp_path: Path) -> None:
    backbone = load_backbone(folder(tmp_path), dtype="float32")
    amortizer, state = adapted(backbone, [("ball goal", "sports of ball")], max_new_tokens=3)
    longer: Any = AutoAmortizer.for_state(state, backbone, config={"max_new_tokens": 9})
    (short,), (long,) = amortizer.predict(state, ["band"]).outputs, longer.predict(state, ["band"]).outputs
    assert len(long) > len(short)
    assert long.startswith(short)
    gone_on = longer.update(state, Chunk(("song",), ("music",)))
    assert gone_on.header.config["max_new_tokens"] == 9
    assert AutoAmortizer.for_state(gone_on, backbone).predict(gone_on, ["band"]).outputs
    with pytest.raises(ConfigError, match="demonstration_tokens is what a state"):
        AutoAmortizer.for_state(state, backbone, config={"demonstration_tokens": 5})
    with pytest.raises(ConfigError, match="unknown"):
        AutoAmortizer.for_state(state, backbone, config={"max_tokenz": 5})


def test_a_state_answers_with_the_settings_of_each_call(tmp_path: Path) -> None:
    backbone = folder(tmp_path)
    _, state = adapted(load_backbone(backbone, dtype="float32"), [("ball goal", "sports of ball")], max_new_tokens=3)
    answers = [state.predict(["band"], config=config, dtype="float32").outputs for config in (None, LONG, LONG, None)]
    assert answers[0] == answers[3] != answers[1] == answers[2]


def test_a_state_whose_fingerprint_covers_the_settings_of_answering_is_known(causal: Backbone) -> None:
    amortizer, state = adapted(causal, [("ball", "sports")], max_new_tokens=50, calibrate=True)
    older = amortizer.digest(first_names(amortizer.config_class, state.header.config))
    assert older != amortizer.fingerprint
    old = TaskState(state.tensors, dataclasses.replace(state.header, amortizer=older))
    for config in ({}, {"max_new_tokens": 9}):
        known: Any = AutoAmortizer.for_state(old, causal, config=config)
        assert known.update(old, Chunk(("song",), ("music",))).header.amortizer == amortizer.fingerprint


def test_a_cut_answer_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    amortizer, state = adapted(load_backbone(folder(tmp_path), dtype="float32"), [("ball", "goal")], max_new_tokens=1)
    amortizer.predict(state, QUERIES)
    assert "were cut at max_new_tokens, 1" in caplog.text
