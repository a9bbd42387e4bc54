"""Learners: directions are bounded, step sizes are each group's own, and a stored state goes on as one that was not."""

from __future__ import annotations

import pytest
import torch

from iai_hf.language_model.learners import RULES, Learner

CPU = torch.device("cpu")


def learner(rule: str, decay: float = 0.0) -> Learner:
    generator = torch.Generator().manual_seed(0)
    return Learner({"w": torch.randn(3, 8, 4, generator=generator)}, {}, 0.01, decay, rule)


def gradients(step: int, scale: float = 1.0) -> dict[str, torch.Tensor]:
    return {"w": scale * torch.randn(3, 8, 4, generator=torch.Generator().manual_seed(step))}


@pytest.mark.parametrize("rule", RULES)
def test_a_step_does_not_depend_on_the_size_of_the_loss(rule: str) -> None:
    small, large = (learner(rule) for _ in range(2))
    first, second = small.initial(), large.initial()
    for step in range(5):
        first = small.refined(first, gradients(step, 1e-3))
        second = large.refined(second, gradients(step, 1e3))
    torch.testing.assert_close(first["own.w"], second["own.w"], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_steps_are_bounded_and_shrink_with_the_decay(rule: str) -> None:
    found = learner(rule, decay=-1.0)
    tensors, moved = found.initial(), []
    for step in range(50):
        refined = found.refined(tensors, gradients(step))
        moved.append(float((refined["own.w"] - tensors["own.w"]).square().mean().sqrt()))
        tensors = refined
    assert max(moved) <= 0.02
    assert moved[-1] < 0.1 * moved[0]


@pytest.mark.parametrize("rule", RULES)
def test_each_group_has_its_own_step_size(rule: str) -> None:
    found = learner(rule)
    found.rates["w"].data[1] = -100.0
    moved = found.refined(found.initial(), gradients(0))["own.w"] - found.start["w"].detach()
    assert moved[1].abs().max() == 0
    assert moved[0].abs().max() > 0


@pytest.mark.parametrize("rule", RULES)
def test_a_stored_state_goes_on_almost_as_one_that_was_not(rule: str) -> None:
    found = learner(rule)
    straight = kept = found.initial()
    for step in range(20):
        straight = found.refined(straight, gradients(step))
        kept = found.loaded(found.stored(found.refined(kept, gradients(step))), CPU)
    way = (straight["own.w"] - found.start["w"].detach()).square().mean().sqrt()
    assert float((straight["own.w"] - kept["own.w"]).square().mean().sqrt()) < 0.05 * float(way)


def test_the_rule_for_small_states_takes_three_bytes_a_weight() -> None:
    found = learner("per_group")
    size = sum(tensor.nbytes for name, tensor in found.stored(found.initial()).items() if name != "steps")
    assert size <= 3 * 3 * 8 * 4 + 3 * 4
