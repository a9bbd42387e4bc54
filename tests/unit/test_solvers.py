"""Solvers of numeric amortizers: what they equal at their start, and what no stream does to them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import get_args

import pytest
import torch

from iai_hf.backbones.numeric import NumericBackbone
from iai_hf.errors import BackboneError
from iai_hf.hyperparameters import SPEED
from iai_hf.signals import Signal
from iai_hf.tables.solvers.implicit import Implicit
from iai_hf.tables.solvers.network import NetworkSizes
from iai_hf.tables.solvers.one_shot import OneShot
from iai_hf.tables.solvers.optimizers import GradientOptimizer, Reptile
from iai_hf.tables.solvers.parametric import Parametric
from iai_hf.tables.solvers.predictor import Predictor
from iai_hf.tables.solvers.retained import merged
from iai_hf.tables.solvers.solver import Batch, Solver
from iai_hf.tables.solvers.tokens import ThetaTokens

SIGNALS: tuple[Signal, ...] = get_args(Signal)
LLAMA = NumericBackbone("numeric/llama", torch.device("cpu"))


def sizes(backbone: NumericBackbone = LLAMA) -> NetworkSizes:
    return NetworkSizes(backbone, inputs=4, outputs=2, hidden=16, layers=1, horizon=5)


def regression(examples: int, seed: int = 0, tasks: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(tasks, 4, 2, generator=torch.Generator().manual_seed(99))
    x = torch.randn(tasks, examples, 4, generator=generator)
    return Batch(x, x @ weight + 0.3 * torch.randn(tasks, examples, 2, generator=generator))


def chunks(batch: Batch, size: int) -> list[Batch]:
    return list(map(Batch, batch.x.split(size, 1), batch.y.split(size, 1)))


def outputs(solver: Solver, parts: list[Batch], x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return solver.rollout(parts, x)[-1]


def ridge(batch: Batch, x: torch.Tensor) -> torch.Tensor:
    features, asked = (torch.cat([torch.ones_like(part[..., :1]), part], -1).double() for part in (batch.x, x))
    gram = features.mT @ features + torch.eye(5, dtype=torch.float64)
    return (asked @ torch.linalg.solve(gram, features.mT @ batch.y.double())).float()


@pytest.mark.parametrize("signal", ["data", "both"])
@pytest.mark.parametrize("size", [1, 7, 64])
def test_for_the_squared_error_any_chunking_gives_the_ridge_solution(signal: str, size: int) -> None:
    batch, asked = regression(64), regression(9, seed=1).x
    solver = Parametric(Predictor(False), signal)  # type: ignore[arg-type]
    torch.testing.assert_close(outputs(solver, chunks(batch, size), asked), ridge(batch, asked), atol=2e-4, rtol=2e-4)


def test_one_implicit_step_is_ridge_regression_in_both_of_its_forms() -> None:
    asked = regression(9, seed=1).x
    for examples in (3, 64):  # fewer examples than features, and more
        batch = regression(examples)
        for signal in SIGNALS:
            found = outputs(Implicit(Predictor(False), signal), [batch], asked)
            torch.testing.assert_close(found, ridge(batch, asked), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [1, 8, 64])
@pytest.mark.parametrize("alike", [False, True])
def test_gradient_steps_do_not_run_away_even_where_features_are_all_alike(size: int, alike: bool) -> None:
    batch, asked = regression(640), regression(200, seed=1)
    if alike:
        one = batch.x[..., :1].abs().expand_as(batch.x)
        batch, asked = Batch(one, one @ torch.ones(4, 2)), Batch(one[:, :200], one[:, :200] @ torch.ones(4, 2))
    solver = Parametric(Predictor(False), "gradient")
    losses = [solver.predictor.loss(found, asked.y) for found in solver.rollout(chunks(batch, size), asked.x)]
    at_rest = 0.5 * asked.y.square().mean((1, 2))
    assert bool((torch.stack(losses) <= 2 * at_rest).all())
    assert bool((losses[-1] < 0.5 * at_rest).all())


def test_on_independent_features_gradient_steps_come_near_the_ridge_solution() -> None:
    batch, asked = regression(640), regression(200, seed=1)
    solver = Parametric(Predictor(False), "gradient")
    solver.filter.feature_correlation.set(0.0)
    loss = solver.predictor.loss(outputs(solver, chunks(batch, 16), asked.x), asked.y)
    assert bool((loss < 1.05 * solver.predictor.loss(ridge(batch, asked.x), asked.y)).all())


@pytest.mark.parametrize("signal", SIGNALS)
def test_an_untrained_network_changes_nothing(signal: str) -> None:
    batch, asked = regression(40), regression(9, seed=1).x
    parts = chunks(batch, 8)
    for make in (Parametric, Implicit):
        bare = make(Predictor(False), signal)  # type: ignore[arg-type]
        whole = make(Predictor(False), signal, sizes())  # type: ignore[arg-type]
        torch.testing.assert_close(outputs(whole, parts, asked), outputs(bare, parts, asked), atol=1e-5, rtol=1e-5)
    explicit = Parametric(Predictor(False, learned_inputs=4), signal, sizes())  # type: ignore[arg-type]
    fixed = Parametric(Predictor(False), signal)  # type: ignore[arg-type]
    torch.testing.assert_close(outputs(explicit, parts, asked), outputs(fixed, parts, asked), atol=1e-5, rtol=1e-5)


def network(kind: type[Parametric] | type[Implicit], signal: Signal, free: bool) -> Solver:
    return kind(Predictor(False), signal, sizes(), free=free)


def networks() -> dict[str, Callable[[], Solver]]:
    made: dict[str, Callable[[], Solver]] = {}
    for signal in SIGNALS:
        for free in (False, True):
            word = f"{signal}{'/free' if free else ''}"
            made[f"parametric/{word}"] = partial(network, Parametric, signal, free)
            made[f"implicit/{word}"] = partial(network, Implicit, signal, free)
    made["hypernetwork"] = lambda: OneShot(Parametric(Predictor(False), "data", sizes(), free=True))
    made["prior-fitted"] = lambda: OneShot(Implicit(Predictor(False), "data", sizes(), free=True))
    made["window"] = lambda: Parametric(Predictor(False), "both", sizes(), free=True, window=3)
    made["latents"] = lambda: Implicit(Predictor(False), "data", sizes(), free=True, carried="latents")
    made["adam"] = lambda: GradientOptimizer(Predictor(False), "adam", 0.05)
    made["learned optimizer"] = lambda: GradientOptimizer(Predictor(False), "learned", 0.05)
    return made


def shaken(make: Callable[[], Solver]) -> Solver:
    """With weights as after some training, so that the network has a say."""
    torch.manual_seed(0)
    solver = make()
    with torch.no_grad():
        for name, parameter in solver.named_parameters():
            if not name.endswith("slow"):
                parameter.add_(0.1 * torch.randn(parameter.shape))
            elif name == "correction.exponent.slow":
                parameter.add_(0.1 / SPEED * torch.randn(parameter.shape))
    return solver


@pytest.mark.parametrize("name", networks())
def test_the_order_within_a_chunk_and_the_other_queries_do_not_matter(name: str) -> None:
    solver = shaken(networks()[name])
    batch, asked = regression(24), regression(9, seed=1).x
    parts = chunks(batch, 8)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(3))
    mixed = [Batch(part.x[:, order], part.y[:, order]) for part in parts]
    found = outputs(solver, parts, asked)
    assert found.abs().max() > 0
    torch.testing.assert_close(outputs(solver, mixed, asked), found, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(outputs(solver, parts, asked[:, :2]), found[:, :2], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", networks())
def test_step_by_step_equals_what_training_sees_and_tasks_do_not_mix(name: str) -> None:
    solver = shaken(networks()[name])
    parts, asked = chunks(regression(24), 8), regression(9, seed=1).x
    with torch.no_grad():
        tensors = solver.initial(3, 4, 2)
        for part, expected in zip(parts, solver.outputs(parts, asked), strict=True):
            tensors = solver.refine(tensors, part)
            torch.testing.assert_close(solver.answer(tensors, asked), expected, atol=1e-4, rtol=1e-4)
    alone = outputs(solver, [Batch(part.x[1:2], part.y[1:2]) for part in parts], asked[1:2])
    torch.testing.assert_close(alone, outputs(solver, parts, asked)[1:2], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("signal", SIGNALS)
def test_a_bad_network_can_not_make_a_long_stream_collapse(signal: str) -> None:
    solver = shaken(lambda: Parametric(Predictor(False), signal, sizes()))  # type: ignore[arg-type]
    queries = regression(200, seed=1)
    stream = chunks(regression(4000), 8)
    with torch.no_grad():
        found = solver.rollout(stream, queries.x)
    late, middle = (float((found[i] - queries.y).square().mean()) for i in (-1, 20))
    assert late < middle + 0.05
    assert late < float(queries.y.square().mean())


@pytest.mark.parametrize("signal", SIGNALS)
def test_forgetting_follows_a_stream_whose_task_changes(signal: str) -> None:
    old, new = regression(400), regression(160, seed=1)
    changed = Batch(new.x, -new.y)
    parts = chunks(Batch(torch.cat([old.x, changed.x], 1), torch.cat([old.y, changed.y], 1)), 16)
    error = {}
    for half_life in (None, 32):
        solver = Parametric(Predictor(False), signal, half_life=half_life)  # type: ignore[arg-type]
        error[half_life] = float((outputs(solver, parts, new.x) - changed.y).square().mean())
    assert error[32] < 0.05 * error[None]


def test_what_is_retained_has_a_budget() -> None:
    solver = Implicit(Predictor(False), "data", budget=20)
    tensors = solver.initial(3, 4, 2)
    stream = chunks(regression(64), 8)
    for part in stream:
        tensors = solver.refine(tensors, part)
    assert tensors["sizes"][0].tolist() == [8, 8]  # the newest whole chunks that fit
    assert torch.equal(tensors["x"], torch.cat([part.x for part in stream[-2:]], 1))
    tensors = solver.refine(tensors, regression(50))  # a chunk larger than the budget: a part of it
    assert tensors["x"].shape[1] == 20


def test_however_long_the_stream_answers_are_refined_in_few_batches() -> None:
    solver = shaken(lambda: Implicit(Predictor(False), "both", sizes(), batches=3))
    stream, asked = chunks(regression(56), 8), regression(9, seed=1).x
    batches = merged(stream, 3)
    assert [batch.x.shape[1] for batch in batches] == [16, 24, 16]
    assert torch.equal(torch.cat([batch.y for batch in batches], 1), regression(56).y)
    with torch.no_grad():
        torch.testing.assert_close(outputs(solver, stream, asked), solver.outputs(batches, asked)[-1])
        torch.testing.assert_close(outputs(solver, stream[:2], asked), solver.outputs(stream[:2], asked)[-1])
    lengths = {len(solver.training_chunks(stream, torch.Generator().manual_seed(seed))) for seed in range(30)}
    assert lengths == {1, 2, 3}


@pytest.mark.parametrize(("features", "count"), [(10, 1), (11, 1), (785, 10), (1000, 100)])
def test_theta_of_10_to_100000_parameters_becomes_tokens_and_back(features: int, count: int) -> None:
    tokens = ThetaTokens(features, count)
    theta = torch.randn(2, features, count)
    cut = tokens.split(theta)
    assert cut.shape == (2, tokens.count, tokens.size)
    assert tokens.count <= 32
    assert torch.equal(tokens.join(cut), theta)


def test_a_theta_of_100000_parameters_is_refined() -> None:
    large = NetworkSizes(LLAMA, inputs=20, outputs=100, hidden=16, layers=1, horizon=5)
    solver = shaken(lambda: Parametric(Predictor(True, width=999), "gradient", large))
    y = torch.nn.functional.one_hot(torch.arange(8) % 100, 100).float()[None]
    with torch.no_grad():
        tensors = solver.refine(solver.initial(1, 20, 100), Batch(torch.randn(1, 8, 20), y))
    assert tensors["theta"].numel() == 100_000
    assert tensors["theta"].isfinite().all()
    assert tensors["theta"].abs().max() > 0


def test_reptile_pulls_its_start_towards_the_solutions() -> None:
    solver = Reptile(Predictor(False), "sgd", 1.0, 3, (5, 2))
    parts = chunks(regression(64), 8)
    solver.pull(parts).backward()
    assert solver.start is not None
    assert solver.start.grad is not None
    tensors = solver.initial(3, 4, 2)
    for part in parts:
        tensors = solver.refine(tensors, part)
    torch.testing.assert_close(solver.start.grad, solver.start - tensors["theta"].mean(0))


@pytest.mark.parametrize("kind", ["plain", "llama", "bert", "modernbert"])
def test_any_architecture_is_a_function_of_a_set(kind: str) -> None:
    torch.manual_seed(0)
    model = NumericBackbone(f"numeric/{kind}", torch.device("cpu")).build(16, 2)
    tokens = torch.randn(2, 6, 16)
    with torch.no_grad():
        found = model(tokens, 4)
        mixed = model(tokens[:, [2, 0, 3, 1, 4, 5]], 4)
        other = tokens.clone()
        other[:, 5] = torch.randn(2, 16)
        changed = model(other, 4)
        other = tokens.clone()
        other[:, 0] = torch.randn(2, 16)
        moved = model(other, 4)
    torch.testing.assert_close(mixed[:, 4:], found[:, 4:], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(changed[:, :5], found[:, :5], atol=1e-5, rtol=1e-4)
    assert (moved[:, 5] - found[:, 5]).abs().max() > 1e-4


def test_an_unknown_architecture_is_named() -> None:
    with pytest.raises(BackboneError, match="numeric/nothing"):
        NumericBackbone("numeric/nothing", torch.device("cpu"))
    with pytest.raises(BackboneError, match="reads numbers"):
        LLAMA.features(["a text"])
