"""Whatever computes on a GPU keeps its tensors together: shown on a second device that every machine has."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import examples
from fake_device import FAKE_DEVICE, FakeTensor, fake_device, to_fake_device

from iai_hf import AutoAmortizer, Chunk, TaskSpec, TaskState, load_backbone
from iai_hf.amortizer import Amortizer
from iai_hf.backbones import Backbone
from iai_hf.backbones.batching import pass_tokens
from iai_hf.data import Record
from iai_hf.features.frozen_features import FrozenFeatures
from iai_hf.features.heads import ExplicitHead, Head, ImplicitHead, ParametricHead
from iai_hf.features.training import FeatureCurriculum, FeatureTask
from iai_hf.features.training.episodes import FeatureEpisode
from iai_hf.features.training.objective import HeadObjective
from iai_hf.language_model.gradient import Gradient
from iai_hf.language_model.training import TextCurriculum, TextTask
from iai_hf.tables.numeric import Numeric
from iai_hf.tables.training import TableCurriculum
from iai_hf.tables.training.families import LinearRegression
from iai_hf.training import TrainingConfig
from iai_hf.training.curriculum import Evaluation

CONFIG = TrainingConfig(
    method="iterative",
    backbone="tiny",
    tasks=["a", "b"],
    validation=["b"],
    queries=16,
    longest=64,
    chunk_sizes=[8, 8],
    most_steps=3,
    tasks_per_episode=2,
)
HEADS: dict[str, Callable[[], Head]] = {
    "both": ParametricHead,
    "data": lambda: ParametricHead("data"),
    "gradient": lambda: ParametricHead("gradient"),
    "explicit": ExplicitHead,
    "implicit": lambda: ImplicitHead(budget=24),
}


def test_a_pass_has_more_tokens_on_a_gpu() -> None:
    assert pass_tokens(torch.device("cpu"), 256) == 256
    assert pass_tokens(torch.device("cuda"), 256) > 4 * 256


def test_the_device_is_another() -> None:
    with fake_device() as device, pytest.raises(RuntimeError, match="two devices"):
        torch.ones(3, device=device) + torch.ones(3)


@pytest.mark.parametrize("name", HEADS)
def test_heads_are_trained_where_the_episode_is(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # knows devices of its own only
    generator = torch.Generator().manual_seed(0)
    unit = lambda *size: torch.nn.functional.normalize(torch.randn(*size, generator=generator), dim=-1)  # noqa: E731
    features, names, queries = unit(40, 8), unit(4, 3, 8), unit(10, 8)
    targets, answers = torch.arange(40) % 3, torch.arange(10) % 3

    def gradients(head: Head, episode: FeatureEpisode) -> list[torch.Tensor]:
        HeadObjective(head)(episode).backward()
        return [torch.zeros(()) if p.grad is None else p.grad.cpu() for p in head.parameters()]

    head = HEADS[name]()
    episode = FeatureEpisode(features, targets, (16, 16, 8), (1, 3), names, queries, answers, "task")
    there = to_fake_device(copy.deepcopy(head))
    expected = gradients(head, episode)
    with fake_device():
        parts = map(FakeTensor, (features, targets, names, queries, answers))
        features, targets, names, queries, answers = parts
        episode = FeatureEpisode(features, targets, (16, 16, 8), (1, 3), names, queries, answers, "task")
        found = gradients(there, episode)
    torch.testing.assert_close(found, expected)


def test_heads_are_validated_where_they_are(encoder: Backbone) -> None:
    amortizer = AutoAmortizer.from_pretrained("iterative", backbone=encoder)
    assert isinstance(amortizer, FrozenFeatures)
    rows = examples(60)
    features, _ = amortizer.features([row["input"] for row in rows])
    labels = tuple(sorted({row["output"] for row in rows}))
    targets = torch.tensor([labels.index(row["output"]) for row in rows])
    tasks = [FeatureTask(name, features, targets, amortizer.name_features(labels), labels) for name in ("a", "b")]
    curriculum = FeatureCurriculum(amortizer, tasks, CONFIG)
    expected = curriculum.evaluate()
    to_fake_device(amortizer.head)
    with fake_device() as device:
        episode = curriculum.draw(0, device)
        found = curriculum.evaluate()
    assert isinstance(episode.features, FakeTensor)
    assert found == pytest.approx(expected, abs=1e-4)


NETWORK = {"inputs": 3, "outputs": 1, "hidden": 16, "layers": 1, "standardise": False}
NUMERIC: dict[str, dict[str, Any]] = {
    "numeric-parametric": {},
    "numeric-parametric/data": {"signal": "data"},
    "numeric-parametric/gradient": {"signal": "gradient"},
    "numeric-parametric/free": {"free": True, "window": 3},
    "numeric-explicit": {},
    "numeric-implicit": {"budget": 32},
    "numeric-implicit/free": {"free": True, "carried": "latents", "budget": 32},
    "hypernetwork": {},
    "prior-fitted": {},
    "sgd": {},
    "adam": {},
    "maml": {},
    "reptile": {},
    "learned-optimizer": {},
}


@pytest.mark.parametrize("name", NUMERIC)
def test_solvers_are_trained_where_the_episode_is(name: str) -> None:
    config = {**NETWORK, **NUMERIC[name]}
    amortizer = AutoAmortizer.from_pretrained(name.split("/")[0], config=config)
    assert isinstance(amortizer, Numeric)
    amortizer.solver.requires_grad_(True)
    curriculum = TableCurriculum(amortizer, LinearRegression("linear", False, 3, 1), CONFIG)

    def gradients(device: torch.device) -> list[torch.Tensor]:
        curriculum.objective(curriculum.draw(0, device)).backward()
        return [torch.zeros(()) if p.grad is None else p.grad.cpu() for p in amortizer.solver.parameters()]

    expected, validated = gradients(torch.device("cpu")), curriculum.evaluate()
    to_fake_device(amortizer.solver)
    with fake_device() as device:
        found = gradients(device)
        again = curriculum.evaluate()
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
    assert again == pytest.approx(validated, abs=1e-4)


IN_WORDS = {
    "in-context": {"demonstration_tokens": 200},
    "prompt-tuning": {"num_virtual_tokens": 4},
    "lora": {"rank": 2},
    "lm-state": {"rank": 2, "layers": 1},
    "iterative": {},
}


@pytest.mark.parametrize("method", IN_WORDS)
def test_methods_adapt_and_answer_where_the_backbone_is(method: str, causal_folder: Path) -> None:
    rows = examples(24)
    chunks = [Chunk(*(tuple(row[key] for row in rows[i : i + 8]) for key in ("input", "output"))) for i in (0, 8, 16)]

    def adapted(amortizer: Amortizer) -> tuple[TaskState, torch.Tensor]:
        state = amortizer.init_state(TaskSpec("classification"))
        for chunk in chunks:
            state = amortizer.update(state, chunk)
        found = amortizer.predict(state, [row["input"] for row in rows[:5]]).log_probs
        assert found is not None
        return state, found

    backbone = load_backbone(str(causal_folder), dtype="float32", device="cpu")
    _, expected = adapted(AutoAmortizer.from_pretrained(method, backbone=backbone, config=IN_WORDS[method]))
    to_fake_device(backbone.model)
    backbone.device = FAKE_DEVICE
    with fake_device():
        state, found = adapted(AutoAmortizer.from_pretrained(method, backbone=backbone, config=IN_WORDS[method]))
    assert not any(isinstance(tensor, FakeTensor) for tensor in [*state.tensors.values(), found])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", ["lm-state", "lora", "prompt-tuning"])
@pytest.mark.parametrize("side_by_side", [1, 2])
def test_starts_are_trained_and_validated_where_the_model_is(
    method: str, side_by_side: int, causal_folder: Path
) -> None:
    if method == "prompt-tuning" and side_by_side > 1:
        pytest.skip("it has no low-rank weights")
    tasks = [
        TextTask(name, "classification", tuple(Record(row["input"], row["output"]) for row in examples(60, seed=seed)))
        for seed, name in enumerate("abc")
    ]
    config = dataclasses.replace(CONFIG, longest=24, queries=6, side_by_side=side_by_side, unrelated_weight=0.3)

    def trained(backbone: Backbone, device: torch.device) -> tuple[list[torch.Tensor], Evaluation | None]:
        amortizer = AutoAmortizer.from_pretrained(method, backbone=backbone, config=IN_WORDS[method])
        assert isinstance(amortizer, Gradient)
        curriculum = TextCurriculum(amortizer, tasks, ["rain is expected", "shares fell in London"], config)
        learner = amortizer.learner.requires_grad_(True)
        if device == FAKE_DEVICE:
            to_fake_device(learner)
        curriculum.objective(curriculum.draw(0, device)).backward()
        found = [p.grad.cpu() for p in learner.parameters() if p.grad is not None]
        assert len(found) == len(list(learner.parameters()))
        return found, curriculum.evaluate()

    backbone = load_backbone(str(causal_folder), dtype="float32", device="cpu")
    expected, validated = trained(backbone, torch.device("cpu"))
    to_fake_device(backbone.model)
    backbone.device = FAKE_DEVICE
    with fake_device():
        found, again = trained(backbone, FAKE_DEVICE)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
    assert again == pytest.approx(validated, abs=1e-4)
