"""Streams side by side, each at another step: the states are those of walking each alone; runs end flat, and resume."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

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
from iai_hf.training.checkpoint import CHECKPOINT_FILE, read_progress
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
    stopped, cut = run(tmp_path / "broken", seconds=7.0)
    monkeypatch.undo()
    assert 0 < cut.step < 12
    assert cut.step % CONFIG.evaluate_every  # amidst
    assert cut.history[-1]["step"] == cut.step
    # What the run was cut off with is what it has without more time.
    same, stands = run(tmp_path / "broken", seconds=7.0, resume=True)
    assert stands == cut
    assert_same(stopped, same)
    again, progress = run(tmp_path / "broken", resume=True)
    assert progress.step == whole.step == 12
    assert_same(straight, again)
    assert told(progress) == told(whole)
    assert (progress.best, progress.best_step) == (whole.best, whole.best_step)


def test_the_best_at_the_limit_of_time_is_kept_but_forgotten_by_a_run_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def evaluated(self: TableCurriculum) -> Evaluation:
        counted = len(losses)
        losses.append([3.0, 2.0, 1.0][counted] if counted < 3 else 2.5)
        return Evaluation(losses[-1], 0.0)

    losses: list[float] = []
    monkeypatch.setattr(TableCurriculum, "evaluate", evaluated)
    with monkeypatch.context() as patch:
        ticks = itertools.count()
        patch.setattr(loop.time, "perf_counter", lambda: float(next(ticks)))
        stopped, cut = run(tmp_path / "run", seconds=7.0)
    assert cut.best_step == cut.step == cut.history[-1]["step"]
    assert cut.step % CONFIG.evaluate_every
    assert cut.best == 1.0
    again, progress = run(tmp_path / "run", resume=True)
    assert [entry["step"] for entry in progress.history] == [0, 4, 8, 12]
    assert (progress.best, progress.best_step) == (2.0, 4)
    losses.clear()
    at_step_four, _ = run(tmp_path / "four", train_steps=4)
    assert_same(again, at_step_four)
    with pytest.raises(AssertionError):
        assert_same(again, stopped)


def test_an_evaluation_at_the_limit_of_time_makes_no_run_flat() -> None:
    history = [{"step": step, "loss": 1.0} for step in range(schedule.FEWEST_EVALUATIONS)]
    assert not schedule.flat([*history, {"step": 30, "loss": 1.0, "at_limit": True}], 0.005)
    assert schedule.flat([*history, {"step": 30, "loss": 1.0}], 0.005)


def assert_same(one: Numeric, other: Numeric) -> None:
    for (name, tensor), twin in zip(one.module.state_dict().items(), other.module.state_dict().values(), strict=True):
        assert torch.equal(tensor, twin), name


def told(progress: loop.Progress) -> list[tuple[int, float]]:
    return [(entry["step"], entry["loss"]) for entry in progress.history]


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop as on a GPU, but that a step is not recorded: the loss is only looked at now and then."""
    adam = torch.optim.Adam
    monkeypatch.setattr(loop, "_captures", lambda *_: True)
    monkeypatch.setattr(loop, "CapturedStep", lambda step: step)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: None)
    monkeypatch.setattr(torch.optim, "Adam", lambda parameters, lr, capturable: adam(parameters, lr=lr))


@pytest.mark.usefixtures("captured")
@pytest.mark.parametrize("evaluate_every", [4, 9], ids=["before an evaluation", "before the last one"])
def test_a_captured_loss_that_is_no_number_is_told_before_anything_is_saved(
    evaluate_every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound, _ = run(tmp_path / "run", evaluate_every=evaluate_every, train_steps=10)
    assert all(parameter.isfinite().all() for parameter in sound.module.parameters())
    bad, drawn = evaluate_every + 1, TableCurriculum.draw

    def draw(self: TableCurriculum, number: int, device: torch.device) -> Any:
        episode: Any = drawn(self, number, device)
        if number == bad - 1:
            episode.chunk.y.fill_(float("inf"))
            episode.queries.y.fill_(float("inf"))
        return episode

    monkeypatch.setattr(TableCurriculum, "draw", draw)
    with pytest.raises(ConfigError, match=r"the loss is (nan|inf) in step \d+, or one of the 50 before it; the last"):
        run(tmp_path / "other", evaluate_every=evaluate_every, train_steps=10)
    assert read_progress(tmp_path / "other").step == evaluate_every
    assert_finite(tmp_path / "other")


def test_a_gradient_that_is_no_number_never_reaches_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepped = TableCurriculum.stepped

    def damaged(self: TableCurriculum, step: int) -> None:
        stepped(self, step)
        if step == 7:
            next(self.trained.parameters()).data.view(-1)[0] = float("nan")

    monkeypatch.setattr(TableCurriculum, "stepped", damaged)
    with pytest.raises(ConfigError, match="a weight is NaN or infinite behind step 7; the last checkpoint stands"):
        run(tmp_path / "last", train_steps=7)
    assert read_progress(tmp_path / "last").step == 4
    assert_finite(tmp_path / "last")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_validation_loss_that_is_no_number_is_refused(
    value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([1.0, 0.9, value])
    monkeypatch.setattr(TableCurriculum, "evaluate", lambda self: Evaluation(next(losses), 0.0))
    with pytest.raises(ConfigError, match=f"the validation loss is {value} behind step 8; the last checkpoint stands"):
        run(tmp_path / "run")
    assert read_progress(tmp_path / "run").step == 4


def assert_finite(folder: Path) -> None:
    tensors = load_file(folder / CHECKPOINT_FILE)
    assert tensors
    assert all(tensor.isfinite().all() for tensor in tensors.values())


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
