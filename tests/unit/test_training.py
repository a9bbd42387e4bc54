"""Meta-training: episodes follow from their number, gradients stop, runs resume exactly, bad input is named."""

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
from iai_hf.errors import ConfigError, DataError, StateError
from iai_hf.features.frozen_features import FrozenFeatures
from iai_hf.features.heads import ParametricHead
from iai_hf.features.training import AdapterCurriculum, FeatureCurriculum, FeatureTask, load_tasks
from iai_hf.features.training.episodes import draw, whole
from iai_hf.features.training.objective import HeadObjective
from iai_hf.language_model.training import load_text_tasks
from iai_hf.training import TrainingConfig, train
from iai_hf.training.checkpoint import CHECKPOINT_FILE
from iai_hf.training.config import read_training_config
from iai_hf.training.curriculum import task_files
from iai_hf.training.schedule import decaying

CONFIG = TrainingConfig(
    method="iterative",
    backbone="tiny",
    tasks=["a", "b"],
    validation=["b"],
    train_steps=4,
    episodes_per_step=2,
    queries=16,
    longest=64,
    evaluate_every=2,
)


@pytest.fixture
def amortizer(encoder: Backbone) -> FrozenFeatures:
    found = AutoAmortizer.from_pretrained("iterative", backbone=encoder)
    assert isinstance(found, FrozenFeatures)
    return found


@pytest.fixture
def tasks(amortizer: FrozenFeatures, tmp_path: Path) -> list[FeatureTask]:
    for name, seed in (("a", 0), ("b", 1)):
        (tmp_path / name).mkdir()
        lines = [json.dumps(row) for row in examples(120, seed=seed)]
        (tmp_path / name / "train.jsonl").write_text("\n".join(lines))
    return load_tasks(task_files(["{data}/*"], tmp_path), amortizer, 1000)


def run(amortizer: FrozenFeatures, tasks: list[FeatureTask], output: Path, **changes: object):  # type: ignore[no-untyped-def]
    output.mkdir(exist_ok=True)
    resume = bool(changes.pop("resume", False))
    config = dataclasses.replace(CONFIG, **changes)  # type: ignore[arg-type]
    curriculum = FeatureCurriculum(amortizer, tasks, config)
    return train(amortizer, curriculum, config, Accelerator(cpu=True), output, resume=resume, progress_bar=False)


def test_tasks_are_read_as_features(tasks: list[FeatureTask]) -> None:
    assert [task.name for task in tasks] == ["a", "b"]
    assert tasks[0].labels == tuple(sorted(LABELS))
    assert tasks[0].features.shape == (120, 32)
    assert tasks[0].names.shape[1:] == (3, 32)


def test_an_episode_follows_from_its_number_alone(tasks: list[FeatureTask]) -> None:
    meaningless = torch.randn(4, 10, 32)
    first, again, other = (draw(tasks, meaningless, CONFIG, number) for number in (7, 7, 8))
    assert torch.equal(first.features, again.features)
    assert (first.sizes, first.loss_steps) == (again.sizes, again.loss_steps)
    assert first.features.shape != other.features.shape or not torch.equal(first.features, other.features)


def test_episodes_are_sound_and_varied(tasks: list[FeatureTask]) -> None:
    meaningless = torch.randn(4, 10, 32)
    drawn = [draw(tasks, meaningless, CONFIG, number) for number in range(60)]
    for episode in drawn:
        assert sum(episode.sizes) == len(episode.targets)
        assert episode.loss_steps[-1] == len(episode.sizes)
        assert len(episode.answers) > 0
        assert {*episode.targets.tolist(), *episode.answers.tolist()} <= set(range(episode.classes))
        read, asked = ({tuple(row) for row in part[:, :4].tolist()} for part in (episode.features, episode.queries))
        assert len(episode.sizes) <= CONFIG.most_steps
        assert len(asked) > 1
        assert not read & asked
    assert len({len(episode.targets) for episode in drawn}) > 10
    assert len({episode.sizes[0] for episode in drawn}) > 5


def test_evaluation_streams_pay_at_powers_of_four(tasks: list[FeatureTask]) -> None:
    episode = whole(tasks[0], dataclasses.replace(CONFIG, queries=8), 0)
    seen = [sum(episode.sizes[:step]) for step in episode.loss_steps]
    assert seen == [16, 64]


