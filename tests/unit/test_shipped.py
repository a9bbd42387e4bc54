"""Shipped weights: small, whole, found by their backbone, and named when they are used."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import pytest

from iai_hf import AutoAmortizer, TaskState, shipped
from iai_hf.auto import amortizer_class, methods
from iai_hf.backbones import Backbone
from iai_hf.backbones.adapter import ADAPTER, FeatureAdapter
from iai_hf.backbones.cached import CachedBackbone
from iai_hf.config import ABSENT, apart, read_stored
from iai_hf.errors import ConfigError
from iai_hf.features.adapted_features import OF_DEPTH
from iai_hf.learned import Learned


def test_they_are_small_and_say_where_they_come_from() -> None:
    assert {"minilm-l6-iterative", "smollm2-135m-iterative"} <= set(shipped.names())
    files = [path for path in shipped.FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 8_000_000
    for name in shipped.names():
        record = json.loads((shipped.FOLDER / name / "training.json").read_text())
        assert record["step"] >= record["best_step"]
        assert not any("meta_test" in task for task in record["config"]["tasks"])


def test_they_know_all_settings_that_they_depend_on() -> None:
    for name in shipped.names():
        record = shipped.describe(shipped.FOLDER / name)
        if record["method"] == ADAPTER:
            continue  # it has no settings
        config = amortizer_class(record["method"]).config_class
        later = {field.name for field in dataclasses.fields(config) if ABSENT in field.metadata}
        names = {field.name for field in dataclasses.fields(config)}
        assert names - apart(config) - later <= set(record["config"]), name


def test_settings_that_weights_do_not_depend_on_are_marked_where_they_stand() -> None:
    free = {"max_tokens", "weights", "budget", "half_life", "calibrate", "max_new_tokens", "passes", "adapter"}
    free |= {"projection", "scale_steps", "watch", "calibration_examples", "max_labels", "converged_examples"}
    for method in methods():
        kind = amortizer_class(method)
        if issubclass(kind, Learned):
            names = {field.name for field in dataclasses.fields(kind.config_class)}
            of_depth = {"depth", *OF_DEPTH} if "depth" in names else set()
            assert apart(kind.config_class) == (names & free) | of_depth, method


@pytest.mark.parametrize("method", ["iterative", "iterative-explicit", "iterative-implicit"])
def test_the_ones_of_the_backbone_are_used_and_named(
    minilm: Backbone, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "iai_hf")
    amortizer = AutoAmortizer.from_pretrained(method, backbone=minilm)
    assert amortizer.config.weights == f"minilm-l6-{method}"
    assert f"minilm-l6-{method}" in caplog.text
    untrained = AutoAmortizer.from_pretrained(method, backbone=minilm, config={"weights": None})
    assert untrained.fingerprint != amortizer.fingerprint


def test_an_adapter_has_the_layers_of_its_backbone() -> None:
    low_rank = FeatureAdapter.load(shipped.FOLDER / "mpnet-base-adapter").low_rank  # the model itself is too large here
    assert len(low_rank.down) == 12 * 6
    for name, down in low_rank.down.items():
        wide = {"intermediate.dense": (768, 3072), "output.dense": (3072, 768)}
        inside = next(
            (sizes for end, sizes in wide.items() if name.endswith(end) and "attention" not in name), (768, 768)
        )
        assert (down.shape[1], low_rank.up[name].shape[0]) == inside
        assert low_rank.up[name].any()


HERE = [name for name in shipped.names() if name.startswith(("minilm", "smollm"))]


@pytest.mark.parametrize("name", HERE)
def test_every_set_is_found_by_its_plain_backbone_and_through_its_cache(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    values = shipped.describe(shipped.FOLDER / name)
    backbone = request.getfixturevalue("minilm" if name.startswith("minilm") else "smollm")
    assert values["base_model_name_or_path"] == backbone.name
    adapts = values["method"] == ADAPTER  # it has no settings
    config = None if adapts else read_stored(amortizer_class(values["method"]).config_class, values["config"])
    for given in (backbone, CachedBackbone(backbone, tmp_path)):
        assert shipped.find(values["method"], config, given) == name


def test_a_state_finds_its_weights_again(minilm: Backbone, tmp_path) -> None:  # type: ignore[no-untyped-def]
    amortizer = AutoAmortizer.from_pretrained("iterative", backbone=minilm)
    rows = [{"input": f"{word} {i}", "output": word} for i in range(4) for word in ("cat", "dog")]
    state = TaskState.from_pretrained(amortizer.adapt(rows, progress=False).save_pretrained(tmp_path))
    assert AutoAmortizer.for_state(state, minilm).fingerprint == amortizer.fingerprint


def test_another_backbone_gets_the_untrained_head(encoder: Backbone, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "iai_hf")
    assert AutoAmortizer.from_pretrained("iterative", backbone=encoder).config.weights is None
    assert "iterative: untrained" in caplog.text


def test_weights_that_do_not_exist_or_fit_are_named(encoder: Backbone) -> None:
    with pytest.raises(ConfigError, match="no weights 'nowhere'"):
        AutoAmortizer.from_pretrained("iterative", backbone=encoder, config={"weights": "nowhere"})
    with pytest.raises(ConfigError, match="belong to 'iterative' on sentence-transformers"):
        AutoAmortizer.from_pretrained("iterative", backbone=encoder, config={"weights": "minilm-l6-iterative"})


def test_damaged_weights_are_named(encoder: Backbone, tmp_path) -> None:  # type: ignore[no-untyped-def]
    AutoAmortizer.from_pretrained("iterative", backbone=encoder).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ConfigError, match="no weights for 'iterative'"):
        AutoAmortizer.from_pretrained(tmp_path, backbone=encoder)
