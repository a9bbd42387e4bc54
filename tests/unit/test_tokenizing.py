"""Texts are data: nothing in them is a command, and what is written can be read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_backbones
import torch
from conftest import examples, log_probs

from iai_hf import AutoAmortizer, Chunk, TaskSpec
from iai_hf.backbones import Backbone, load_backbone
from iai_hf.language_model.prompting import PromptConfig, Prompter

KINDS = ("bytes", "wordpiece", "unigram")
CONTROLS = ("</s>", "<pad>", "<s>", "a</s>b", " </s> <pad>\n<s>")


def dropping(everywhere: bool) -> Any:
    """A Unigram tokenizer that takes newlines for spaces: everywhere, or at the end of a text."""
    from tokenizers import Regex, normalizers

    made = tiny_backbones.tokenizer("unigram")
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    made.backend_tokenizer.normalizer = spaces if everywhere else normalizers.Strip(left=False, right=True)
    return made


def made(folder: Path, family: str, tokens: Any) -> Backbone:
    return load_backbone(str(tiny_backbones.make(folder, family, tokens)), dtype="float32")


@pytest.fixture(params=KINDS)
def language_model(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return made(tmp_path, "llama", tiny_backbones.tokenizer(request.param))


def special(ids: Any) -> set[int]:
    return set(ids) & {0, 1, 2}


@pytest.mark.parametrize("text", CONTROLS)
def test_control_tokens_in_texts_are_read_as_text(language_model: Any, text: str) -> None:
    prompter = Prompter(language_model, PromptConfig())
    row = prompter.row(text, [text])
    shown, _ = prompter.demonstration(text, text)
    for ids in (language_model.texts.ids([text])[0], language_model.tokens(text), row.query):
        assert ids
        assert not special(ids)
    for ids in (row.answers[0][:-1], [token for token in shown if token != row.answers[0][-1]]):  # its end may be one
        assert not special(ids)
    assert "".join(language_model.texts.text(language_model.tokens(text)).split()) == "".join(text.split())


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_features_read_control_tokens_as_text(tmp_path: Path, family: str) -> None:
    backbone = made(tmp_path, family, tiny_backbones.tokenizer("wordpiece"))
    first, second = backbone.features(["ball </s> <pad> team", "ball < / s > < pad > team"]).vectors
    torch.testing.assert_close(first, second)


def test_the_encoder_reads_control_tokens_as_text(minilm: Backbone) -> None:
    first, second = minilm.features(["a [PAD] nice [SEP] film", "a [ PAD ] nice [ SEP ] film"]).vectors
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize("method", ["iterative", "in-context", "lora", "prompt-tuning"])
def test_states_learn_from_control_tokens_as_from_text(causal: Backbone, method: str) -> None:
    amortizer = AutoAmortizer.from_pretrained(method, backbone=causal)
    task = TaskSpec("classification", ("[PAD]", "music"))

    def answers(sign: str, label: str) -> torch.Tensor:
        rows = [(row["input"] + sign, label if i % 2 else "music") for i, row in enumerate(examples(8))]
        chunk = Chunk(*(tuple(column) for column in zip(*rows, strict=True)))
        spec = TaskSpec(task.kind, (label, "music"))
        return log_probs(amortizer.predict(amortizer.update(amortizer.init_state(spec), chunk), ["ball" + sign]))

    torch.testing.assert_close(answers(" [PAD]", "[PAD]"), answers(" [ PAD ]", "[ PAD ]"), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["bytes", "unigram"])
def test_pieces_make_up_the_whole_prompt(tmp_path: Path, kind: str) -> None:
    model: Any = made(tmp_path, "llama", tiny_backbones.tokenizer(kind))
    prompter = Prompter(model, PromptConfig())
    demonstrations = [prompter.demonstration(f"ball {word}", "food") for word in ("team", "goal")]
    joined = [token for ids, _ in demonstrations for token in ids]
    text = "".join(f"Input: ball {word}\nOutput: food\n\n" for word in ("team", "goal"))
    start = model.texts.ids(["\n"])[0]  # SentencePiece puts a space before this
    assert [*start, *joined] == model.texts.ids(["\n" + text])[0]


@pytest.mark.parametrize(("everywhere", "end"), [(True, "</s>"), (False, "\n")])
def test_an_answer_ends_where_the_tokenizer_drops_newlines(tmp_path: Path, everywhere: bool, end: str) -> None:
    model: Any = made(tmp_path, "llama", dropping(everywhere))
    tokens = Prompter(model, PromptConfig()).answer("food")
    assert model.tokenizer.decode(tokens[-1:]) == end
    assert tokens[-1] in model._ends("\n")


@pytest.mark.parametrize("kind", KINDS)
def test_all_tokens_with_a_newline_end_an_answer(tmp_path: Path, kind: str) -> None:
    model: Any = made(tmp_path, "llama", tiny_backbones.tokenizer(kind))
    pieces = model.tokenizer.batch_decode([[i] for i in range(len(model.tokenizer))])
    assert model.texts.holding("\n") == {i for i, piece in enumerate(pieces) if "\n" in piece}


def test_all_tokens_of_a_real_vocabulary_with_a_newline_end_an_answer(smollm: Any) -> None:
    pieces = smollm.tokenizer.batch_decode([[i] for i in range(len(smollm.tokenizer))])
    assert smollm.texts.holding("\n") == {i for i, piece in enumerate(pieces) if "\n" in piece}
    assert smollm.texts.line(" 3.5 cm!") == tuple(smollm.tokenizer(" 3.5 cm!\n")["input_ids"])
