"""Families of numeric tasks and training on them: the exact answers are exact, and training helps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from paper_tasks import SYNTHETIC, family

from iai_hf import AutoAmortizer
from iai_hf.amortizers.numeric import Numeric
from iai_hf.solvers.predictor import Predictor
from iai_hf.solvers.solver import Batch
from iai_hf.training import train
from iai_hf.training.config import TrainingConfig
from iai_hf.training.numbers import NumbersCurriculum
from iai_hf.training.numbers.families import Episode, Family, LinearRegression
from iai_hf.training.numbers.flows import Flow, Mixture, energy_distance, generate, ink
from iai_hf.training.numbers.graphs import least_variance_first


@pytest.mark.parametrize("name", SYNTHETIC)
@pytest.mark.parametrize("shifted", [False, True])
def test_the_exact_answer_beats_a_fit_on_the_same_data(name: str, shifted: bool) -> None:
    tasks = SYNTHETIC[name]
    drawn = tasks.sample(torch.Generator().manual_seed(0), 16, 200, 200, shifted)
    predictor = Predictor(tasks.classification, tasks.width)
    amortizer = AutoAmortizer.from_pretrained(
        "numeric-parametric",
        config={"kind": "classification" if tasks.classification else "regression", "width": tasks.width},
    )
    assert isinstance(amortizer, Numeric)
    assert drawn.exact is not None
    fitted = amortizer.solver.rollout(drawn.chunks(20), drawn.queries.x)[-1]
    exact = drawn.exact(drawn.stream, drawn.queries.x)
    losses = [float(predictor.loss(found, drawn.queries.y).mean()) for found in (exact, fitted)]
    assert losses[0] < losses[1] + 1e-3
    again = tasks.sample(torch.Generator().manual_seed(0), 16, 200, 200, shifted)
    assert torch.equal(again.stream.x, drawn.stream.x)


def test_the_true_velocity_is_the_mean_of_sampled_ones() -> None:
    mixture = Mixture(torch.tensor([[[-1.0, 0.0], [1.0, 0.5]]]), 0.2)
    generator = torch.Generator().manual_seed(0)
    data = mixture.draw(generator, 200_000)
    noise = torch.randn(data.shape, generator=generator)
    t = 0.6
    points = (1 - t) * noise + t * data
    near = ((points - torch.tensor([0.3, 0.2])).norm(dim=-1) < 0.05)[0]
    sampled = (data - noise)[0, near].mean(0)
    true = mixture.velocity(torch.tensor([[[0.3, 0.2, t]]]))[0, 0]
    torch.testing.assert_close(true, sampled, atol=0.08, rtol=0)


def test_the_true_velocity_generates_the_true_distribution() -> None:
    for name in ("Gaussian mixtures", "alphabet"):
        tasks = SYNTHETIC[name]
        assert isinstance(tasks, Flow)
        generator = torch.Generator().manual_seed(0)
        mixture = tasks.mixture(generator, 4, shifted=False)
        noise = torch.randn(4, 400, 2, generator=generator)
        made = generate(mixture.velocity, noise, steps=20)
        true, other = mixture.draw(generator, 400), mixture.draw(generator, 400)
        assert float(energy_distance(made, true).mean()) < float(energy_distance(other, true).mean()) + 0.02
        assert float(energy_distance(noise, true).mean()) > 0.05


def test_letters_differ_and_have_ink() -> None:
    assert 30 < len(ink("A", "DejaVuSans")) < 400
    assert not torch.equal(ink("A", "DejaVuSans"), ink("A", "DejaVuSerif"))


def test_equal_noise_reveals_the_causal_order() -> None:
    # Where two nodes are unconnected either order is right; the shifted graphs have most edges.
    drawn = SYNTHETIC["topological order"].sample(torch.Generator().manual_seed(0), 20, 5000, 5, shifted=True)
    right = (least_variance_first(drawn.stream.x) == drawn.queries.y).float().mean()
    assert right > 0.8


def test_pools_keep_queries_out_of_streams(tmp_path: Path) -> None:
    drawn = family("digits", tmp_path).sample(torch.Generator().manual_seed(0), 4, 100, 50)
    assert drawn.queries.y.sum(1).gt(0).all()
    for task in range(4):
        assert torch.cdist(drawn.queries.x[task], drawn.stream.x[task]).min() > 0


@dataclass(frozen=True)
class Leaning(LinearRegression):
    """Weights around one instead of zero, so that there is a start to learn."""

    def sample(
        self, generator: torch.Generator, tasks: int, examples: int, queries: int, shifted: bool = False
    ) -> Episode:
        drawn = super().sample(generator, tasks, examples, queries, shifted)
        stream, asked = (Batch(part.x, part.y + part.x.sum(-1, keepdim=True)) for part in drawn[:2])
        return Episode(stream, asked, None)


def trained(tmp_path: Path, method: str, tasks: Family, steps: int = 60, resume: bool = False, **settings) -> float:
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
    curriculum = NumbersCurriculum(amortizer, tasks, run)  # type: ignore[arg-type]
    first = curriculum.evaluate().loss
    progress = train(amortizer, curriculum, run, Accelerator(), tmp_path, resume=resume, progress_bar=False)  # type: ignore[arg-type]
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
def test_training_lowers_the_loss_on_tasks_that_it_has_not_seen(tmp_path: Path, method: str, settings: dict) -> None:
    tasks = Leaning("leaning", False, 2, 1)
    assert trained(tmp_path, method, tasks, **settings) > 0.01


def test_the_prior_is_estimated_once_and_is_a_part_of_the_checkpoint(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """A run that goes on does not estimate it again, over what was learned since."""
    calls = []
    begin = NumbersCurriculum.begin
    monkeypatch.setattr(NumbersCurriculum, "begin", lambda self: (calls.append(self), begin(self)))
    tasks = Leaning("leaning", False, 2, 1)
    trained(tmp_path, "numeric-parametric", tasks, steps=4)
    first = AutoAmortizer.from_pretrained(tmp_path / "saved").solver.prior  # type: ignore[attr-defined]
    assert len(calls) == 1
    assert first.mean[1:].min() > 0.5  # the weights lean towards one
    trained(tmp_path, "numeric-parametric", tasks, steps=4, resume=True)
    again = AutoAmortizer.from_pretrained(tmp_path / "saved").solver.prior  # type: ignore[attr-defined]
    assert len(calls) == 1
    assert torch.equal(again.mean, first.mean)
