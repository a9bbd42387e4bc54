"""Free text: greedy is greedy, and every output that a task has can come back."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import tiny_backbones
import torch

from iai_hf import AutoAmortizer, Chunk, TaskSpec
from iai_hf.amortizers.answers import PICTURES, read, written
from iai_hf.amortizers.prompting import PromptConfig, Prompter
from iai_hf.backbones import Backbone, load_backbone

GENERATION = TaskSpec("generation")
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
        line = written(output)
        assert read(line) == output
        assert line.strip(" \t\n\r\v\f") == line
        assert "\n" not in line


def test_ordinary_outputs_are_written_as_they_are() -> None:
    for output in ("positive", "a b  c", "a\tb", "\\frac{1}{2}", "naïve → 東京"):
        assert written(output) == output


@pytest.mark.parametrize("output", OUTPUTS)
def test_every_output_can_come_back(tmp_path: Path, output: str) -> None:
    model: Any = load_backbone(folder(tmp_path), dtype="float32")
    prompter = Prompter(model, PromptConfig(max_new_tokens=100))
    tokens = prompter.answer(output)
    assert model.tokenizer.decode(tokens).count("\n") == 1
    assert prompter.answered(tokens) == output
    assert prompter.lost([output]) == ([], [])


def test_a_language_model_answers_in_several_lines(smollm: Backbone) -> None:
    amortizer: Any = AutoAmortizer.from_pretrained("in-context", backbone=smollm, config={"max_new_tokens": 10})
    rows = [("red, green", "red\ngreen"), ("cat, dog", "cat\ndog"), ("up, down", "up\ndown"), ("one, two", "one\ntwo")]
    chunk = Chunk(*(tuple(column) for column in zip(*rows, strict=True)))
    state = amortizer.update(amortizer.init_state(GENERATION), chunk)
    assert amortizer.predict(state, ["left, right"]).outputs == ("left\nright",)
