"""Training on a family of numeric tasks helps on tasks of it that were not seen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from iai_hf import AutoAmortizer
from iai_hf.tables.solvers.solver import Batch
from iai_hf.tables.training import TableCurriculum
from iai_hf.tables.training.families import Family, LinearRegression, TableEpisode
from iai_hf.training import train
from iai_hf.training.config import TrainingConfig


@dataclass(frozen=True)
class Leaning(LinearRegression):
    """Weights around one instead of zero, so that there is a start to learn."""

    def sample(
        self, generator: torch.Generator, tasks: int, examples: int, queries: int, shifted: bool = False
    ) -> TableEpisode:
        drawn = super().sample(generator, tasks, examples, queries, shifted)
        stream, asked = (Batch(part.x, part.y + part.x.sum(-1, keepdim=True)) for part in drawn[:2])
        return TableEpisode(stream, asked, None)


def trained(
    tmp_path: Path, method: str, tasks: Family, steps: int = 60, resume: bool = False, **settings: Any
) -> float:
    config = {"inputs": tasks.inputs, "outputs": tasks.outputs, "hidden": 16, "layers": 1, "standardise": False}
    amortizer = AutoAmortizer.from_pretrained(method, config={**config, **settings})
    run = TrainingConfig(
        method=method,
        backbone="numeric/llama",
        tasks=[tasks.name],
        train_steps=steps,
        episodes_per_step=1,
        tasks_per_episode=8,
        learning_rate=0.01,
        queries=16,
        chunk_sizes=[8, 8],
        most_steps=4,
        evaluate_every=max(steps // 2, 1),
    )
    curriculum = TableCurriculum(amortizer, tasks, run)  # type: ignore[arg-type]
    first = curriculum.evaluate().loss
    progress = train(amortizer, curriculum, run, Accelerator(), tmp_path, resume=resume, progress_bar=False)
    amortizer.save_pretrained(tmp_path / "saved")
    again = AutoAmortizer.from_pretrained(tmp_path / "saved")
    assert again.fingerprint == amortizer.fingerprint
    return first - progress.best


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("numeric-parametric", {"signal": "gradient"}),
        ("numeric-implicit", {"signal": "data"}),
        ("maml", {}),
        ("reptile", {}),
        ("learned-optimizer", {}),
        ("prior-fitted", {}),
    ],
)
def test_training_lowers_the_loss_on_tasks_that_it_has_not_seen(
    tmp_path: Path, method: str, settings: dict[str, Any]
) -> None:
    tasks = Leaning("leaning", False, 2, 1)
    assert trained(tmp_path, method, tasks, **settings) > 0.01


def test_the_prior_is_estimated_once_and_is_a_part_of_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that goes on does not estimate it again, over what was learned since."""
    calls = []
    begin = TableCurriculum.begin

    def counted(self: TableCurriculum) -> None:
        calls.append(self)
        begin(self)

    monkeypatch.setattr(TableCurriculum, "begin", counted)
    tasks = Leaning("leaning", False, 2, 1)
    trained(tmp_path, "numeric-parametric", tasks, steps=4)
    first = AutoAmortizer.from_pretrained(tmp_path / "saved").solver.prior  # type: ignore[attr-defined]
    assert len(calls) == 1
    assert first.mean[1:].min() > 0.5  # the weights lean towards one
    trained(tmp_path, "numeric-parametric", tasks, steps=4, resume=True)
    again = AutoAmortizer.from_pretrained(tmp_path / "saved").solver.prior  # type: ignore[attr-defined]
    assert len(calls) == 1
    assert torch.equal(again.mean, first.mean)
