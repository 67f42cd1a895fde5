"""The share of synthetic images in a pool, with an interval, and each image's probability of being synthetic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from usb_rsmatch.counter_rng import generator

Scores = np.ndarray | Tensor

RESAMPLES = 500
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Scored:
    """One detector's scores (high = synthetic) of held-out real images [n] and of pool images [m].

    `rows` int64 [m] are the positions of the latter in the pool. The detector was trained on none of these images.
    """

    real: np.ndarray
    pool: np.ndarray
    rows: np.ndarray


@dataclass(frozen=True)
class Share:
    """The estimated share of synthetic images and the ends of its interval."""

    estimate: float
    low: float
    high: float


def contamination_share(parts: Sequence[Scored], seed: int, resamples: int = RESAMPLES) -> Share:
    """The share of synthetic images in the pool, from one or several detectors' scores.

    Each detector yields an estimate by BBE in two passes (`BestBin`); estimates are averaged, weighted by the number
    of images that each detector has scored. The interval, at 95 %, is a bootstrap over the real and the pool's images.
    It extends equally to both sides, up to the further of the two percentiles, because BBE takes a minimum and so errs
    to one side (our choice). Assumptions: the pool's real images come from the same source as the trusted ones, and
    some of them look more real than any synthetic image. The interval does not cover the variation between trainings,
    and if no detector can detect a generator the estimate is too low.
    """
    bins = [BestBin(part.real, part.pool) for part in parts]
    weights = np.array([len(part.pool) for part in parts], dtype=np.float64)
    estimate = float(np.average([b.share() for b in bins], weights=weights))
    draws = np.empty(resamples)
    for r in range(resamples):
        rng = generator(seed, "bootstrap", r)
        draws[r] = np.average([b.share(rng) for b in bins], weights=weights)
    tail = 100 * (1 - CONFIDENCE) / 2
    reach = max(abs(float(np.percentile(draws, q)) - estimate) for q in (tail, 100 - tail))
    return Share(estimate, max(0.0, estimate - reach), min(1.0, estimate + reach))


def best_bin_estimate(real_scores: Scores, pool_scores: Scores, delta: float = 0.1, gamma: float = 0.01) -> float:
    """The share of synthetic images in the pool, from scores (high = synthetic) of known real and of pool images.

    `real_scores` float [n] are of real images that the detector was not trained on, else the share is too high;
    `pool_scores` float [m]. For every threshold z, real images are at most q_pool(z) / q_real(z) of the pool, where q
    is the share of scores up to z. The estimate is taken at the z where this bound plus its margin of error, at
    confidence 1 - `delta`, is smallest. Source: BBE, Garg et al. 2021 (arXiv 2111.00980, algorithm 1), with its `delta`
    and `gamma`; its positives are our real images. Raises ValueError for no scores.
    """
    return BestBin(real_scores, pool_scores, delta, gamma).share(passes=1)


class BestBin:
    """BBE for the scores of one detector; they are sorted once, so that a bootstrap resample only needs counts.

    `passes` is 1 in the published algorithm, whose margin of error is that of a pool of real images only. Once the
    share of real images a is estimated, q_pool / q_real is near a at the minimum: an error of q_real has the weight a,
    and the count behind q_pool has a standard deviation smaller by the factor sqrt(a). A second pass therefore
    minimises a tighter bound. One pass alone underestimates large shares, because the wide margin moves the minimum to
    where synthetic images are (our choice).
    """

    def __init__(self, real_scores: Scores, pool_scores: Scores, delta: float = 0.1, gamma: float = 0.01) -> None:
        real, pool = (np.sort(np.asarray(scores, dtype=np.float64)) for scores in (real_scores, pool_scores))
        self.n, self.m = len(real), len(pool)
        if not self.n or not self.m:
            raise ValueError("an estimate needs scores of real images and of the pool")
        thresholds = np.unique(real)  # between two real scores only q_pool grows
        self.real_up_to = np.searchsorted(real, thresholds, side="right")
        self.pool_up_to = np.searchsorted(pool, thresholds, side="right")
        self.gamma = gamma
        self.margins = [math.sqrt(math.log(4 / delta) / (2 * size)) for size in (self.n, self.m)]

    def share(self, rng: np.random.Generator | None = None, passes: int = 2) -> float:
        """The estimate, from all images or, with `rng`, from a bootstrap resample of them."""
        q_real, q_pool = (
            self._cumulative(n, up_to, rng) for n, up_to in ((self.n, self.real_up_to), (self.m, self.pool_up_to))
        )
        of_real, of_pool = self.margins
        ratio = 1.0  # share of real images in the pool, at first as if all were real
        for _ in range(passes):
            slack = (1 + self.gamma) * (ratio * of_real + math.sqrt(ratio) * of_pool)
            with np.errstate(divide="ignore", invalid="ignore"):
                bound = np.where(q_real > 0, (q_pool + slack) / q_real, np.inf)
            best = int(np.argmin(bound))
            ratio = min(1.0, float(q_pool[best] / q_real[best]))
        return 1.0 - ratio

    @staticmethod
    def _cumulative(n: int, up_to: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
        if rng is None:
            return up_to / n
        counts = rng.multinomial(n, np.full(n, 1.0 / n))
        return np.concatenate([[0], np.cumsum(counts)])[up_to] / n


def posterior(parts: Sequence[Scored], share: float, size: int) -> np.ndarray:
    """Each image's probability of being synthetic, float64 [size]: the mean over detectors that scored it, else NaN.

    P(synthetic | s) = 1 - (1 - share) f_real(s) / f_pool(s), the ratio of densities from a monotone (isotonic) fit
    of "is from the pool" on the score, with equal weight for both sides. Source: the identity is that of
    positive-unlabelled learning (Elkan & Noto 2008, section 2); isotonic regression is our choice. Monotone in each
    detector's score.
    """
    from sklearn.isotonic import IsotonicRegression

    total, times = np.zeros(size), np.zeros(size)
    for part in parts:
        scores = np.concatenate([part.real, part.pool]).astype(np.float64)
        from_pool = np.concatenate([np.zeros(len(part.real)), np.ones(len(part.pool))])
        weights = np.concatenate(
            [np.full(len(part.real), 1 / len(part.real)), np.full(len(part.pool), 1 / len(part.pool))]
        )
        fit = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(scores, from_pool, weights)
        g = np.clip(fit.predict(part.pool.astype(np.float64)), 1e-6, 1 - 1e-6)
        total[part.rows] += np.clip(1 - (1 - share) * (1 - g) / g, 0.0, 1.0)
        times[part.rows] += 1
    with np.errstate(invalid="ignore"):
        return total / np.where(times > 0, times, np.nan)


def log_odds(probability: np.ndarray) -> np.ndarray:
    """Scores float64 [n] of probabilities, finite also for 0 and 1."""
    p = np.clip(probability.astype(np.float64), 1e-12, 1 - 1e-12)
    scores: np.ndarray = np.log(p / (1 - p))
    return scores


def standard_scores(scores: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Scores float64 [n] in robust deviations above the median of the real images' scores."""
    middle, above = np.quantile(real, 0.5), np.quantile(real, 0.84)
    standard: np.ndarray = (scores - middle) / max(above - middle, 1e-6)
    return standard


def standardised(parts: Sequence[Scored], size: int) -> np.ndarray:
    """Scores on a common scale, float64 [size]: robust deviations above the real images' median; NaN if unscored."""
    total, times = np.zeros(size), np.zeros(size)
    for part in parts:
        total[part.rows] += standard_scores(part.pool, part.real)
        times[part.rows] += 1
    with np.errstate(invalid="ignore"):
        return total / np.where(times > 0, times, np.nan)
