"""Ways out: what other libraries load gives the state's own logits, and what has no such form is refused by name."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import LABELS, examples, log_probs
from test_adapters import an_adapter

from iai_hf import AutoAmortizer, TaskSpec, TaskState
from iai_hf.amortizer import Amortizer
from iai_hf.backbones import Backbone, load_backbone, onnx_export
from iai_hf.backbones.sentence_transformers import Pipeline
from iai_hf.errors import BackboneError, ConfigError, DataError, StateError
from iai_hf.features.adapted_features import EVIDENCE

QUERIES = [*(row["input"] for row in examples(6, seed=5)), "ball", "a [SEP] </s> Of the TEAM"]
DEEP = {"depth": "auto", "rank": 2, "steps": 4.0, "learning_rate": 3e-3}


def made(backbone: Backbone, **settings: Any) -> tuple[Amortizer, TaskState]:
    amortizer = AutoAmortizer.from_pretrained("iterative", backbone=backbone, config={"weights": None, **settings})
    return amortizer, amortizer.adapt(examples(64), progress=False)


def encoded(folder: Path, queries: list[str]) -> torch.Tensor:
    library = pytest.importorskip("sentence_transformers")
    model = library.SentenceTransformer(str(folder), device="cpu")
    assert [type(module).__module__.split(".")[0] for module in model] == ["sentence_transformers"] * len(model)
    found: torch.Tensor = model.encode(queries, convert_to_tensor=True, batch_size=len(queries))
    return found


def values(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "settings",
    [
        {"adapter": None},
        {"adapter": "learned", "max_features": 16, "max_tokens": 3},
        {"standardize": True, "max_features": 8, "projection": "gaussian"},
        {**DEEP, "adapter": "learned"},
    ],
    ids=lambda settings: ", ".join(settings),
)
def test_sentence_transformers_gives_the_states_own_logits(
    settings: dict[str, Any], encoder: Backbone, tmp_path: Path
) -> None:
    if settings.get("adapter") == "learned":
        an_adapter(encoder).save(tmp_path / "adapter", encoder.name)
        settings = {**settings, "adapter": str(tmp_path / "adapter")}
    amortizer, state = made(encoder, **settings)
    if "depth" in settings:  # whatever was ahead
        state = TaskState({**state.tensors, EVIDENCE + "gain": torch.tensor(50.0)}, state.header)
    folder = amortizer.export(state, tmp_path / "out", "sentence-transformers")
    classifier = amortizer.linear_classifier(state)
    features = classifier.backbone.features(QUERIES, settings.get("max_tokens")).vectors
    found = encoded(folder, QUERIES)
    torch.testing.assert_close(found, features @ classifier.weight.T + classifier.bias, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.log_softmax(1), log_probs(amortizer.predict(state, QUERIES)), atol=1e-4, rtol=0)
    config = values(folder / "config.json")
    assert config["id2label"] == {str(number): label for number, label in enumerate(state.task.labels)}
    assert config["label2id"] == {label: number for number, label in enumerate(state.task.labels)}
    kinds = [module["type"].split(".")[-1] for module in values(folder / "modules.json")]
    assert [kind for kind in kinds if kind != "Dense"] == ["Transformer", "Pooling", "Normalize"]
    assert encoder.model.config.id2label != config["id2label"]  # the backbone is as it was


def test_a_deep_state_whose_frozen_features_are_ahead_leaves_with_those(encoder: Backbone, tmp_path: Path) -> None:
    amortizer, state = made(encoder, **DEEP)
    behind = TaskState({**state.tensors, EVIDENCE + "gain": torch.tensor(-50.0)}, state.header)
    found = encoded(amortizer.export(behind, tmp_path / "out", "sentence-transformers"), QUERIES)
    torch.testing.assert_close(found.log_softmax(1), log_probs(amortizer.predict(behind, QUERIES)), atol=1e-4, rtol=0)


def test_what_a_sentence_pipeline_does_leaves_with_it(encoder: Backbone, tmp_path: Path) -> None:
    amortizer, state = made(encoder)
    pipeline = amortizer.export(state, tmp_path / "pipeline", "sentence-transformers")  # one to change and to read
    edits: dict[str, dict[str, Any]] = {
        "1_Pooling/config.json": {"pooling_mode_cls_token": True, "include_prompt": False},
        "3_Dense/config.json": {"activation_function": "torch.nn.modules.activation.Tanh"},
        "sentence_bert_config.json": {"do_lower_case": True},
        "config_sentence_transformers.json": {"prompts": {"task": "the note: "}, "default_prompt_name": "task"},
    }
    for name, changes in edits.items():
        (pipeline / name).write_text(json.dumps({**values(pipeline / name), **changes}))
    width = values(pipeline / "3_Dense" / "config.json")
    weight = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    from safetensors.torch import save_file

    save_file(
        {"linear.weight": weight, "linear.bias": torch.linspace(-1, 1, 5)},
        pipeline / "3_Dense" / "model.safetensors",
    )
    (pipeline / "3_Dense" / "config.json").write_text(json.dumps({**width, "in_features": 64, "out_features": 5}))
    amortizer, state = made(load_backbone(str(pipeline), dtype="float32"))
    found = encoded(amortizer.export(state, tmp_path / "out", "sentence-transformers"), QUERIES)
    torch.testing.assert_close(found.log_softmax(1), log_probs(amortizer.predict(state, QUERIES)), atol=1e-4, rtol=0)
    assert found.std(0).min() > 0.01  # it is no constant


def test_one_graph_gives_the_same_logits(encoder: Backbone, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from transformers import AutoConfig, AutoTokenizer

    amortizer, state = made(encoder, **DEEP, max_features=16)
    state = TaskState({**state.tensors, EVIDENCE + "gain": torch.tensor(50.0)}, state.header)
    folder = amortizer.export(state, tmp_path / "out", "onnx")
    session = runtime.InferenceSession(folder / "model.onnx")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for queries in (QUERIES, QUERIES[:1]):
        tokens = tokenizer(queries, padding=True, truncation=True, return_tensors="np")
        (found,) = session.run(["logits"], {name: tokens[name] for name in ("input_ids", "attention_mask")})
        expected = log_probs(amortizer.predict(state, queries))
        torch.testing.assert_close(torch.tensor(found).log_softmax(1), expected, atol=1e-4, rtol=0)
    assert AutoConfig.from_pretrained(folder).id2label == dict(enumerate(state.task.labels))


@pytest.mark.parametrize("form", ["sentence-transformers", "onnx"])
def test_several_labels_leave_with_their_thresholds(
    form: Any, encoder: Backbone, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxscript" if form == "onnx" else "sentence_transformers")
    amortizer = AutoAmortizer.from_pretrained("iterative", backbone=encoder, config={"weights": None})
    rows = [{**row, "output": [row["output"], "long"][: 1 + (i % 3)]} for i, row in enumerate(examples(64))]
    state = amortizer.adapt([{**row, "output": row["output"][i % 5 == 0 :]} for i, row in enumerate(rows)])
    folder = amortizer.export(state, tmp_path / "out", form)
    prediction, config = amortizer.predict(state, QUERIES), values(folder / "config.json")
    assert (config["problem_type"], len(config["label_thresholds"])) == ("multi_label_classification", 4)
    if form == "sentence-transformers":
        found = encoded(folder, QUERIES)
        torch.testing.assert_close(found.sigmoid(), prediction.probabilities, atol=1e-4, rtol=0)
        applying = found > torch.tensor(config["label_thresholds"])
        labels = [tuple(state.task.labels[i] for i in row.nonzero()[:, 0].tolist()) for row in applying]
        assert tuple(labels) == prediction.outputs
    card = (folder / "README.md").read_text(encoding="utf-8")
    snippet = card.split("```python\n")[1].split("```")[0].replace('["a text to answer"]', repr(QUERIES[:1]))
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    exec(snippet, {})
    assert str([list(prediction.outputs[0])]) in capsys.readouterr().out


def test_a_card_tells_where_long_texts_are_cut(
    encoder: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    amortizer, state = made(encoder)
    with caplog.at_level(logging.WARNING, "iai_hf"):
        folder = amortizer.export(state, tmp_path / "whole", "sentence-transformers")
    assert "longer than 64 tokens are cut" in caplog.text
    assert "cut at 64 tokens" in (folder / "README.md").read_text()
    assert values(folder / "sentence_bert_config.json")["max_seq_length"] == 64
    caplog.clear()
    amortizer, state = made(encoder, max_tokens=5)
    folder = amortizer.export(state, tmp_path / "few", "sentence-transformers")
    assert "are cut" not in caplog.text
    assert "the first 5 tokens are read" in (folder / "README.md").read_text()
    long = [" ".join(QUERIES[:3])]
    found = encoded(folder, long).log_softmax(1)
    torch.testing.assert_close(found, log_probs(amortizer.predict(state, long)), atol=1e-4, rtol=0)


def test_what_has_no_such_form_is_refused_and_leaves_nothing(
    encoder: Backbone, causal: Backbone, tmp_path: Path
) -> None:
    out = tmp_path / "a" / "out"
    other = AutoAmortizer.from_pretrained("iterative-explicit", backbone=encoder)
    with pytest.raises(ConfigError, match=r"'iterative-explicit' is no linear map .* \(iterative\)"):
        other.export(other.adapt(examples(8), progress=False), out, "onnx")
    amortizer, state = made(causal)
    with pytest.raises(BackboneError, match="adapt on an encoder"):
        amortizer.export(state, out, "sentence-transformers")
    amortizer, state = made(encoder)
    with pytest.raises(DataError, match="at least two"):
        amortizer.export(amortizer.init_state(TaskSpec("classification", LABELS[:1])), out, "sentence-transformers")
    with pytest.raises(ConfigError, match="form is 'setfit'; expected peft, sentence-transformers, onnx"):
        amortizer.export(state, out, "setfit")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_an_encoder_that_sees_what_is_masked_is_refused(
    encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = load_backbone(str(encoder_folder), dtype="float32")
    forward = backbone.model.forward
    monkeypatch.setattr(backbone.model, "forward", lambda input_ids, attention_mask=None: forward(input_ids=input_ids))
    backbone.__dict__.pop("traits", None)
    amortizer, state = made(backbone)
    with pytest.raises(BackboneError, match="padded and read together"):
        amortizer.export(state, tmp_path / "out", "sentence-transformers")
    assert not list(tmp_path.iterdir())


def test_a_folder_is_written_whole_or_not_at_all(
    encoder: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    amortizer, state = made(encoder)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "README.md").write_text("mine")
    for name, message in (("file", "is a file"), ("full", "holds files already"), ("file/out", "can't write")):
        with pytest.raises(StateError, match=message):
            amortizer.export(state, tmp_path / name, "sentence-transformers")
    monkeypatch.setattr(onnx_export, "find_spec", lambda name: None)
    with pytest.raises(BackboneError, match=r"onnx, onnxscript, onnxruntime is not installed.*iai_hf\[onnx\]"):
        amortizer.export(state, tmp_path / "out", "onnx")
    monkeypatch.setattr(type(encoder.tokenizer), "save_pretrained", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        amortizer.export(state, tmp_path / "out", "sentence-transformers")
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["file", "full", "full/README.md"]
    assert (tmp_path / "full" / "README.md").read_text() == "mine"


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("encoder", {"max_features": 8}),
        ("asked", {"max_tokens": 2}),
        ("causal", {"standardize": True, "max_tokens": 4}),
    ],
)
def test_the_card_of_a_deep_states_adapter_answers_without_this_package(
    kind: str, settings: dict[str, Any], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    backbone: Backbone = request.getfixturevalue("causal" if kind == "causal" else "encoder")
    if kind == "asked":
        pipeline = Pipeline(modes=("cls", "mean"), prompt="query: A", pools_prompt=False, lowercase=True)
        backbone = backbone.variant("0" * 32, pipeline=pipeline)
    amortizer, state = made(backbone, **{**DEEP, **settings})
    state = TaskState({**state.tensors, EVIDENCE + "gain": torch.tensor(50.0)}, state.header)
    amortizer.export(state, tmp_path / "adapter")
    query = "The REFEREE [SEP] scores a goal, and a band"
    snippet = (tmp_path / "adapter" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    snippet = snippet.replace('"a text to answer"', repr(query))
    snippet = snippet.replace(f"./{Path(backbone.name).name}", backbone.name)  # a folder here means nothing elsewhere
    blocked = f"import sys\nsys.modules['iai_hf'] = None\n{snippet}"
    run = subprocess.run([sys.executable, "-c", blocked], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    label, _, probabilities = run.stdout.strip().split("\n")[-1].partition(" ")
    answer = amortizer.predict(state, [query])
    assert label == answer.outputs[0]
    assert torch.allclose(torch.tensor(json.loads(probabilities)), log_probs(answer)[0].exp(), atol=2e-2)


def test_a_card_has_no_lines_that_would_read_a_text_otherwise(encoder: Backbone, tmp_path: Path) -> None:
    weighted = encoder.variant("0" * 32, pipeline=Pipeline(modes=("weightedmean",)))
    amortizer, state = made(weighted, **DEEP)
    state = TaskState({**state.tensors, EVIDENCE + "gain": torch.tensor(50.0)}, state.header)
    amortizer.export(state, tmp_path / "adapter")
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "head.json" in card
    assert "```python" not in card
