"""Meta-training inside the language model: episodes, the gradients of the learned numbers, exact resume."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from conftest import LABELS, examples

from iai_hf import AutoAmortizer
from iai_hf.backbones import Backbone
from iai_hf.data import Record
from iai_hf.language_model.gradient import Gradient
from iai_hf.language_model.lm_state import LMState
from iai_hf.language_model.training import TextCurriculum, TextTask, load_text_tasks
from iai_hf.language_model.training.episodes import chunks_of, draw
from iai_hf.language_model.training.objective import PrequentialObjective
from iai_hf.training import TrainingConfig, train
from iai_hf.training.curriculum import task_files

CONFIG = TrainingConfig(
    method="lm-state",
    backbone="tiny",
    tasks=["a", "b"],
    validation=["b"],
    train_steps=6,
    episodes_per_step=1,
    queries=8,
    longest=40,
    chunk_sizes=[4, 16],
    evaluate_every=3,
    learning_rate=0.02,
    hidden_names=0.3,
    permuted_names=0.3,
    unrelated_weight=0.1,
)
SETTINGS = {"lm-state": {"rank": 2, "layers": 1}, "lora": {"rank": 2}, "prompt-tuning": {"num_virtual_tokens": 3}}
UNRELATED = ["rain is expected in the north", "shares fell in london today after the vote"]


def fresh(causal: Backbone, method: str = "lm-state") -> Gradient:
    found = AutoAmortizer.from_pretrained(method, backbone=causal, config={**SETTINGS[method], "weights": None})
    assert isinstance(found, Gradient)
    return found


@pytest.fixture
def tasks(tmp_path: Path) -> list[TextTask]:
    for name, seed in (("a", 0), ("b", 1)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.jsonl").write_text("\n".join(json.dumps(row) for row in examples(80, seed=seed)))
    return load_text_tasks(task_files(["{data}/*"], tmp_path), 1000)


def run(amortizer: Gradient, tasks: list[TextTask], output: Path, resume: bool = False, **changes: object):  # type: ignore[no-untyped-def]
    output.mkdir(exist_ok=True)
    config = dataclasses.replace(CONFIG, **changes)  # type: ignore[arg-type]
    curriculum = TextCurriculum(amortizer, tasks, UNRELATED, config)
    return train(amortizer, curriculum, config, Accelerator(cpu=True), output, resume=resume, progress_bar=False)


def test_an_episode_follows_from_its_number_alone_and_no_two_are_alike(tasks: list[TextTask]) -> None:
    drawn = [draw(tasks, UNRELATED, CONFIG, number) for number in range(40)]
    assert drawn == [draw(tasks, UNRELATED, CONFIG, number) for number in range(40)]
    assert len({len(episode.chunks[0]) for episode in drawn}) > 3
    assert len({sum(map(len, episode.chunks)) for episode in drawn}) > 10
    outputs = [{output for chunk in episode.chunks for output in chunk.outputs} for episode in drawn]
    assert any(not found <= set(LABELS) for found in outputs), "some episodes have their labels renamed"
    by_text = {record.input: record.output for record in tasks[0].records + tasks[1].records}
    assert any(
        by_text[text] != output and output in LABELS
        for episode in drawn
        for chunk in episode.chunks
        for text, output in zip(chunk.inputs, chunk.outputs, strict=True)
    ), "some have them permuted"


def test_inputs_and_outputs_of_generation_tasks_change_places() -> None:
    task = TextTask("t", "generation", tuple(Record(f"word {i}", f"answer {i}") for i in range(30)))
    always = dataclasses.replace(CONFIG, swap=1.0)
    assert all(text.startswith("answer") for chunk in draw([task], [], always, 0).chunks for text in chunk.inputs)


@pytest.mark.parametrize("method", SETTINGS)
def test_the_gradient_of_a_step_size_is_that_of_the_next_loss(  # type: ignore[no-untyped-def]
    method: str, causal: Backbone, tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What lm-state reads once a chunk it takes as given, in this gradient too; read anew for each step, all is exact.
    monkeypatch.setattr(LMState, "prefill", Gradient.prefill)
    amortizer = fresh(causal, method)
    amortizer.module.requires_grad_(True)
    objective = PrequentialObjective(amortizer, 0.0)
    episode = dataclasses.replace(draw(tasks, [], CONFIG, 1), chunks=chunks_of(tasks[0].records[:16], 8))
    objective(episode).backward()
    rates = list(amortizer.learner.rates.values())
    found = float(sum(rate.grad.sum() for rate in rates))
    losses = []
    for change in (0.01, -0.01):
        for rate in rates:
            rate.data += change
        losses.append(objective(episode).item())
        for rate in rates:
            rate.data -= change
    expected = (losses[0] - losses[1]) / 0.02
    assert abs(found - expected) < 0.02 * abs(expected) + 1e-5
    start = next(iter(amortizer.learner.start.values()))
    assert start.grad is not None
    assert start.grad.abs().sum() > 0


def test_an_untrained_start_changes_nothing_on_unrelated_texts(causal: Backbone) -> None:
    amortizer = fresh(causal)
    learner = amortizer.learner
    own, shared, retained = learner.task_weights(learner.initial()), learner.shared_weights(), amortizer.retained({})
    condition = amortizer.condition(own, shared, retained)
    assert float(amortizer.divergence(condition, UNRELATED, 16)) == pytest.approx(0, abs=1e-6)
    moved = amortizer.condition({name: tensor + 0.3 for name, tensor in own.items()}, shared, retained)
    assert float(amortizer.divergence(moved, UNRELATED, 16)) > 1e-4


@pytest.mark.parametrize("method", SETTINGS)
def test_training_lowers_the_validation_loss(method: str, causal: Backbone, tasks, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    amortizer = fresh(causal, method)
    untrained = amortizer.fingerprint
    progress = run(amortizer, tasks, tmp_path / "run", train_steps=9)
    assert progress.best < progress.history[0]["loss"]
    assert amortizer.fingerprint != untrained


def test_a_resumed_run_ends_as_one_that_was_not_cut_off(causal: Backbone, tasks, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    straight, broken = fresh(causal), fresh(causal)
    run(straight, tasks, tmp_path / "straight")
    curriculum = TextCurriculum(broken, tasks, UNRELATED, CONFIG)
    whole = curriculum.draw

    def cut(number: int, device: torch.device):  # type: ignore[no-untyped-def]
        if number == 4:
            raise KeyboardInterrupt
        return whole(number, device)

    curriculum.draw = cut  # type: ignore[method-assign]
    (tmp_path / "broken").mkdir()
    with pytest.raises(KeyboardInterrupt):
        train(broken, curriculum, CONFIG, Accelerator(cpu=True), tmp_path / "broken", progress_bar=False)
    again = fresh(causal)
    run(again, tasks, tmp_path / "broken", resume=True)
    for name, tensor in straight.module.state_dict().items():
        assert torch.equal(tensor, again.module.state_dict()[name])
