"""Reading: texts that are read up to a layer, and on from there as often as they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny_backbones
import torch
from conftest import LABELS, examples

from iai_hf import AutoAmortizer, Chunk, TaskSpec
from iai_hf.backbones import Backbone, load_backbone
from iai_hf.backbones.low_rank import LowRank, layer_of
from iai_hf.backbones.partial_pass import handed_on, handed_on_first
from iai_hf.backbones.reading import Reading

TEXTS = [row["input"] * (1 + number % 3) for number, row in enumerate(examples(12))] + ["", "goal " * 700]
ENTERED = {"bert": handed_on, "mpnet": handed_on_first, "modernbert": handed_on, "gemma3": handed_on}
NEVER_ENTERED = ("t5", "xlnet", "funnel", "albert")  # positions made in the first layer, tokens before texts, one layer


def loaded(family: str, tmp_path: Path) -> Backbone:
    # MPNet takes the first of what a layer gives: of a tensor, a row, which five layers leave nothing of.
    sizes: dict[str, Any] = {"num_hidden_layers": 6} if family == "mpnet" else {}
    return load_backbone(str(tiny_backbones.make(tmp_path / family, family, **sizes)), dtype="float32")


def last_layer(backbone: Backbone) -> int:
    return max(map(layer_of, backbone.linear_layers))


def weights_from(backbone: Backbone, first: int) -> LowRank:
    generator = torch.Generator().manual_seed(0)
    sizes = {name: size for name, size in backbone.linear_layers.items() if layer_of(name) >= first}
    return LowRank(
        {name: torch.randn(2, inputs, generator=generator) for name, (inputs, _) in sizes.items()},
        {name: (0.2 * torch.randn(out, 2, generator=generator)).requires_grad_() for name, (_, out) in sizes.items()},
    )


@pytest.mark.parametrize("family", ENTERED)
def test_features_and_gradients_from_a_layer_on_are_those_of_whole_passes(family: str, tmp_path: Path) -> None:
    backbone = loaded(family, tmp_path)
    first = last_layer(backbone)
    reading, weights = backbone.prefill_texts(TEXTS, None, first), (weights_from(backbone, first),)
    assert reading.entrance is not None
    assert reading.entrance.hands_on is ENTERED[family]
    assert list(reading) == TEXTS
    assert torch.equal(backbone.features(reading).vectors, backbone.features(TEXTS).vectors)
    found, plain = (backbone.differentiable_features(texts, None, weights) for texts in (reading, TEXTS))
    assert torch.allclose(found.vectors, plain.vectors, atol=1e-5)  # kernels of attention differ
    assert not torch.allclose(found.vectors, backbone.features(TEXTS).vectors, atol=1e-3)
    assert (found.tokens, found.cut) == (plain.tokens, plain.cut)
    ups = list(weights[0].up.values())
    for mine, theirs in zip(
        torch.autograd.grad(found.vectors[:, :3].sum(), ups),
        torch.autograd.grad(plain.vectors[:, :3].sum(), ups),
        strict=True,
    ):
        assert torch.allclose(mine, theirs, atol=1e-5)
    some = [13, 2, 2, 0]  # in other company, and so with other padding
    asked = backbone.features([TEXTS[number] for number in some]).vectors
    assert torch.allclose(backbone.features(reading.rows(some)).vectors, asked, atol=1e-5)


@pytest.mark.parametrize("family", NEVER_ENTERED)
def test_models_that_cant_be_entered_are_read_whole(family: str, tmp_path: Path) -> None:
    backbone = loaded(family, tmp_path)
    reading = backbone.prefill_texts(TEXTS[:4], None, max(last_layer(backbone), 1))
    assert reading.entrance is None
    assert torch.equal(backbone.features(reading).vectors, backbone.features(TEXTS[:4]).vectors)


def test_cut_texts_are_told_of_some_as_of_all(encoder: Backbone) -> None:
    reading = encoder.prefill_texts(TEXTS, 2, 1)
    assert encoder.features(reading).cut == encoder.features(TEXTS, 2).cut == sum(reading.cut) > 2
    assert encoder.features(reading.rows([12, 0])).cut == 1
    assert max(reading.lengths) == 2


def test_more_than_can_be_kept_is_read_whole(encoder: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iai_hf.backbones.backbone.PREFILL_TOKENS", 20)
    assert encoder.prefill_texts(TEXTS, None, 1).entrance is None
    assert encoder.prefill_texts(TEXTS[:1], 5, 1).entrance is not None


def test_layers_below_the_adapted_ones_read_a_text_once(encoder: Backbone) -> None:
    """One chunk under depth 1 of 2: the lower layer sees its tokens once, the upper one frozen and adapted."""
    settings = {"depth": 1, "rank": 2, "steps": 1e-9, "retained_bytes": 1, "weights": None}
    amortizer = AutoAmortizer.from_pretrained("iterative", backbone=encoder, config=settings)
    state = amortizer.init_state(TaskSpec(labels=LABELS))
    rows = examples(40)
    parts = [
        Chunk(tuple(row["input"] for row in rows[a:b]), tuple(row["output"] for row in rows[a:b]))
        for a, b in ((0, 8), (8, 16))
    ]
    state = amortizer.update(state, parts[0])  # what is found out about the model once
    called: list[int] = []
    layers = [encoder.model.get_submodule(f"encoder.layer.{number}.attention") for number in range(2)]
    hooks = [
        layer.register_forward_hook(lambda *_, number=number: called.append(number))
        for number, layer in enumerate(layers)
    ]
    amortizer.update(state, parts[1])
    for hook in hooks:
        hook.remove()
    assert called.count(0) == 1
    assert called.count(1) == 2


def test_a_reading_is_the_texts_that_were_given(encoder: Backbone) -> None:
    reading: Sequence[str] = Reading.of(encoder, TEXTS, None)
    assert len(reading) == len(TEXTS)
    assert reading[1] == TEXTS[1]
    assert list(reading[:2]) == TEXTS[:2]
