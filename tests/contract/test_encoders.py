"""Features of every family equal those that transformers gives alone, pooled as the folder's own modules say.

The reference tokenises, pads and pools by itself; what sentence-transformers does behind the model is written out here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny_backbones as tiny
import torch
from safetensors.torch import save_file
from torch.nn.functional import normalize
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from iai_hf.backbones import Backbone, load_backbone
from iai_hf.backbones.causal_lm import FEATURE_PROMPT, CausalLM
from iai_hf.errors import BackboneError

TEXTS = ["the team of the band", "bread", "Is this a concert? (player 7) soup and spice of the oven", ""]
HALVES_TEXTS = {"funnel"}  # and fails where two tokens are left
UNREADABLE = {"gemma3n", "gemma3n-shared"}  # its layers hold several hidden states a token


def folder_of(place: Path, family: str, tokens: Any = None, **changes: Any) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    return tiny.make(place, family, tokens, **changes)


def write(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


def last_hidden(folder: Path, texts: Sequence[str]) -> list[torch.Tensor]:
    """Hidden states of each text, read alone, `[tokens, hidden]`."""
    model: Any = AutoModel.from_pretrained(folder).eval()
    model = model.get_encoder() if model.config.is_encoder_decoder else model
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    with torch.no_grad():
        for text in texts:
            ids = tokenizer(text, return_tensors="pt", truncation=False)["input_ids"]
            found.append(model(input_ids=ids).last_hidden_state[0])
    return found


def assert_features(backbone: Backbone, texts: Sequence[str], expected: Sequence[torch.Tensor]) -> None:
    torch.testing.assert_close(
        backbone.features(texts).vectors, normalize(torch.stack(list(expected)), dim=-1), atol=1e-3, rtol=1e-3
    )
    assert backbone.hidden_size == len(expected[0])


@pytest.mark.parametrize("family", tiny.ENCODERS)
def test_an_encoders_features_are_the_mean_of_its_last_layer(tmp_path: Path, family: str) -> None:
    folder = folder_of(tmp_path, family)
    backbone = load_backbone(str(folder), dtype="float32")
    assert not isinstance(backbone, CausalLM)
    texts = TEXTS[:3] if family in HALVES_TEXTS else TEXTS
    assert_features(backbone, texts, [hidden.mean(0) for hidden in last_hidden(folder, texts)])
    if family in HALVES_TEXTS:
        with pytest.raises(BackboneError, match="can't read"):
            backbone.features([""])


@pytest.mark.parametrize("family", tiny.ENCODERS)
def test_an_encoder_reads_texts_of_any_length(tmp_path: Path, family: str) -> None:
    backbone = load_backbone(str(folder_of(tmp_path, family)), dtype="float32")
    long = backbone.features([" ".join(tiny.WORDS * 20)])
    assert long.tokens > 700
    assert long.vectors.isfinite().all()


@pytest.mark.parametrize(
    ("family", "start"),
    [*((family, True) for family in tiny.CAUSAL), ("gpt2", False), ("llama", False), ("bloom", False)],
)
def test_a_language_models_features_are_the_mean_of_its_middle_layer(tmp_path: Path, family: str, start: bool) -> None:
    folder = folder_of(tmp_path, family, tiny.tokenizer(start=start, pad=start))
    backbone = load_backbone(str(folder), dtype="float32")
    assert isinstance(backbone, CausalLM)
    if family in UNREADABLE:
        with pytest.raises(BackboneError, match="no features; choose another backbone"):
            backbone.features(TEXTS)
        return
    model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
    plain = AutoTokenizer.from_pretrained(folder)
    lead = ([1] if start else []) + plain(FEATURE_PROMPT, add_special_tokens=False)["input_ids"]
    expected = []
    for text in TEXTS:
        ids = plain(text, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            states = model(torch.tensor([lead + ids]), output_hidden_states=True).hidden_states
        # Of an empty text, what the question's end makes of that.
        expected.append(states[len(states) // 2][0, len(lead) if ids else -1 :].mean(0))
    assert_features(backbone, TEXTS, expected)


def test_a_language_model_computes_no_layer_behind_the_middle(tmp_path: Path) -> None:
    backbone = load_backbone(str(folder_of(tmp_path, "gemma3")), dtype="float32")
    called: list[int] = []
    for number, layer in enumerate(backbone.model.model.layers):
        layer.register_forward_hook(lambda *_, number=number: called.append(number))
    backbone.features(TEXTS[:1])
    called.clear()
    backbone.features(TEXTS[:1])
    assert called == [0, 1, 2]


POOLING = {
    "cls": lambda hidden: hidden[0],
    "max": lambda hidden: hidden.amax(0),
    "mean": lambda hidden: hidden.mean(0),
    "mean_sqrt_len_tokens": lambda hidden: hidden.sum(0) / len(hidden) ** 0.5,
    "weightedmean": lambda hidden: (
        (hidden * torch.arange(1, len(hidden) + 1)[:, None]).sum(0) / sum(range(1, len(hidden) + 1))
    ),
    "lasttoken": lambda hidden: hidden[-1],
}
OLD_FLAGS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}


def sentence_folder(
    folder: Path,
    pooling: dict[str, Any],
    *more: str,
    model: str = "",
    prefix: str = "sentence_transformers.models.",
    settings: dict[str, Any] | None = None,
    prompts: dict[str, Any] | None = None,
) -> Path:
    """Make a folder with a model a sentence-transformers folder, as the library writes it."""
    kinds = ["Transformer", "Pooling", *more]
    paths = [model, *(f"{number}_{kind}" for number, kind in enumerate(kinds) if number)]
    write(
        folder / "modules.json",
        [
            {"idx": number, "name": str(number), "path": path, "type": prefix + kind}
            for number, (kind, path) in enumerate(zip(kinds, paths, strict=True))
        ],
    )
    write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 32, **pooling})
    write(folder / model / "sentence_bert_config.json", settings or {"max_seq_length": 512, "do_lower_case": False})
    write(folder / "config_sentence_transformers.json", prompts or {"prompts": {}, "default_prompt_name": None})
    return folder


def add_dense(folder: Path, size: int, activation: str = "torch.nn.modules.activation.Tanh", bias: bool = True) -> Any:
    """Weights and bias of a new Dense module."""
    generator = torch.Generator().manual_seed(1)
    weights = {"linear.weight": torch.randn(16, size, generator=generator)}
    if bias:
        weights["linear.bias"] = torch.randn(16, generator=generator)
    write(
        folder / "config.json",
        {"in_features": size, "out_features": 16, "bias": bias, "activation_function": activation},
    )
    save_file(weights, folder / "model.safetensors")
    return weights["linear.weight"], weights.get("linear.bias", torch.zeros(16))


@pytest.mark.parametrize(("family", "style"), [("bert", "flags"), ("bert", "name"), ("qwen3", "name")])
@pytest.mark.parametrize("mode", POOLING)
def test_a_sentence_folder_is_pooled_as_it_says(tmp_path: Path, family: str, style: str, mode: str) -> None:
    folder = folder_of(tmp_path, family)
    flags = {flag: name == mode for name, flag in OLD_FLAGS.items()}
    sentence_folder(folder, flags if style == "flags" else {"pooling_mode": mode}, "Normalize")
    backbone = load_backbone(str(folder), dtype="float32")
    assert not isinstance(backbone, CausalLM)
    texts = TEXTS[:3] if mode == "lasttoken" else TEXTS
    texts = texts[:3] if family == "qwen3" else texts
    assert_features(backbone, texts, [POOLING[mode](hidden) for hidden in last_hidden(folder, texts)])


def test_the_encoder_of_two_halves_stands_in_a_sentence_folder(tmp_path: Path) -> None:
    folder = sentence_folder(folder_of(tmp_path, "t5"), {"pooling_mode": "max"}, "Dense", "Normalize")
    weight, bias = add_dense(folder / "2_Dense", 32)
    expected = [(weight @ hidden.amax(0) + bias).tanh() for hidden in last_hidden(folder, TEXTS)]
    assert_features(load_backbone(str(folder), dtype="float32"), TEXTS, expected)


def test_several_ways_of_pooling_are_laid_side_by_side(tmp_path: Path) -> None:
    folder = sentence_folder(folder_of(tmp_path, "bert"), {"pooling_mode": ["mean", "mean_sqrt_len_tokens", "cls"]})
    expected = [
        torch.cat([POOLING[mode](hidden) for mode in ("mean", "mean_sqrt_len_tokens", "cls")])
        for hidden in last_hidden(folder, TEXTS)
    ]
    assert_features(load_backbone(str(folder), dtype="float32"), TEXTS, expected)


@pytest.mark.parametrize("prefix", ["sentence_transformers.models.", "sentence_transformers.base.modules.dense."])
def test_dense_and_unit_length_stand_in_their_order(tmp_path: Path, prefix: str) -> None:
    folder = sentence_folder(
        folder_of(tmp_path, "bert"), {"pooling_mode": "mean"}, "Normalize", "Dense", "Dropout", "Dense", prefix=prefix
    )
    weight, bias = add_dense(folder / "3_Dense", 32)
    again, _ = add_dense(folder / "5_Dense", 16, "torch.nn.modules.linear.Identity", bias=False)
    expected = [
        again @ (weight @ normalize(hidden.mean(0), dim=0) + bias).tanh() for hidden in last_hidden(folder, TEXTS)
    ]
    assert_features(load_backbone(str(folder), dtype="float32"), TEXTS, expected)


@pytest.mark.parametrize("kind", ["wordpiece", "bytes", "unigram"])
@pytest.mark.parametrize("counts", [True, False])
def test_the_default_prompt_is_read_before_a_text(tmp_path: Path, kind: str, counts: bool) -> None:
    prompt = "query: "
    folder = sentence_folder(
        folder_of(tmp_path, "bert", tiny.tokenizer(kind)),
        {"pooling_mode": "mean", "include_prompt": counts},
        prompts={"prompts": {"query": prompt, "document": ""}, "default_prompt_name": "query"},
    )
    backbone = load_backbone(str(folder), dtype="float32")
    texts = [TEXTS[0], TEXTS[2]]
    hidden = last_hidden(folder, [prompt + text for text in texts])
    # The library leaves out as many as the prompt has alone, an end token not counted.
    alone = len(backbone.tokenizer(prompt)["input_ids"]) - (kind == "wordpiece")
    assert_features(backbone, texts, [states[0 if counts else alone :].mean(0) for states in hidden])
    assert backbone.features(["", "bread"]).vectors.isfinite().all()
    assert backbone.features(["team " * 600], max_tokens=5).cut == 1


def test_a_prompt_that_is_not_the_default_is_not_read(tmp_path: Path) -> None:
    folder = sentence_folder(
        folder_of(tmp_path, "bert"), {"pooling_mode": "mean"}, prompts={"prompts": {"query": "query: "}}
    )
    expected = [hidden.mean(0) for hidden in last_hidden(folder, TEXTS)]
    assert_features(load_backbone(str(folder), dtype="float32"), TEXTS, expected)


def test_lower_case_and_the_models_own_folder_are_kept(tmp_path: Path) -> None:
    folder_of(tmp_path / "0_Transformer", "bert", tiny.tokenizer("wordpiece"))
    folder = sentence_folder(
        tmp_path,
        {"pooling_mode": "cls"},
        model="0_Transformer",
        settings={"max_seq_length": 12, "do_lower_case": True},
    )
    backbone = load_backbone(str(folder), dtype="float32")
    hidden = last_hidden(folder / "0_Transformer", ["the ball of bread"])
    assert_features(backbone, ["The BALL of bread"], [hidden[0][0]])
    assert backbone.features(["ball " * 30]).tokens == 32  # the library cuts a text there, here it is read whole


def test_the_fingerprint_sees_how_is_pooled(tmp_path: Path) -> None:
    made = {}
    for name, pooling, prompts in (
        ("plain", None, None),
        ("mean", {"pooling_mode": "mean"}, None),
        ("flag", {"pooling_mode_mean_tokens": True}, None),
        ("root", {"pooling_mode": "mean_sqrt_len_tokens"}, None),
        ("cls", {"pooling_mode": "cls"}, None),
        ("last", {"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}, None),
        ("asked", {"pooling_mode": "mean"}, {"prompts": {"q": "query: "}, "default_prompt_name": "q"}),
    ):
        folder = folder_of(tmp_path / name, "bert")
        if pooling is not None:
            sentence_folder(folder, pooling, "Normalize", prompts=prompts)
        made[name] = load_backbone(str(folder), dtype="float32").fingerprint
    assert made["plain"] == made["mean"] == made["flag"] == made["root"]
    assert len(set(made.values())) == 4


@pytest.mark.parametrize(
    ("family", "setting"),
    [
        ("mistral", "sliding_window"),
        ("llama4", "attention_chunk_size"),
        ("gpt-neo", "window_size"),
        ("modernbert", "local_attention"),
    ],
)
def test_the_fingerprint_sees_windows_that_a_text_can_exceed(tmp_path: Path, family: str, setting: str) -> None:
    made = [
        load_backbone(str(folder_of(tmp_path / str(size), family, **{setting: size})), dtype="float32").fingerprint
        for size in (16, 32, 2 * tiny.POSITIONS, 4 * tiny.POSITIONS)
    ]
    assert made[2] == made[3]
    assert len(set(made)) == 3


@pytest.mark.parametrize(
    ("kinds", "says"),
    [
        (["WeightedLayerPooling"], "WeightedLayerPooling"),
        (["LSTM"], "LSTM"),
    ],
)
def test_a_module_that_is_not_known_is_refused(tmp_path: Path, kinds: list[str], says: str) -> None:
    folder = sentence_folder(folder_of(tmp_path, "bert"), {"pooling_mode": "mean"}, *kinds)
    with pytest.raises(BackboneError, match=f"{says}.*choose another encoder"):
        load_backbone(str(folder))


@pytest.mark.parametrize("prefix", ["custom_st.", "sentence_transformers.models.Word"])
def test_a_pipeline_of_other_beginnings_is_refused(tmp_path: Path, prefix: str) -> None:
    folder = sentence_folder(folder_of(tmp_path, "bert"), {"pooling_mode": "mean"}, prefix=prefix)
    with pytest.raises(BackboneError, match="begins with Transformer > Pooling"):
        load_backbone(str(folder))


def test_a_damaged_pipeline_is_refused(tmp_path: Path) -> None:
    folder = sentence_folder(folder_of(tmp_path, "bert"), {"pooling_mode": "median"}, "Dense")
    with pytest.raises(BackboneError, match=r"model\.safetensors has no weights|config\.json can't be read"):
        load_backbone(str(folder))
    add_dense(folder / "2_Dense", 32, "os.system")
    with pytest.raises(BackboneError, match=r"activation 'os\.system'"):
        load_backbone(str(folder))
    add_dense(folder / "2_Dense", 32)
    with pytest.raises(BackboneError, match="median"):
        load_backbone(str(folder))
    (folder / "modules.json").write_text("[{}]")
    with pytest.raises(BackboneError, match=r"modules\.json is damaged"):
        load_backbone(str(folder))
