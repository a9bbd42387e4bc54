"""The families of tasks of the reproduction: the exact answers are exact, generation generates, pools keep apart."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from iai_hf import AutoAmortizer
from iai_hf.tables.numeric import Numeric
from iai_hf.tables.solvers.predictor import Predictor
from paper.flows import Flow, Mixture, energy_distance, generate, ink
from paper.tasks import SYNTHETIC, family


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
    fitted = amortizer.solver.rollout(drawn.chunks(20), drawn.queries.x)[-1]
    if drawn.exact is not None:
        exact = drawn.exact(drawn.stream, drawn.queries.x)
        losses = [float(predictor.loss(found, drawn.queries.y).mean()) for found in (exact, fitted)]
        assert losses[0] < losses[1] + 1e-3
    assert (drawn.exact is None) == (name == "topological order")
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


def least_variance_first(x: torch.Tensor) -> torch.Tensor:
    """Places `[tasks, nodes, 1]` from samples `[tasks, n, nodes]` (Chen, Drton and Wang 2019)."""
    tasks, _, nodes = x.shape
    places = torch.zeros(tasks, nodes, 1)
    for task in range(tasks):
        covariance = torch.cov(x[task].T) + 1e-6 * torch.eye(nodes)
        chosen: list[int] = []
        for place in torch.linspace(-1, 1, nodes).tolist():
            left = [node for node in range(nodes) if node not in chosen]
            given = covariance
            if chosen:
                cross = covariance[:, chosen]
                given = covariance - cross @ torch.linalg.solve(covariance[chosen][:, chosen], cross.T)
            best = min(left, key=lambda node: float(given[node, node]))
            chosen.append(best)
            places[task, best] = place
    return places


def test_equal_noise_reveals_the_causal_order() -> None:
    # Where two nodes are unconnected either order is right; the shifted graphs have most edges.
    drawn = SYNTHETIC["topological order"].sample(torch.Generator().manual_seed(0), 20, 5000, 5, shifted=True)
    right = (least_variance_first(drawn.stream.x) == drawn.queries.y).float().mean()
    assert right > 0.8


def test_pools_keep_queries_out_of_streams(tmp_path: Path) -> None:
    drawn = family("digits", tmp_path).sample(torch.Generator().manual_seed(0), 4, 100, 50)
    assert drawn.queries.y.sum(1).gt(0).all()
    for task in range(4):
        for number in range(5):  # a class has one appearance in a task, in its stream and in its queries
            read, asked = (part.x[task, part.y[task, :, number] == 1] for part in (drawn.stream, drawn.queries))
            others = drawn.stream.x[task, drawn.stream.y[task, :, number] == 0]
            near, far = (torch.cdist(asked, part).min(1).values.mean() for part in (read, others))
            assert near < far
        assert torch.cdist(drawn.queries.x[task], drawn.stream.x[task]).min() > 0
