"""Feature adapters: merged they say what added they say, the plain backbone stays, states name what they stand on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from conftest import examples, log_probs
from safetensors.torch import load_file, save_file

from iai_hf import AutoAmortizer, TaskState
from iai_hf.backbones import Backbone
from iai_hf.backbones.adapter import FeatureAdapter
from iai_hf.backbones.cached import CachedBackbone
from iai_hf.backbones.low_rank import LowRank, applied
from iai_hf.errors import ConfigError, StateError
from iai_hf.files import ADAPTER_FILE

TEXTS = [row["input"] for row in examples(12)]


def an_adapter(backbone: Backbone, size: float = 0.3) -> FeatureAdapter:
    generator = torch.Generator().manual_seed(0)
    sizes = backbone.linear_layers
    down = {name: torch.randn(2, inputs, generator=generator) / inputs**0.5 for name, (inputs, _) in sizes.items()}
    up = {name: size * torch.randn(outputs, 2, generator=generator) for name, (_, outputs) in sizes.items()}
    return FeatureAdapter(LowRank(down, up), backbone.fingerprint)


@pytest.fixture
def folder(encoder: Backbone, tmp_path: Path) -> Path:
    an_adapter(encoder).save(tmp_path / "adapter", encoder.name)
    return tmp_path / "adapter"


@pytest.mark.parametrize("kind", ["encoder", "causal"])
def test_merged_is_added(kind: str, request: pytest.FixtureRequest) -> None:
    backbone: Backbone = request.getfixturevalue(kind)
    adapter, before = an_adapter(backbone), backbone.features(TEXTS).vectors
    with applied(backbone.model, (adapter.low_rank,)):
        added = backbone.features(TEXTS).vectors
    merged = adapter.merged(backbone)
    torch.testing.assert_close(merged.features(TEXTS).vectors, added, atol=1e-5, rtol=1e-4)
    assert (added - before).abs().max() > 0.01
    assert torch.equal(backbone.features(TEXTS).vectors, before)
    assert merged.fingerprint != backbone.fingerprint
    assert merged.plain is backbone


def test_at_its_start_it_changes_nothing(encoder: Backbone) -> None:
    assert torch.equal(
        an_adapter(encoder, 0.0).merged(encoder).features(TEXTS).vectors, encoder.features(TEXTS).vectors
    )


def test_only_the_layers_that_it_changes_are_copied(encoder: Backbone) -> None:
    merged = an_adapter(encoder).merged(encoder)
    shared = dict(encoder.model.named_parameters())
    changed = {f"{name}.weight" for name in encoder.linear_layers}
    for name, weight in merged.model.named_parameters():
        assert (weight.data_ptr() == shared[name].data_ptr()) == (name not in changed), name


def test_cached_features_of_two_adapters_are_not_mixed(encoder: Backbone, tmp_path: Path) -> None:
    cached = CachedBackbone(encoder, tmp_path)
    adapter = an_adapter(encoder)
    cached.features(TEXTS)
    merged = adapter.merged(cached)
    torch.testing.assert_close(
        merged.features(TEXTS).vectors, adapter.merged(encoder).features(TEXTS).vectors, atol=2e-3, rtol=2e-3
    )
    assert isinstance(merged, CachedBackbone)
    assert merged.features(TEXTS).tokens == 0


@pytest.mark.parametrize("method", ["iterative", "iterative-explicit", "iterative-implicit"])
def test_a_state_stands_on_the_adapter_that_made_it(
    method: str, encoder: Backbone, folder: Path, tmp_path: Path
) -> None:
    learned = AutoAmortizer.from_pretrained(method, backbone=encoder, config={"adapter": str(folder)})
    plain = AutoAmortizer.from_pretrained(method, backbone=encoder)
    state = learned.adapt(examples(30), progress=False)
    loaded = TaskState.from_pretrained(state.save_pretrained(tmp_path / "state"))
    again = AutoAmortizer.for_state(loaded, encoder).predict(loaded, TEXTS)
    assert torch.equal(log_probs(again), log_probs(learned.predict(state, TEXTS)))
    with pytest.raises(StateError, match="made on other features"):
        plain.predict(state, TEXTS)
    with pytest.raises(StateError, match="made on other features"):
        learned.predict(plain.adapt(examples(30), progress=False), TEXTS)


def test_a_state_of_before_there_were_any_has_none(encoder: Backbone, tmp_path: Path) -> None:
    plain = AutoAmortizer.from_pretrained("iterative", backbone=encoder, config={"adapter": None})
    state = plain.adapt(examples(30), progress=False)
    older = {key: value for key, value in state.header.config.items() if key != "adapter"}
    older_state = TaskState(state.tensors, dataclasses.replace(state.header, config=older))
    loaded = TaskState.from_pretrained(older_state.save_pretrained(tmp_path))
    assert AutoAmortizer.for_state(loaded, encoder).config.adapter is None


def test_the_shipped_one_is_taken_by_default_and_by_no_state_of_before(minilm: Backbone, tmp_path: Path) -> None:
    learned = AutoAmortizer.from_pretrained("iterative", backbone=minilm)
    assert learned.config.adapter == "minilm-l6-adapter"
    assert learned.backbone.plain is minilm
    plain = AutoAmortizer.from_pretrained("iterative", backbone=minilm, config={"adapter": None})
    state = plain.adapt(examples(30), progress=False)
    older = {key: value for key, value in state.header.config.items() if key != "adapter"}
    older_state = TaskState(state.tensors, dataclasses.replace(state.header, config=older))
    loaded = TaskState.from_pretrained(older_state.save_pretrained(tmp_path))
    rebuilt = AutoAmortizer.for_state(loaded, minilm)
    assert rebuilt.config.adapter is None
    assert torch.equal(log_probs(rebuilt.predict(loaded, TEXTS)), log_probs(plain.predict(state, TEXTS)))


def test_what_does_not_fit_is_named(encoder: Backbone, causal: Backbone, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="belongs to a backbone with fingerprint"):
        AutoAmortizer.from_pretrained("iterative", backbone=causal, config={"adapter": str(folder)})
    with pytest.raises(ConfigError, match=r"no weights 'nowhere': expected a folder with adapter\.safetensors"):
        AutoAmortizer.from_pretrained("iterative", backbone=encoder, config={"adapter": "nowhere"})
    path = folder / ADAPTER_FILE
    tensors = load_file(path)
    name = next(iter(tensors))
    tensors[name][0] = float("nan")
    save_file(tensors, path, {"backbone_fingerprint": encoder.fingerprint})
    with pytest.raises(ConfigError, match=f"{name} is not finite"):
        AutoAmortizer.from_pretrained("iterative", backbone=encoder, config={"adapter": str(folder)})
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ConfigError, match="no readable feature adapter"):
        AutoAmortizer.from_pretrained("iterative", backbone=encoder, config={"adapter": str(folder)})
    assert json.loads((folder / "config.json").read_text())["base_model_name_or_path"] == encoder.name
