"""Share estimate and nnPU loss: hand-computed values, and mixtures of known share."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from usb_rsmatch.detection.positive_unlabeled import best_bin_estimate, nnpu_loss


def test_best_bin_by_hand() -> None:
    """Up to 0.3 stand three quarters of the real and a quarter of the pool: a third of it is real."""
    real = torch.tensor([0.1, 0.2, 0.3, 0.4])
    pool = torch.tensor([0.05, 0.2, 0.35, 0.36, 0.37, 0.9, 0.9, 0.9])
    margin = math.sqrt(math.log(40) / 8) + math.sqrt(math.log(40) / 16)
    bounds = [((i + 1) / 4, q / 8) for i, q in enumerate([1, 2, 2, 5])]
    q_real, q_pool = min(bounds, key=lambda q: (q[1] + 1.01 * margin) / q[0])
    assert (q_real, q_pool) == (1.0, 5 / 8)  # so few images that the margin wants them all
    assert best_bin_estimate(real, pool) == pytest.approx(1 - 5 / 8)
    real, pool = real.repeat(2000), pool.repeat(2000)
    assert best_bin_estimate(real, pool) == pytest.approx(1 - (2 / 8) / (3 / 4))


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.8])
def test_share_of_a_mixture_is_recovered(share: float) -> None:
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(2000, generator=generator)
    pool = torch.randn(20000, generator=generator)
    pool[: int(share * 20000)] += 3.0
    estimate = best_bin_estimate(real, pool)
    assert estimate == pytest.approx(share, abs=0.05)
    of_probabilities = best_bin_estimate(torch.sigmoid(real.double()), torch.sigmoid(pool.double()))
    assert of_probabilities == pytest.approx(estimate)  # ranks alone count


@settings(max_examples=60, deadline=None)
@given(
    real=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=30),
    pool=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=30),
)
def test_estimate_is_a_share(real: list[float], pool: list[float]) -> None:
    assert 0.0 <= best_bin_estimate(torch.tensor(real), torch.tensor(pool)) <= 1.0


def test_no_scores_is_an_error() -> None:
    with pytest.raises(ValueError, match="needs scores"):
        best_bin_estimate(torch.empty(0), torch.rand(3))


def softplus(z: float) -> float:
    return math.log1p(math.exp(z))


def test_nnpu_by_hand() -> None:
    real, pool = torch.tensor([-1.0, 0.5]), torch.tensor([2.0, -0.3, 1.0])
    as_real = (softplus(-1.0) + softplus(0.5)) / 2
    pool_as_synthetic = (softplus(-2.0) + softplus(0.3) + softplus(-1.0)) / 3
    real_as_synthetic = (softplus(1.0) + softplus(-0.5)) / 2
    expected = 0.3 * as_real + pool_as_synthetic - 0.3 * real_as_synthetic
    assert pool_as_synthetic > 0.3 * real_as_synthetic
    assert nnpu_loss(real, pool, 0.3).item() == pytest.approx(expected, rel=1e-6)


def test_nnpu_overfitted_holds_the_value_and_turns_the_gradient() -> None:
    real = torch.tensor([-4.0, -5.0], requires_grad=True)
    pool = torch.tensor([6.0, 5.0], requires_grad=True)
    as_real = (softplus(-4.0) + softplus(-5.0)) / 2
    loss = nnpu_loss(real, pool, 0.5)
    assert loss.item() == pytest.approx(0.5 * as_real, rel=1e-4)
    got = torch.autograd.grad(loss, (real, pool))
    second_part = F.softplus(-pool).mean() - 0.5 * F.softplus(-real).mean()
    assert second_part < 0
    for mine, other in zip(got, torch.autograd.grad(second_part, (real, pool)), strict=True):
        torch.testing.assert_close(mine, -other)


def test_nnpu_minimiser_separates_a_mixture() -> None:
    generator = torch.Generator().manual_seed(0)
    real, pool = torch.randn(400, generator=generator), torch.randn(2000, generator=generator)
    pool[:1000] += 4.0
    weight, bias = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        nnpu_loss(weight * real + bias, weight * pool + bias, 0.5).backward()
        optimizer.step()
    found = (weight * pool + bias > 0).detach()
    assert found[:1000].float().mean() > 0.9 and found[1000:].float().mean() < 0.1
