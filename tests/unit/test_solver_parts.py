"""What solvers are made of: online Laplace, the gradient filter, the prior, and gated corrections."""

from __future__ import annotations

import pytest
import torch

from iai_hf.tables.solvers.correction import BOUND, GatedCorrection, averaged
from iai_hf.tables.solvers.kalman import GradientFilter
from iai_hf.tables.solvers.predictor import Predictor
from iai_hf.tables.solvers.prior import Prior, shrunk
from iai_hf.tables.solvers.solver import Batch

CLASSES = Predictor(True)


def labelled(examples: int, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, examples, 4, generator=generator)
    weight = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(99))
    uniform = torch.rand(2, examples, 3, generator=generator)
    best = (x @ weight - (-uniform.log()).log()).argmax(-1)
    return Batch(x, torch.nn.functional.one_hot(best, 3).float())


def most_probable(batch: Batch) -> torch.Tensor:
    """theta of logistic regression under a prior of precision one, by L-BFGS."""
    features = CLASSES.features(batch.x)
    theta = torch.zeros(2, 5, 3, requires_grad=True)
    optimizer = torch.optim.LBFGS([theta], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        fit = -((features @ theta).log_softmax(-1) * batch.y).sum() + 0.5 * theta.square().sum()
        fit.backward()
        return fit

    optimizer.step(loss)
    return theta.detach()


def absorbed(batch: Batch, size: int) -> torch.Tensor:
    theta, precision = torch.zeros(2, 5, 3), torch.eye(5).expand(2, -1, -1)
    for x, y in zip(batch.x.split(size, 1), batch.y.split(size, 1), strict=True):
        features = CLASSES.features(x)
        change, curvature = CLASSES.laplace_update(features, features @ theta, y, precision)
        theta, precision = theta + change, precision + curvature
    return theta


def loss_of(theta: torch.Tensor) -> torch.Tensor:
    asked = labelled(4000, seed=1)
    return CLASSES.loss(CLASSES.features(asked.x) @ theta, asked.y)


def test_a_chunk_of_classes_is_fitted_to_its_most_probable_theta() -> None:
    batch = labelled(64)
    torch.testing.assert_close(absorbed(batch, 64), most_probable(batch), atol=0.1, rtol=0.0)  # of about 1


@pytest.mark.parametrize("size", [1, 8, 100])
def test_chunk_by_chunk_classes_are_learned_nearly_as_well_as_from_all_at_once(size: int) -> None:
    batch = labelled(800)
    assert bool((loss_of(absorbed(batch, size)) < 1.03 * loss_of(most_probable(batch))).all())


def test_no_chunk_makes_the_fit_of_its_own_examples_worse() -> None:
    """However badly theta fits before, and however long the features are."""
    for scale in (0.1, 1.0, 30.0):
        batch = labelled(16)
        features = scale * CLASSES.features(batch.x)
        theta = 10 * torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
        before = CLASSES.loss(features @ theta, batch.y)
        change, curvature = CLASSES.laplace_update(features, features @ theta, batch.y, torch.eye(5).expand(2, -1, -1))
        assert bool((CLASSES.loss(features @ (theta + change), batch.y) <= before).all())
        assert torch.linalg.eigvalsh(curvature).min() > -1e-3 * scale**2


def test_a_gradient_step_is_no_longer_than_the_longest_that_was_expected() -> None:
    steps = GradientFilter(4)
    variance = torch.ones(3, 4)
    direction = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0))
    lengths = []
    for scale in (1.0, 100.0, 10_000.0):
        change, left = steps(variance, scale * direction, 16)
        lengths.append(change.detach().norm(dim=(1, 2)))
        assert bool(((left > 0) & (left < variance)).all())  # what is left of the doubt does not hang on the gradient
    torch.testing.assert_close(lengths[2], lengths[1])
    quiet, _ = steps(variance, 1e-3 * direction, 16)
    torch.testing.assert_close(quiet * 2, steps(variance, 2e-3 * direction, 16)[0])


def test_the_prior_is_the_mean_and_the_covariance_of_tasks() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, scale = torch.tensor([0.0, 3.0, 0.0])[:, None], torch.tensor([0.1, 1.0, 0.5])
    theta = mean + scale[:, None] * torch.randn(400, 3, 1, generator=generator)
    predictor, prior = Predictor(False), Prior(3, 1)
    x = torch.randn(400, 320, 2, generator=generator)
    y = predictor.features(x) @ theta + 0.2 * torch.randn(400, 320, 1, generator=generator)
    found = prior.estimate(predictor, Batch(x[:, :256], y[:, :256]), Batch(x[:, 256:], y[:, 256:]))
    assert found is not None
    assert found.noise == pytest.approx(0.04, rel=0.2)
    torch.testing.assert_close(prior.mean, mean, atol=0.2, rtol=0.0)
    torch.testing.assert_close(prior.root @ prior.root.mT, torch.diag(scale.square()), atol=0.15, rtol=0.0)
    # In the metric the curvatures of w are independent, and are those that were found.
    seen = prior.whiten(predictor.features(x[:, 256:])).detach().flatten(0, 1)
    torch.testing.assert_close(seen.mT @ seen / len(seen), torch.diag(found.curvatures), atol=1e-3, rtol=1e-3)


def test_a_covariance_of_few_tasks_is_drawn_to_the_identity_and_one_of_many_is_not() -> None:
    generator = torch.Generator().manual_seed(0)
    scale = torch.linspace(0.1, 2, 20)
    for true, samples, nearer in ((torch.ones(20), 40, 0.3), (scale, 40, 1.0), (scale, 10_000, 1.01)):
        drawn = true * torch.randn(samples, 20, generator=generator)
        found = drawn.mT @ drawn / samples
        errors = [(part - torch.diag(true.square())).norm() for part in (shrunk(found, samples), found)]
        assert errors[0] < nearer * errors[1]
        assert torch.linalg.eigvalsh(shrunk(found, samples)).min() > 0
    alone = shrunk(torch.ones(3, 3), 1)  # of one task: positive definite still
    assert torch.linalg.eigvalsh(alone).min() > 1e-4


def test_where_nothing_can_be_learned_the_prior_stays() -> None:
    batch = Batch(torch.randn(3, 8, 2), torch.randn(3, 8, 1))
    features = torch.randn(3, 8, 3)
    for prior, stream in ((Prior(), batch), (Prior(3, 1), Batch(batch.x, torch.zeros(3, 8, 1)))):
        assert prior.estimate(Predictor(False), stream, batch) is None
        assert torch.equal(prior.whiten(features), features)
        assert not prior.offset(features, 1).any()


def test_corrections_are_bounded_and_count_less_where_the_solver_is_sure() -> None:
    correction = GatedCorrection()
    proposed = 100 * torch.randn(2, 5, 3)
    sure, unsure = torch.full((2, 5), 0.01), torch.ones(2, 5)
    assert correction(proposed, unsure).abs().max() <= BOUND
    torch.testing.assert_close(correction(proposed, sure), correction(proposed, unsure))
    correction.gate()
    torch.testing.assert_close(correction(proposed, sure), 0.1 * correction(proposed, unsure))


def test_summaries_are_averaged_whatever_their_order() -> None:
    parts = torch.randn(6, 2, 5, 8)
    mean = torch.zeros(2, 5, 8)
    for count, part in enumerate(parts):
        mean = averaged(mean, part, torch.full((2,), float(count)))
    torch.testing.assert_close(mean, parts.mean(0))
