"""CachedBackbone: the same features, read by the model once, from disk in another process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import examples

from iai_hf.backbones import Backbone, load_backbone
from iai_hf.backbones.cached import CachedBackbone
from iai_hf.errors import BackboneError

TEXTS = [row["input"] for row in examples(20)]


def test_features_are_the_same_and_read_once(encoder: Backbone, tmp_path: Path) -> None:
    cached = CachedBackbone(encoder, tmp_path)
    plain, first, again = encoder.features(TEXTS, 4), cached.features(TEXTS, 4), cached.features(TEXTS, 4)
    torch.testing.assert_close(first.vectors, plain.vectors, atol=2e-3, rtol=2e-3)
    assert (first.tokens, first.cut) == (plain.tokens, plain.cut)
    assert torch.equal(first.vectors, again.vectors)
    assert (again.tokens, again.cut) == (0, plain.cut)
    elsewhere = CachedBackbone(encoder, tmp_path).features(TEXTS[:5], 4)
    assert elsewhere.tokens == 0
    assert torch.equal(elsewhere.vectors, first.vectors[:5])


def test_other_limits_and_new_texts_are_read(encoder: Backbone, tmp_path: Path) -> None:
    cached = CachedBackbone(encoder, tmp_path)
    cached.features(TEXTS[:10], 4)
    assert cached.features(TEXTS, 4).tokens > 0
    assert cached.features(TEXTS[:10], None).tokens > 0


def test_features_of_another_backbone_are_not_mixed_in(encoder: Backbone, causal: Backbone, tmp_path: Path) -> None:
    CachedBackbone(encoder, tmp_path).features(TEXTS)
    assert CachedBackbone(causal, tmp_path).features(TEXTS).tokens > 0


def test_features_of_other_weights_of_the_same_size_are_not_served(encoder_folder: Path, tmp_path: Path) -> None:
    one, other = (load_backbone(str(encoder_folder), dtype="float32") for _ in range(2))
    other.model.embeddings.word_embeddings.weight.data.neg_()
    assert one.fingerprint != other.fingerprint
    first = CachedBackbone(one, tmp_path).features(TEXTS).vectors
    found = CachedBackbone(other, tmp_path).features(TEXTS)
    assert found.tokens > 0
    torch.testing.assert_close(found.vectors, other.features(TEXTS).vectors, atol=2e-3, rtol=2e-3)
    assert not torch.allclose(found.vectors, first, atol=1e-2)


def test_a_damaged_shard_is_named(encoder: Backbone, tmp_path: Path) -> None:
    CachedBackbone(encoder, tmp_path).features(TEXTS)
    shard = next(tmp_path.rglob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:50])
    with pytest.raises(BackboneError, match=shard.name):
        CachedBackbone(encoder, tmp_path).features(TEXTS)


def test_features_that_are_not_finite_are_named_and_not_kept(encoder_folder: Path, tmp_path: Path) -> None:
    from iai_hf import load_backbone

    broken = load_backbone(str(encoder_folder), dtype="float32")
    broken.model.embeddings.word_embeddings.weight.data[:] = float("nan")
    with pytest.raises(BackboneError, match="not finite"):
        CachedBackbone(broken, tmp_path).features(TEXTS)
    assert not list(tmp_path.rglob("*.safetensors"))
