"""The detector without labels: it finds what it should, repeats itself, and refuses what it cannot learn from."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import Ridge

from usb_rsmatch.detection import audit_detector
from usb_rsmatch.detection.metrics import auroc
from usb_rsmatch.detection.residual_features import residual_features
from usb_rsmatch.errors import UserError


@cache
def sides(share: float = 0.5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of real digits, and of other ones of which a share is blurred, as few-step generators blur."""
    real = np.rint(load_digits().images * (255 / 16)).astype(np.uint8)[np.random.default_rng(0).permutation(1797)]
    pool, count = real[200:440].astype(np.float64), round(share * 240)
    for axis in (1, 2):
        pool[:count] = (pool[:count] + np.roll(pool[:count], 1, axis=axis)) / 2
    both = real[:200, ..., None], np.rint(pool).astype(np.uint8)[..., None]
    return residual_features(both[0]), residual_features(both[1]), np.arange(240) < count


def test_held_out_images_are_told_apart_without_a_label() -> None:
    real, pool, truth = sides()
    steps: list[int] = []
    trainings = audit_detector.train(real, pool, 0, 2, steps.append)
    assert steps == list(range(10)) and len(trainings) == 2
    for training in trainings:
        assert sorted(np.concatenate([part.rows for part in training.parts]).tolist()) == list(range(240))
        for detector, part in zip(training.detectors, training.parts, strict=True):
            np.testing.assert_allclose(detector.scores(pool[part.rows]), part.pool, atol=1e-6)
            found = auroc(part.pool, truth[part.rows])
            assert found is not None and found > 0.8, found


def test_the_same_seed_gives_the_same_detectors() -> None:
    real, pool, _ = sides()
    first, again, other = (audit_detector.train(real[:60], pool[:60], seed, 1)[0].detectors[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.weights, again.weights)
    assert not np.array_equal(first.weights, other.weights)


def test_ridge_regression_and_its_left_out_predictions_equal_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    x, y, weight = rng.normal(size=(30, 4)), rng.normal(size=30), rng.random(30)
    weight /= weight.sum()
    weights, offset, left_out = audit_detector._ridge(x, y, weight)
    model = Ridge(alpha=audit_detector.RIDGE).fit(x, y, weight)
    np.testing.assert_allclose(weights, model.coef_)
    assert offset == pytest.approx(model.intercept_)
    kept = np.arange(30) != 3
    without = Ridge(alpha=audit_detector.RIDGE).fit(x[kept], y[kept], weight[kept])
    assert left_out[3] == pytest.approx(without.predict(x[3:4])[0], abs=1e-3)


def test_what_it_cannot_learn_from_is_told() -> None:
    real, pool, _ = sides()
    with pytest.raises(UserError, match="39 trusted real images are too few"):
        audit_detector.train(real[:39], pool, 0)
    with pytest.raises(UserError, match="3 audited images are too few"):
        audit_detector.train(real, pool[:3], 0)
