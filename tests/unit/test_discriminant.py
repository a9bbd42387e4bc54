"""The solver inside the iterative head: closed form, additivity, and no collapse on any stream."""

from __future__ import annotations

import numpy
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression

from iai_hf.amortizers.discriminant import Prior, Statistics, absorb, discriminants, head, pack, unpack

SIZE, CLASSES = 12, 6


def blobs(count: int, seed: int = 0, classes: int = CLASSES, spread: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Gaussian classes around fixed centres."""
    centres = torch.randn(classes, SIZE, generator=torch.Generator().manual_seed(42))
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(classes, (count,), generator=generator)
    return centres[targets] + spread * torch.randn(count, SIZE, generator=generator), targets


def stream(x: torch.Tensor, y: torch.Tensor, chunk: int, prior: Prior, names: torch.Tensor | None = None) -> Statistics:
    statistics = Statistics.empty(x.shape[1], prior).with_names(torch.zeros(CLASSES, SIZE) if names is None else names)
    for first in range(0, len(x), chunk):
        statistics = absorb(statistics, x[first : first + chunk], y[first : first + chunk], prior)
    return statistics


def accuracy(statistics: Statistics, prior: Prior, x: torch.Tensor, y: torch.Tensor) -> float:
    return float((head(statistics, prior).scores(x).argmax(1) == y).float().mean())


def test_packing_keeps_a_symmetric_matrix() -> None:
    matrix = torch.randn(5, 5)
    matrix = matrix + matrix.T
    assert torch.equal(unpack(pack(matrix), 5), matrix)


def test_the_closed_form_is_linear_discriminant_analysis() -> None:
    x, y = blobs(600)
    prior = Prior(mean_strength=1e-3, covariance_strengths=(1e-3,))
    found = discriminants(stream(x, y, 50, prior), prior)[0].scores(x).softmax(1)
    reference = LinearDiscriminantAnalysis(solver="lsqr").fit(x.numpy(), y.numpy()).predict_proba(x.numpy())
    numpy.testing.assert_allclose(found.numpy(), reference, atol=0.03)


def test_the_moments_are_additive_and_free_of_order_and_chunking() -> None:
    x, y = blobs(200)
    prior = Prior()
    whole = stream(x, y, 200, prior)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    parts = stream(x[:80], y[:80], 7, prior), stream(x[80:], y[80:], 30, prior)
    for name in ("counts", "sums", "gram"):
        expected = getattr(whole, name)
        torch.testing.assert_close(getattr(stream(x[order], y[order], 13, prior), name), expected, atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(sum(getattr(part, name) for part in parts), expected, atol=1e-3, rtol=1e-4)


def test_without_an_example_it_is_the_label_names() -> None:
    names = torch.eye(CLASSES, SIZE)
    statistics = Statistics.empty(SIZE, Prior()).with_names(names)
    assert torch.equal(head(statistics, Prior()).scores(names).argmax(1), torch.arange(CLASSES))


@pytest.mark.parametrize("spread", [0.5, 1.5, 3.0])
def test_it_is_as_good_as_logistic_regression(spread: float) -> None:
    x, y = blobs(2000, spread=spread)
    xt, yt = blobs(2000, seed=1, spread=spread)
    reference = LogisticRegression(max_iter=2000).fit(x.numpy(), y.numpy()).score(xt.numpy(), yt.numpy())
    assert accuracy(stream(x, y, 64, Prior()), Prior(), xt, yt) > reference - 0.02


@pytest.mark.parametrize("order", ["sorted", "one label a chunk", "repeated", "eight times as long"])
def test_no_stream_makes_it_collapse(order: str) -> None:
    x, y = blobs(960)
    xt, yt = blobs(1000, seed=1)
    good = accuracy(stream(x, y, 32, Prior()), Prior(), xt, yt)
    if order == "sorted":
        positions = y.argsort(stable=True)
    elif order == "one label a chunk":
        groups = [(y == label).nonzero()[:, 0][:128].split(32) for label in range(CLASSES)]
        positions = torch.cat([chunk for turn in zip(*groups, strict=False) for chunk in turn if len(chunk) == 32])
    elif order == "repeated":
        positions = torch.cat([torch.arange(960), torch.zeros(320, dtype=torch.long)])
    else:
        positions = torch.arange(960).repeat(8)
    assert accuracy(stream(x[positions], y[positions], 32, Prior()), Prior(), xt, yt) > good - 0.03


def test_probabilities_are_honest() -> None:
    x, y = blobs(4000, spread=2.0)
    xt, yt = blobs(4000, seed=1, spread=2.0)
    log_probs = head(stream(x, y, 64, Prior()), Prior()).scores(xt).log_softmax(1)
    reference = LogisticRegression(max_iter=2000).fit(x.numpy(), y.numpy()).predict_log_proba(xt.numpy())
    ours = -log_probs[torch.arange(len(yt)), yt].mean()
    theirs = -torch.from_numpy(reference)[torch.arange(len(yt)), yt].mean()
    assert ours < theirs + 0.02
