"""Standardized features: on where a few dimensions would drown the others, and then a property of the backbone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from conftest import examples, log_probs

from iai_hf import AutoAmortizer, TaskState, load_backbone
from iai_hf.backbones import Backbone
from iai_hf.backbones.adapter import FeatureAdapter
from iai_hf.backbones.cached import CachedBackbone
from iai_hf.backbones.standardizing import SAMPLE, standardized
from iai_hf.errors import BackboneError, ConfigError, StateError
from iai_hf.features.frozen_features import FrozenFeatures
from iai_hf.features.training.adapter import AdapterModule, AdapterObjective


@pytest.fixture
def drowned(causal: Backbone) -> Backbone:
    """A causal language model in two dimensions of whose hidden states nearly all of the square lies."""
    other = load_backbone(causal.name, dtype="float32")
    words = other.model.get_input_embeddings()
    with torch.no_grad():
        words.weight[:, :2] += 50.0
    return other


def test_it_is_on_where_two_dimensions_drown_the_others(drowned: Backbone, causal: Backbone, encoder: Backbone) -> None:
    assert AutoAmortizer.from_pretrained("iterative", backbone=drowned).config.standardize is True
    for even in (causal, encoder):
        amortizer = AutoAmortizer.from_pretrained("iterative", backbone=even)
        assert amortizer.config.standardize is False
        assert amortizer.backbone.fingerprint == even.fingerprint


def test_each_dimension_counts_by_what_is_usual_for_it(drowned: Backbone) -> None:
    before, after = (backbone.features(SAMPLE).vectors for backbone in (drowned, standardized(drowned)))
    assert before.square().mean(0).topk(2).values.sum() > 0.8
    assert after.square().mean(0).topk(2).values.sum() < 0.3
    similar = before @ before.T
    assert similar.min() > 0.9, "all texts pointed the same way"
    assert (after @ after.T).min() < 0.5


def test_a_feature_is_the_pooled_state_about_its_mean_by_its_deviation(drowned: Backbone) -> None:
    texts = [row["input"] for row in examples(5)]
    sample, pooled = drowned.pooled(SAMPLE), drowned.pooled(texts)
    deviation = sample.std(0) + 0.5 * sample.std(0).median()
    expected = torch.nn.functional.normalize((pooled - sample.mean(0)) / deviation, dim=1)
    assert torch.allclose(standardized(drowned).features(texts).vectors, expected, atol=1e-5)


def test_through_a_cache_features_are_the_same(drowned: Backbone, tmp_path: Path) -> None:
    texts = [row["input"] for row in examples(5)]
    plain, cached = standardized(drowned), standardized(CachedBackbone(drowned, tmp_path))
    assert isinstance(cached, CachedBackbone)
    assert plain.fingerprint == cached.fingerprint != drowned.fingerprint
    for _ in range(2):
        assert torch.allclose(cached.features(texts).vectors, plain.features(texts).vectors, atol=1e-3)


def test_an_adapter_s_features_are_at_loading_what_they_were_in_training(drowned: Backbone, tmp_path: Path) -> None:
    texts = [row["input"] for row in examples(5)]
    settings: dict[str, object] = {"max_features": 12, "weights": None, "max_tokens": 20}
    plain = AutoAmortizer.from_pretrained("iterative", backbone=drowned, config=settings)
    assert isinstance(plain, FrozenFeatures)
    adapter = AdapterModule(drowned.linear_layers, 2)
    trained = AdapterObjective(adapter, plain, 0.25)
    assert torch.allclose(trained.features(texts), plain.features(texts)[0], atol=1e-5)
    with torch.no_grad():
        for weight in adapter.up:
            weight.normal_(std=0.3)
    FeatureAdapter(adapter.low_rank(torch.float32), drowned.fingerprint).save(tmp_path, drowned.name)
    settings["adapter"] = str(tmp_path)
    loaded = AutoAmortizer.from_pretrained("iterative", backbone=drowned, config=settings)
    assert isinstance(loaded, FrozenFeatures)
    assert loaded.config.standardize is True
    assert not torch.allclose(loaded.features(texts)[0], plain.features(texts)[0], atol=0.05)
    assert torch.allclose(trained.features(texts), loaded.features(texts)[0], atol=5e-3)


def test_parts_of_a_stream_and_a_saved_state_have_the_same_features(drowned: Backbone, tmp_path: Path) -> None:
    amortizer = AutoAmortizer.from_pretrained("iterative", backbone=drowned, config={"signal": "data"})
    rows = examples(32)
    whole = amortizer.adapt(rows, progress=False)
    merged = amortizer.merge([amortizer.adapt(part, progress=False) for part in (rows[:16], rows[16:])])
    queries = [row["input"] for row in examples(6, 3)]
    expected = log_probs(amortizer.predict(whole, queries))
    assert torch.allclose(log_probs(amortizer.predict(merged, queries)), expected, atol=1e-3)
    whole.save_pretrained(tmp_path / "state")
    loaded = TaskState.from_pretrained(tmp_path / "state")
    assert loaded.header.config["standardize"] is True
    assert torch.allclose(log_probs(amortizer.predict(loaded, queries)), expected, atol=1e-4)


def test_a_state_of_features_as_they_are_is_refused_by_name(drowned: Backbone) -> None:
    plain = AutoAmortizer.from_pretrained("iterative", backbone=drowned, config={"standardize": False})
    other = AutoAmortizer.from_pretrained("iterative", backbone=drowned)
    state = plain.adapt(examples(8), progress=False)
    with pytest.raises(StateError, match="standardize"):
        other.predict(state, ["a text"])


def test_another_value_is_refused(encoder: Backbone) -> None:
    with pytest.raises(ConfigError, match="standardize is 'yes please'"):
        AutoAmortizer.from_pretrained("iterative", backbone=encoder, config={"standardize": "yes please"})
    with pytest.raises(ConfigError, match="projection is 'pca'"):
        AutoAmortizer.from_pretrained("iterative", backbone=encoder, config={"projection": "pca"})


def test_an_orthogonal_projection_keeps_angles_better_than_a_gaussian(encoder: Backbone) -> None:
    wide = encoder.hidden_size
    size = wide - wide // 8
    whole = torch.nn.functional.normalize(torch.randn(200, wide, generator=torch.Generator().manual_seed(1)), dim=1)
    errors = {}
    for kind in ("orthogonal", "gaussian"):
        config = {"max_features": size, "projection": kind}
        amortizer = AutoAmortizer.from_pretrained("iterative", backbone=encoder, config=config)
        assert isinstance(amortizer, FrozenFeatures)
        found = amortizer.projected(whole)
        errors[kind] = float((found @ found.T - whole @ whole.T).abs().mean())
    assert errors["orthogonal"] < 0.5 * errors["gaussian"]


def test_a_projection_of_nothing_forbids_no_merge(encoder: Backbone) -> None:
    made = [
        AutoAmortizer.from_pretrained("iterative", backbone=encoder, config={"projection": kind})
        for kind in ("orthogonal", "gaussian")
    ]
    states = [a.adapt(examples(16, seed), progress=False) for seed, a in enumerate(made)]
    assert made[0].merge(states).header.examples == 32


def test_a_variant_is_not_standardized_again(drowned: Backbone) -> None:
    made = AutoAmortizer.from_pretrained("iterative", backbone=drowned)
    with pytest.raises(BackboneError, match="standardized already"):
        AutoAmortizer.from_pretrained("iterative", backbone=made.backbone)
    assert AutoAmortizer.from_pretrained("iterative", backbone=made.backbone.plain).fingerprint == made.fingerprint


def test_a_cache_tells_how_its_backbone_reads(causal: Backbone, tmp_path: Path) -> None:
    assert CachedBackbone(causal, tmp_path).reading == causal.reading


def test_the_sample_is_read_once_a_backbone(causal: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, pooled = load_backbone(causal.name, dtype="float32"), Backbone.pooled
    times: list[int] = []

    def counted(self: Backbone, texts: Sequence[str]) -> torch.Tensor:
        times.append(len(texts))
        return pooled(self, texts)

    monkeypatch.setattr(Backbone, "pooled", counted)
    for _ in range(3):
        AutoAmortizer.from_pretrained("iterative", backbone=backbone)
    assert times == [len(SAMPLE)]
