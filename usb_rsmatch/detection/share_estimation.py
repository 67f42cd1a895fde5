"""How much of a folder is synthetic, with an interval, and what each image's score then means."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from usb_rsmatch.counter_rng import generator

RESAMPLES = 500
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Scored:
    """One detector's scores (high = synthetic): of held-out real images [n], of images of the pool [m].

    `rows` int64 [m] are the places of the latter in the pool. The detector has trained on neither.
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

    Each detector gives an estimate by BBE (Garg et al. 2021, arXiv 2111.00980, algorithm 1) with a margin of error
    that goes by the share (`_Bins`); they are averaged by how many images each has scored. The interval, at 95 %, is
    a bootstrap over the real and the pool's images: as far to both sides as the further of the two percentiles lies,
    because BBE takes a minimum and so errs to one side (our choice). It rests on: the pool's real images come from
    where the trusted ones do, and some of them look more real than any synthetic one. It knows nothing of how another
    training would have come out, and a generator that no detector can tell makes the estimate too low.
    """
    bins = [_Bins(part) for part in parts]
    weights = np.array([len(part.pool) for part in parts], dtype=np.float64)
    estimate = float(np.average([b.share() for b in bins], weights=weights))
    draws = np.empty(resamples)
    for r in range(resamples):
        rng = generator(seed, "bootstrap", r)
        draws[r] = np.average([b.share(rng) for b in bins], weights=weights)
    tail = 100 * (1 - CONFIDENCE) / 2
    reach = max(abs(float(np.percentile(draws, q)) - estimate) for q in (tail, 100 - tail))
    return Share(estimate, max(0.0, estimate - reach), min(1.0, estimate + reach))


class _Bins:
    """BBE of one detector, sorted once, so that a resample is a matter of counting; taken twice.

    BBE's margin of error is that of a pool all real. Once the real share a is estimated, q_pool / q_real is near a
    where it is taken: an error of q_real then weighs a times as much, and the count behind q_pool deviates by sqrt(a)
    of what it would, so the second minimum is over a tighter bound. The first one alone comes out too low at large
    shares: the wide margin moves it to where synthetic images are (our choice).
    """

    def __init__(self, part: Scored, delta: float = 0.1, gamma: float = 0.01) -> None:
        real, pool = np.sort(part.real.astype(np.float64)), np.sort(part.pool.astype(np.float64))
        self.n, self.m = len(real), len(pool)
        if not self.n or not self.m:
            raise ValueError("an estimate needs scores of real images and of the pool")
        thresholds = np.unique(real)
        self.real_up_to = np.searchsorted(real, thresholds, side="right")
        self.pool_up_to = np.searchsorted(pool, thresholds, side="right")
        self.margins = [(1 + gamma) * math.sqrt(math.log(4 / delta) / (2 * size)) for size in (self.n, self.m)]

    def share(self, rng: np.random.Generator | None = None) -> float:
        """The estimate, of the images themselves or of a resample of them."""
        q_real, q_pool = (
            self._cumulative(n, up_to, rng) for n, up_to in ((self.n, self.real_up_to), (self.m, self.pool_up_to))
        )
        of_real, of_pool = self.margins
        ratio = 1.0  # of real images in the pool: at first as if all were
        for _ in range(2):
            slack = ratio * of_real + math.sqrt(ratio) * of_pool
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
    """Each image's probability of being synthetic, float64 [size]: mean over the detectors that scored it, else NaN.

    P(synthetic | s) = 1 - (1 - share) f_real(s) / f_pool(s), the ratio of densities from a monotone (isotonic) fit
    of "is from the pool" on the score, with both sides weighted alike. Source: the identity is that of
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


def standardised(parts: Sequence[Scored], size: int) -> np.ndarray:
    """Scores on one scale, float64 [size]: robust deviations above the median of the real images; NaN where none."""
    total, times = np.zeros(size), np.zeros(size)
    for part in parts:
        middle, above = np.quantile(part.real, 0.5), np.quantile(part.real, 0.84)
        total[part.rows] += (part.pool - middle) / max(above - middle, 1e-6)
        times[part.rows] += 1
    with np.errstate(invalid="ignore"):
        return total / np.where(times > 0, times, np.nan)
