"""The nnPU loss against hand-computed values."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from usb_rsmatch.detection import nnpu
from usb_rsmatch.detection.nnpu import nnpu_loss


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


@pytest.mark.parametrize("beta", [0.0, 0.05])
def test_two_processes_are_equivalent_to_one(beta: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """One half alone has overfitted, the whole batch has not: the whole decides."""
    real = torch.tensor([2.0, 1.5, 4.0, 5.0], dtype=torch.float64, requires_grad=True)
    pool = torch.tensor([4.0, 5.0, -3.0, 0.5], dtype=torch.float64, requires_grad=True)
    whole = nnpu_loss(real, pool, 0.9, beta)
    expected = torch.autograd.grad(whole, (real, pool))
    halves = [(real[:2], pool[:2]), (real[2:], pool[2:])]
    parts = [F.softplus(-p).mean() - 0.9 * F.softplus(-r).mean() for r, p in halves]
    assert len({bool(part < -beta) for part in parts}) == 2  # alone, the two processes would decide differently
    gathered = torch.stack(parts).detach()
    monkeypatch.setattr(nnpu, "all_gather_batch", lambda part: gathered)
    mean = sum(nnpu_loss(r, p, 0.9, beta) for r, p in halves) / 2
    torch.testing.assert_close(mean, whole)
    torch.testing.assert_close(torch.autograd.grad(mean, (real, pool)), expected)
