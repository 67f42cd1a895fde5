"""The share of synthetic images and its interval, on scores whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from usb_rsmatch.detection.share_estimation import (
    Scored,
    best_bin_estimate,
    contamination_share,
    posterior,
    standardised,
)


def mixture(seed: int, share: float, n: int = 1500, m: int = 2000, gap: float = 3.0) -> tuple[Scored, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = np.arange(m) < round(share * m)
    return Scored(rng.normal(size=n), rng.normal(size=m) + gap * truth, np.arange(m)), truth


def twice(part: Scored) -> float:
    """The estimate written out: BBE's minimum, then that over the margin which the first estimate asks for."""
    ratio = 1.0
    for _ in range(2):
        best = None
        for z in part.real:
            of_real, of_pool = float((part.real <= z).mean()), float((part.pool <= z).mean())
            error_real, error_pool = (1.01 * np.sqrt(np.log(40) / (2 * len(x))) for x in (part.real, part.pool))
            bound = (of_pool + ratio * error_real + ratio**0.5 * error_pool) / of_real
            if best is None or (bound, z) < best[:2]:
                best = (bound, z, of_pool / of_real)
        assert best is not None
        ratio = min(1.0, best[2])
    return 1 - ratio


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 0.95), st.integers(20, 200), st.integers(20, 200))
def test_the_estimate_is_the_second_minimum(seed: int, share: float, n: int, m: int) -> None:
    part, _ = mixture(seed, share, n, m)
    assert contamination_share([part], 0, resamples=2).estimate == pytest.approx(twice(part), abs=1e-9)


def test_large_shares_come_out_nearer_than_bbes() -> None:
    """Where the sides overlap BBE's margin, made for a pool all real, moves the estimate down."""
    parts = [mixture(seed, 0.8, n=350, m=500, gap=2.0)[0] for seed in range(20)]
    ours = np.mean([contamination_share([part], 0, resamples=2).estimate for part in parts])
    bbe = np.mean([best_bin_estimate(torch.from_numpy(part.real), torch.from_numpy(part.pool)) for part in parts])
    assert bbe < 0.76 and abs(ours - 0.8) < abs(bbe - 0.8) - 0.02


@pytest.mark.parametrize("share", [0.0, 0.05, 0.2, 0.5, 0.8])
def test_the_share_is_found_and_the_interval_holds_it(share: float) -> None:
    found = [contamination_share([mixture(seed, share)[0]], seed, resamples=100) for seed in range(10)]
    assert abs(np.mean([f.estimate for f in found]) - share) < 0.04
    assert all(0 <= f.low <= f.estimate <= f.high <= 1 for f in found)
    assert sum(f.low <= share <= f.high for f in found) >= 8


def test_several_detectors_are_averaged_and_the_seed_decides() -> None:
    (first, _), (second, _) = mixture(0, 0.3), mixture(1, 0.3, m=500)
    both = contamination_share([first, second], 7, 20)
    single = [contamination_share([part], 7, 20).estimate for part in (first, second)]
    assert both.estimate == pytest.approx((2000 * single[0] + 500 * single[1]) / 2500)
    assert both == contamination_share([first, second], 7, 20) != contamination_share([first, second], 8, 20)
    with pytest.raises(ValueError, match="needs scores"):
        contamination_share([Scored(np.empty(0), np.ones(3), np.arange(3))], 0)


def test_the_posterior_is_near_bayes_and_monotone() -> None:
    part, truth = mixture(3, 0.4, n=4000, m=5000, gap=2.0)
    real = np.exp(-(part.pool**2) / 2)
    fake = np.exp(-((part.pool - 2.0) ** 2) / 2)
    bayes = 0.4 * fake / (0.4 * fake + 0.6 * real)
    found = posterior([part], 0.4, 5001)
    assert np.isnan(found[5000]) and np.abs(found[:5000] - bayes).mean() < 0.04
    order = np.argsort(part.pool)
    assert (np.diff(found[order]) >= -1e-12).all() and found[:5000].mean() == pytest.approx(0.4, abs=0.03)
    assert found[:5000][truth].mean() > 0.65
    assert posterior([part], 0.0, 5000).max() < 1 and posterior([part], 0.0, 5000).mean() < found[:5000].mean()


def test_scores_of_detectors_on_other_scales_become_alike() -> None:
    part, _ = mixture(4, 0.3)
    other = Scored(100 + 50 * part.real, 100 + 50 * part.pool, part.rows)
    np.testing.assert_allclose(standardised([part], 2000), standardised([other], 2000), atol=1e-9)


# the published one-pass estimate -------------------------------------------------------------------------------------


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
