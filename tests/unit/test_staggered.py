"""Streams side by side, each at another step: the states are those of walking each alone; runs end flat, and resume."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from iai_hf import AutoAmortizer
from iai_hf.errors import ConfigError
from iai_hf.tables.numeric import Numeric
from iai_hf.tables.solvers.implicit import Implicit
from iai_hf.tables.training import TableCurriculum
from iai_hf.tables.training.families import LinearRegression
from iai_hf.tables.training.staggered import Staggered, StaggeredStep
from iai_hf.training import TrainingConfig, schedule, train
from iai_hf.training import trainer as loop
from iai_hf.training.captured import CapturedStep
from iai_hf.training.curriculum import Evaluation

TASKS = LinearRegression("linear regression, 2", False, 2, 1)
CONFIG = TrainingConfig(
    method="numeric-parametric",
    backbone="numeric/llama",
    tasks=[TASKS.name],
    train_steps=12,
    episodes_per_step=1,
    tasks_per_episode=6,
    learning_rate=0.003,
    queries=8,
    most_steps=3,
    chunk_sizes=[4, 8],
    evaluate_every=4,
    averaging=0.9,
    staggered=True,
    until_flat=0.005,
)


def amortizer(method: str = "numeric-parametric", **settings: Any) -> Numeric:
    config = {"kind": "regression", "inputs": 2, "outputs": 1, "hidden": 16, "layers": 1, "horizon": 3, "free": True}
    found = AutoAmortizer.from_pretrained(method, config={**config, "counting": True, **settings})
    assert isinstance(found, Numeric)
    return found


def run(output: Path, seconds: float | None = None, resume: bool = False, **changes: Any) -> tuple[Any, loop.Progress]:
    config = dataclasses.replace(CONFIG, **changes)
    made = amortizer()
    output.mkdir(exist_ok=True)
    progress = train(
        made,
        TableCurriculum(made, TASKS, config),
        config,
        Accelerator(cpu=True),
        output,
        resume=resume,
        progress_bar=False,
        seconds=seconds,
    )
    return made, progress


@pytest.mark.parametrize("method", ["numeric-parametric", "numeric-explicit", "numeric-implicit"])
def test_states_are_those_of_each_stream_walked_alone(method: str) -> None:
    solver = amortizer(method, signal="data").solver
    assert solver.steps_apart
    with torch.no_grad():
        for parameter in solver.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    staggered = Staggered(solver, TASKS, CONFIG)
    walked: dict[int, list[StaggeredStep]] = {}
    for number in range(9):
        drawn = staggered.draw(number, 4 + number % 2, torch.device("cpu"))
        rows = slice(2 * (number % 3), 2 * (number % 3) + 2)
        assert drawn.fresh[rows].all()
        assert int(drawn.fresh.sum()) == (6 if number == 0 else 2)
        with torch.no_grad():
            loss = staggered(drawn)
        for group in range(3):
            if (number - group) % 3 == 0:
                walked[group] = []
            if group in walked:
                walked[group].append(drawn)
        assert torch.isfinite(loss)
    for group in range(3):
        rows = slice(2 * group, 2 * group + 2)
        chunks = [type(step.chunk)(step.chunk.x[rows], step.chunk.y[rows]) for step in walked[group]]
        asked = walked[group][0].queries.x[rows]
        with torch.no_grad():
            expected = solver.outputs(chunks, asked)[-1]
        name = "kept_state" if isinstance(solver, Implicit) else "kept_theta"
        kept = staggered.get_buffer(name)[rows]
        found = kept if isinstance(solver, Implicit) else solver.predictor.features(asked) @ kept
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_step_follows_from_its_number_but_for_the_states() -> None:
    first, second = (Staggered(amortizer().solver, TASKS, CONFIG) for _ in range(2))
    for number in range(8):
        passed = first.draw(number, 4, torch.device("cpu"))
    jumped = second.draw(7, 4, torch.device("cpu"))
    assert torch.equal(passed.chunk.x, jumped.chunk.x)
    assert torch.equal(passed.queries.y, jumped.queries.y)


def test_a_run_that_was_out_of_time_goes_on_exactly_with_more_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight, whole = run(tmp_path / "straight")
    ticks = itertools.count()
    monkeypatch.setattr(loop.time, "perf_counter", lambda: float(next(ticks)))
    _, cut = run(tmp_path / "broken", seconds=7.0)
    monkeypatch.undo()
    assert 0 < cut.step < 12
    assert cut.step % CONFIG.evaluate_every  # amidst
    again, progress = run(tmp_path / "broken", resume=True)
    assert progress.step == whole.step == 12
    for (name, one), other in zip(
        straight.module.state_dict().items(), again.module.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name
    assert progress.history[-1]["loss"] == whole.history[-1]["loss"]


def test_a_run_ends_where_the_loss_no_longer_falls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def falling(self: TableCurriculum) -> Evaluation:
        losses.append(max(1 - 0.02 * len(losses), 0.5))
        return Evaluation(losses[-1], 0.0)

    losses: list[float] = []
    monkeypatch.setattr(TableCurriculum, "evaluate", falling)
    _, progress = run(tmp_path / "flat", train_steps=100, evaluate_every=1)
    assert schedule.flat(progress.history, 0.005)
    assert not schedule.flat(progress.history[:-1], 0.005)
    assert 25 < progress.step < 40
    losses.clear()
    _, progress = run(tmp_path / "all", train_steps=40, evaluate_every=1, until_flat=0.0)
    assert progress.step == 40


def test_a_run_that_learns_nothing_at_first_is_not_flat() -> None:
    history = [{"step": step, "loss": 1.0} for step in range(schedule.FEWEST_EVALUATIONS)]
    assert not schedule.flat(history, 0.005)
    assert schedule.flat([*history, {"step": schedule.FEWEST_EVALUATIONS, "loss": 1.0}], 0.005)


def test_the_rate_rises_and_falls_without_regard_to_the_end_where_that_is_unknown(tmp_path: Path) -> None:
    rates: list[float] = []
    accelerator = Accelerator(cpu=True)
    accelerator.log = lambda values, step: rates.append(values["learning_rate"]) if "loss" in values else None
    config = CONFIG
    made = amortizer()
    train(made, TableCurriculum(made, TASKS, config), config, accelerator, tmp_path, progress_bar=False)
    assert rates == pytest.approx([0.003 * step / schedule.RISING for step in range(1, 13)])
    assert schedule.unending(schedule.RISING) == schedule.unending(schedule.CONSTANT) == 1.0
    assert schedule.unending(4 * schedule.CONSTANT) == 0.5


def test_settings_that_mean_nothing_are_refused() -> None:
    for changes in ({"until_flat": 1.5}, {"episodes_per_step": 2}):
        with pytest.raises(ConfigError):
            dataclasses.replace(CONFIG, **changes)


def test_a_captured_step_runs_each_shape_as_it_is_at_first() -> None:
    calls = []
    step = CapturedStep(lambda episode: calls.append(episode) or torch.zeros(()))  # type: ignore[func-returns-value]
    step((torch.zeros(2), [torch.zeros(3)]))
    step((torch.zeros(4), [torch.zeros(3)]))
    assert len(calls) == 2
