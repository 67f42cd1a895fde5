"""The detector of `usb-rsmatch audit`: trained on trusted real images and on a pool that may hold synthetic ones.

It needs no classes and no labels: a ridge regression on residual features, first of trusted against audited images,
whose ranking is also the best one of real against synthetic images, then with each audited image weighted by its
probability of being synthetic. Every image is scored by detectors that were not trained on it. A linear model on fixed
features needs far fewer images than a CNN and seconds instead of minutes (our choice).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from usb_rsmatch.counter_rng import derive, generator
from usb_rsmatch.detection.share_estimation import Scored, best_bin_estimate, posterior
from usb_rsmatch.errors import UserError

FOLDS = 5
TRAININGS = 3  # partitions into folds: the spread between them is part of the interval
QUICK_TRAININGS = 1
FEWEST = 40  # fewest images per side
COMPONENTS = 256  # principal components of the features
RIDGE = 2.0  # penalty, in units of a feature's variance
ROUNDS = 3  # fits, each with the probabilities from the one before
LEAST = 0.02  # smallest share that is assumed while training

Tell = Callable[[int], None]


@dataclass(frozen=True)
class LinearDetector:
    """Scores of features float32 [n, d]: `features @ weights + offset`, high = synthetic."""

    weights: np.ndarray
    offset: float

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Scores float64 [n]."""
        scores: np.ndarray = features.astype(np.float64) @ self.weights + self.offset
        return scores


@dataclass(frozen=True)
class Training:
    """One partition into folds: a detector for each fold and its scores of the images that it was not trained on."""

    detectors: list[LinearDetector]
    parts: list[Scored]


def train(
    real: np.ndarray, pool: np.ndarray, seed: int, trainings: int = TRAININGS, tell: Tell = lambda step: None
) -> list[Training]:
    """Trainings on features of trusted images float32 [n, d] and of audited ones [m, d].

    `tell` is called after every fold. Raises UserError for fewer than `FEWEST` images a side.
    """
    for side, features in (("trusted real", real), ("audited", pool)):
        if len(features) < FEWEST:
            raise UserError(f"{len(features)} {side} images are too few: a detector needs at least {FEWEST}")
    centre, basis = principal_axes(np.concatenate([real, pool]), derive(seed, "components"))
    projected = [(side - centre) @ basis for side in (real, pool)]
    found = []
    for number in range(trainings):
        fold = [
            _folds(len(side), derive(seed, "audit", number), name) for side, name in ((real, "real"), (pool, "pool"))
        ]
        detectors, parts = [], []
        for k in range(FOLDS):
            weights, offset = _fit(*(side[f != k] for side, f in zip(projected, fold, strict=True)))
            held = [side[f == k] @ weights + offset for side, f in zip(projected, fold, strict=True)]
            full = basis @ weights
            detectors.append(LinearDetector(full, float(offset - centre @ full)))
            parts.append(Scored(held[0], held[1], np.flatnonzero(fold[1] == k)))
            tell(number * FOLDS + k)
        found.append(Training(detectors, parts))
    return found


def principal_axes(features: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Centre float64 [d] of features [n, d], and axes [d, r] that project standardised features."""
    from sklearn.utils.extmath import randomized_svd

    centre, scale = features.mean(0, dtype=np.float64), features.std(0, dtype=np.float64)
    scale = np.maximum(scale, 1e-2 * np.median(scale) + 1e-9)
    standardised = ((features - centre) / scale).astype(np.float32)
    rank = min(COMPONENTS, *standardised.shape)
    axes = randomized_svd(standardised, rank, n_iter=2, random_state=seed % 2**32)[2]
    return centre, axes.T.astype(np.float64) / scale[:, None]


def _folds(size: int, seed: int, side: str) -> np.ndarray:
    """The fold that holds each image out, int64 [size], balanced."""
    fold = np.empty(size, dtype=np.int64)
    fold[generator(seed, "audit folds", side).permutation(size)] = np.arange(size) % FOLDS
    return fold


def _fit(real: np.ndarray, pool: np.ndarray) -> tuple[np.ndarray, float]:
    """Weights [r] and offset of a ridge regression; audited images count as synthetic by their probability.

    Probabilities come from leave-one-out scores, so that images are not judged by a detector that has seen them.
    """
    x, n = np.concatenate([real, pool]), len(real)
    probability = np.ones(len(pool))
    for last in [False] * (ROUNDS - 1) + [True]:
        synthetic = probability / probability.sum()
        genuine = np.concatenate([np.ones(n), 1 - probability])
        genuine /= genuine.sum()
        weight = genuine + np.concatenate([np.zeros(n), synthetic])
        target = 1 - genuine / weight
        weights, offset, left_out = _ridge(x, target, weight / weight.sum())
        if not last:
            share = max(LEAST, best_bin_estimate(left_out[:n], left_out[n:]))
            scored = Scored(left_out[:n], left_out[n:], np.arange(len(pool)))
            probability = np.clip(posterior([scored], share, len(pool)), 1e-3, 1)
    return weights, offset


def _ridge(x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
    """Weighted ridge regression: weights [r], offset and leave-one-out predictions [n]."""
    from scipy.linalg import cho_factor, cho_solve

    centre, middle = weight @ x, weight @ y
    scaled = (x - centre) * np.sqrt(weight)[:, None]
    factor = cho_factor(scaled.T @ scaled + RIDGE * np.eye(x.shape[1]))
    inverse_rows = cho_solve(factor, scaled.T)  # [r, n]
    weights = inverse_rows @ ((y - middle) * np.sqrt(weight))
    predicted = (x - centre) @ weights + middle
    leverage = np.minimum(np.einsum("nr,rn->n", scaled, inverse_rows) + weight, 0.99)
    return weights, float(middle - centre @ weights), predicted - leverage / (1 - leverage) * (y - predicted)
