"""Meta-training inside the language model: episodes, the gradients of the learned numbers, exact resume."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from conftest import LABELS, examples

from iai_hf import AutoAmortizer, TaskSpec
from iai_hf.backbones import Backbone
from iai_hf.data import Record
from iai_hf.errors import ConfigError
from iai_hf.language_model.gradient import Gradient
from iai_hf.language_model.lm_state import LMState
from iai_hf.language_model.training import TextCurriculum, TextTask, load_text_tasks
from iai_hf.language_model.training.episodes import TextEpisode, chunks_of, draw, draw_together
from iai_hf.language_model.training.objective import PrequentialObjective
from iai_hf.language_model.training.side_by_side import SideBySideObjective
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


@pytest.mark.parametrize("method", ["lm-state", "lora"])
def test_tasks_side_by_side_have_the_losses_and_gradients_that_each_has_alone(  # type: ignore[no-untyped-def]
    method: str, causal: Backbone, tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LMState, "prefill", Gradient.prefill)  # side by side every batch is read anew
    amortizer = fresh(causal, method)
    amortizer.module.requires_grad_(True)
    with torch.no_grad():  # of random weights all parts have gradients, the shared ones too
        for number, start in enumerate(amortizer.learner.start.values()):
            start += 0.1 * torch.randn(start.shape, generator=torch.Generator().manual_seed(number))
    episodes = [
        TextEpisode(chunks_of(task.records[:count], count), (text,), task.name)
        for task, count, text in zip(tasks, (30, 14), UNRELATED, strict=True)
    ]
    alone, together = PrequentialObjective(amortizer, 0.3), SideBySideObjective(amortizer, 0.3)
    losses = [alone(episode) for episode in episodes]
    sum(losses).backward()

    def gradients() -> dict[str, torch.Tensor]:
        found = {name: part.grad for name, part in amortizer.learner.named_parameters()}
        return {name: part.clone() for name, part in found.items() if part is not None}

    expected = {name: part / 2 for name, part in gradients().items()}
    amortizer.learner.zero_grad()
    loss = together(episodes)
    loss.backward()
    torch.testing.assert_close(loss, sum(losses) / 2, rtol=1e-4, atol=1e-5)
    assert set(expected) == {name for name, _ in amortizer.learner.named_parameters()}
    for name, part in gradients().items():
        size = float(expected[name].abs().max())
        assert size > 0, name
        torch.testing.assert_close(part / size, expected[name] / size, rtol=1e-2, atol=1e-3)


def test_steps_side_by_side_are_those_that_a_state_takes(causal: Backbone, tasks: list[TextTask]) -> None:
    amortizer = fresh(causal)
    amortizer.fold_step_scales()
    together = SideBySideObjective(amortizer, 0.0)
    chunks = [chunks_of(task.records[:12], 12) for task in tasks]
    streams = together.streams(chunks)
    queries = [[together.row(record.input, record.output) for record in task.records[30:36]] for task in tasks]
    assert all(0 < len(rows) <= amortizer.config.batch_size for rows in streams.rows)
    once = dataclasses.replace(amortizer.config, passes=1)
    amortizer.config = once
    found = torch.cat(list(together.held_out(streams, queries, (1,)))).split(6)
    for mine, task, losses in zip(chunks, tasks, found, strict=True):
        tensors, _ = amortizer.refine(amortizer.initial(TaskSpec("generation")), TaskSpec("generation"), mine[0], 0)
        rows = [together.row(record.input, record.output) for record in task.records[30:36]]
        expected = amortizer.prompter.model.losses(rows, amortizer.condition_of(tensors))
        before = amortizer.prompter.model.losses(rows, amortizer.condition_of(amortizer.initial(TaskSpec())))
        moved = ((expected.sums - before.sums) / expected.tokens).abs().mean()
        assert float((losses - expected.sums / expected.tokens).abs().mean()) < 0.02 * float(moved)


def test_what_is_drawn_side_by_side_is_of_as_many_tasks_and_of_like_length(tasks: list[TextTask]) -> None:
    config = dataclasses.replace(CONFIG, side_by_side=2)
    drawn = [draw_together(tasks, UNRELATED, config, number) for number in range(20)]
    assert drawn == [draw_together(tasks, UNRELATED, config, number) for number in range(20)]
    assert all({episode.task for episode in episodes} == {"a", "b"} for episodes in drawn)
    sizes = [{len(episode.chunks[0]) for episode in episodes} for episodes in drawn]
    assert all(len(found) == 1 for found in sizes)
    assert len(set.union(*sizes)) > 5
    long = TextTask("long", "generation", tuple(Record(f"{'word ' * 40}{i}", "answer") for i in range(30)))
    many = [*tasks, long, dataclasses.replace(long, name="longer")]
    pairs = {frozenset(e.task for e in draw_together(many, [], config, number)) for number in range(20)}
    assert {frozenset({"a", "b"}), frozenset({"long", "longer"})} <= pairs


def test_a_method_without_low_rank_weights_is_not_trained_side_by_side(
    causal: Backbone, tasks: list[TextTask], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="side_by_side is for lora and lm-state"):
        run(fresh(causal, "prompt-tuning"), tasks, tmp_path / "run", side_by_side=2)


@pytest.mark.parametrize("side_by_side", [1, 2])
def test_step_sizes_are_learned_from_those_of_the_untrained_method_on(
    causal: Backbone, tasks: list[TextTask], side_by_side: int
) -> None:
    amortizer = fresh(causal)
    scales = dict(amortizer.step_scales)
    assert any(scale != 1 for scale in scales.values())
    before = {name: rates.clone() for name, rates in amortizer.learner.rates.items()}
    TextCurriculum(amortizer, tasks * 2, UNRELATED, dataclasses.replace(CONFIG, side_by_side=side_by_side))
    assert not amortizer.step_scales
    for name, rates in amortizer.learner.rates.items():
        torch.testing.assert_close(rates, before[name] + math.log(scales[name]))


def test_a_run_with_a_time_limit_ends_behind_it_and_goes_on_to_it(causal: Backbone, tasks, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    output = tmp_path / "run"
    output.mkdir()
    config = dataclasses.replace(CONFIG, side_by_side=2, train_steps=10**6, evaluate_every=2, validation=[], warmup=0.2)

    def trained(seconds: float, resume: bool):  # type: ignore[no-untyped-def]
        amortizer = fresh(causal)
        curriculum = TextCurriculum(amortizer, tasks, UNRELATED, config)
        return train(
            amortizer, curriculum, config, Accelerator(cpu=True), output, resume=resume, progress_bar=False,
            seconds=seconds,
        )  # fmt: skip

    first = trained(2.0, False)
    assert 0 < first.step < 10**6
    assert first.history[-1]["seconds"] >= 2
    again = trained(3.0, True)
    assert again.step > first.step
    assert 3 <= again.history[-1]["seconds"] < 5


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
