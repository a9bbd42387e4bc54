"""Steps in parts of what a layer puts out: the same answers whatever the scale of a layer's inputs."""

from __future__ import annotations

import pytest
import torch
from conftest import examples, log_probs

from iai_hf import AutoAmortizer, load_backbone
from iai_hf.backbones import Backbone
from iai_hf.backbones.gains import output_gains


def scaled(causal: Backbone, factor: float) -> Backbone:
    """The same model with inputs of its attention so many times as large, and weights as small."""
    other = load_backbone(causal.name, dtype="float32")
    with torch.no_grad():
        for name, part in other.model.named_modules():
            if name.endswith("input_layernorm"):
                part.weight.mul_(factor)
            if name.endswith(("q_proj", "k_proj", "v_proj")):
                part.weight.div_(factor)
    return other


def test_gains_are_measured_over_the_layers_that_are_called() -> None:
    layers = {name: torch.nn.Linear(4, 4, bias=False) for name in ("a", "b", "idle")}
    for part in layers.values():
        part.weight.data = 2 * torch.eye(4)
    layers["b"].weight.data *= 4
    model = torch.nn.ModuleDict(layers)

    def read() -> None:
        model["b"](model["a"](torch.ones(1, 4)))

    found = output_gains(model, {"both": ["a", "b"], "none": ["idle"]}, read)
    assert found == pytest.approx({"both": 4.0, "none": 1.0})


def test_a_model_of_another_scale_learns_the_same(causal: Backbone) -> None:
    rows, queries = examples(24), [row["input"] for row in examples(6, 3)]

    def answers(backbone: Backbone, **settings: object) -> torch.Tensor:
        config = {"target_modules": ["v_proj"], "layers": None, "weights": None, **settings}
        amortizer = AutoAmortizer.from_pretrained("lm-state", backbone=backbone, config=config)
        return log_probs(amortizer.predict(amortizer.adapt(rows, progress=False), queries))

    other = scaled(causal, 8.0)
    assert torch.allclose(answers(other), answers(causal), atol=0.02)
    plain, moved = (answers(backbone, scale_steps=False) for backbone in (causal, other))
    assert not torch.allclose(plain, moved, atol=0.1)


def test_learned_step_sizes_are_taken_as_they_are(smollm: Backbone) -> None:
    shipped, untrained = (
        AutoAmortizer.from_pretrained("lm-state", backbone=smollm, config=config) for config in ({}, {"weights": None})
    )
    assert not shipped.step_scales  # type: ignore[attr-defined]
    scales = untrained.step_scales.values()  # type: ignore[attr-defined]
    assert all(0.5 < scale < 2 for scale in scales), "the usual model's are usual"