def test_the_gradient_reaches_every_learned_part_and_stops_before_the_unrolled_steps(tasks: list[FeatureTask]) -> None:
    episode = draw(tasks, torch.randn(4, 10, 32), dataclasses.replace(CONFIG, shortest=48, chunk_sizes=[8, 8]), 3)
    assert len(episode.sizes) > 4
    gradients = []
    for unroll in (1, 1, 3):
        objective = HeadObjective(ParametricHead(), unroll)
        objective(episode).backward()
        found = [parameter.grad for parameter in objective.parameters()]
        gradients.append([torch.zeros(1) if gradient is None else gradient for gradient in found])
    assert all(gradient.abs().sum() > 0 for gradient in gradients[0])
    assert all(torch.equal(first, again) for first, again in zip(gradients[0], gradients[1], strict=True))
    assert any(not torch.equal(first, more) for first, more in zip(gradients[0], gradients[2], strict=True))


def test_training_improves_the_validation_loss(amortizer, tasks, tmp_path) -> None:  # type: ignore[no-untyped-def]
    untrained = amortizer.fingerprint
    progress = run(amortizer, tasks, tmp_path / "run", train_steps=12)
    assert progress.best < progress.history[0]["loss"]
    assert amortizer.fingerprint != untrained


def test_the_learning_rate_rises_where_it_is_told_to_and_falls_to_nothing() -> None:
    rates = [decaying(part / 100, 0.1) for part in range(101)]
    assert rates[0] == 0
    assert rates[:10] == sorted(rates[:10])
    assert max(rates) == pytest.approx(rates[10], rel=0.01)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert decaying(0.0, 0.0) == 1
    assert rates[-1] == decaying(1.5, 0.0) == pytest.approx(0)


def test_a_time_limit_of_nothing_is_refused(amortizer, tasks, tmp_path) -> None:  # type: ignore[no-untyped-def]
    curriculum = FeatureCurriculum(amortizer, tasks, CONFIG)
    with pytest.raises(ConfigError, match="seconds is 0"):
        train(amortizer, curriculum, CONFIG, Accelerator(cpu=True), tmp_path, progress_bar=False, seconds=0)


def test_a_resumed_run_ends_as_one_that_was_not_cut_off(encoder, tasks, tmp_path) -> None:  # type: ignore[no-untyped-def]
    def fresh() -> FrozenFeatures:
        return AutoAmortizer.from_pretrained("iterative", backbone=encoder)  # type: ignore[return-value]

    straight, broken = fresh(), fresh()
    run(straight, tasks, tmp_path / "straight")

    class Cut(Exception):
        pass

    def cut(*_: object, **__: object) -> None:
        raise Cut

    first = Accelerator(cpu=True)
    accelerator_log, steps = first.log, []

    def log(values: dict[str, float], step: int) -> None:
        steps.append(step)
        if step == 3:
            cut()
        accelerator_log(values, step=step)

    first.log = log
    (tmp_path / "broken").mkdir()
    with pytest.raises(Cut):
        train(broken, FeatureCurriculum(broken, tasks, CONFIG), CONFIG, first, tmp_path / "broken", progress_bar=False)
    again = fresh()
    run(again, tasks, tmp_path / "broken", resume=True)
    for name, tensor in straight.head.state_dict().items():
        assert torch.equal(tensor, again.head.state_dict()[name])


def test_a_checkpoint_of_another_run_is_refused(amortizer, tasks, tmp_path) -> None:  # type: ignore[no-untyped-def]
    run(amortizer, tasks, tmp_path / "run")
    with pytest.raises(StateError, match="another configuration"):
        run(amortizer, tasks, tmp_path / "run", resume=True, seed=5)
    (tmp_path / "run" / CHECKPOINT_FILE).write_bytes(b"no checkpoint")
    with pytest.raises(StateError, match="no readable checkpoint"):
        run(amortizer, tasks, tmp_path / "run", resume=True)


def test_nan_in_a_feature_is_named_and_the_checkpoint_stands(amortizer, tasks, tmp_path) -> None:  # type: ignore[no-untyped-def]
    run(amortizer, tasks, tmp_path / "run")
    before = (tmp_path / "run" / CHECKPOINT_FILE).read_bytes()
    tasks[0].features[:] = float("nan")
    with pytest.raises(ConfigError, match="task 'a'"):
        run(amortizer, tasks, tmp_path / "run", learning_rate=0.02)
    assert (tmp_path / "run" / CHECKPOINT_FILE).read_bytes() == before


def test_missing_tasks_are_named(amortizer, tasks, tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError, match="nowhere"):
        task_files(["{data}/nowhere"], tmp_path)
    with pytest.raises(DataError, match="no task is called c"):
        run(amortizer, tasks, tmp_path / "run", validation=["c"])
    with pytest.raises(DataError, match="left to train on"):
        run(amortizer, tasks, tmp_path / "run", validation=["a", "b"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"method": "iterative", "backbone": "b", "tasks": ["t"], "colour": 1}', "colour"),
        ('{"method": "iterative", "backbone": "b", "tasks": []}', "tasks is empty"),
        ('{"method": "iterative", "backbone": "b", "tasks": ["t"], "unroll": 0}', "unroll is 0"),
        ('{"method": "iterative", "backbone": "b", "tasks": ["t"], "chunk_sizes": [8]}', "chunk_sizes"),
        ('{"method": "iterative", "backbone": "b", "tasks": ["t"], "subset": 2.0}', "subset is 2"),
        ('{"method": "iterative", "tasks": ["t"]}', "backbone"),
        ("[1]", "list"),
        ("{", "can't read"),
    ],
)
def test_a_bad_configuration_is_named(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=words):
        read_training_config(tmp_path / "config.json")


def adapt_features(encoder: Backbone, folder: Path, output: Path, **changes: object):  # type: ignore[no-untyped-def]
    """A run that learns an adapter of the encoder."""
    output.mkdir(exist_ok=True)
    resume = bool(changes.pop("resume", False))
    shorter = {"learns": "adapter", "adapter_rank": 2, "averaging": 0.5, "learning_rate": 0.02, **changes}
    config = dataclasses.replace(CONFIG, **shorter)  # type: ignore[arg-type]
    amortizer = AutoAmortizer.from_pretrained("iterative", backbone=encoder)
    assert isinstance(amortizer, FrozenFeatures)
    curriculum = AdapterCurriculum(amortizer, load_text_tasks(task_files(["{data}/*"], folder), 1000), config)
    progress = train(amortizer, curriculum, config, Accelerator(cpu=True), output, resume=resume, progress_bar=False)
    return progress, curriculum


def test_an_adapter_learns_features_that_tasks_share(
    encoder: Backbone, tasks: list[FeatureTask], tmp_path: Path
) -> None:
    before = encoder.features(["ball team"]).vectors
    progress, curriculum = adapt_features(encoder, tmp_path, tmp_path / "run", train_steps=12, evaluate_every=6)
    assert progress.best_step > 0
    assert progress.best < 0.97 * progress.history[0]["loss"]
    assert torch.equal(encoder.features(["ball team"]).vectors, before)
    curriculum.adapter().save(tmp_path / "adapter", encoder.name)
    learned = AutoAmortizer.from_pretrained(
        "iterative", backbone=encoder, config={"adapter": str(tmp_path / "adapter")}
    )
    assert not torch.equal(learned.backbone.features(["ball team"]).vectors, before)


def test_an_adapter_s_run_resumes_exactly(encoder: Backbone, tasks: list[FeatureTask], tmp_path: Path) -> None:
    _, whole_run = adapt_features(encoder, tmp_path, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        adapt_features_until(encoder, tmp_path, tmp_path / "cut", 3)
    _, resumed = adapt_features(encoder, tmp_path, tmp_path / "cut", resume=True)
    for name, tensor in whole_run.learned.state_dict().items():
        assert torch.equal(tensor, resumed.learned.state_dict()[name]), name


def adapt_features_until(encoder: Backbone, folder: Path, output: Path, step: int) -> None:
    """As `adapt_features`, killed in that step."""
    drawn = AdapterCurriculum.draw

    def killed(self: AdapterCurriculum, number: int, device: torch.device):  # type: ignore[no-untyped-def]
        if number // CONFIG.episodes_per_step == step - 1:
            raise KeyboardInterrupt
        return drawn(self, number, device)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AdapterCurriculum, "draw", killed)
        adapt_features(encoder, folder, output)
