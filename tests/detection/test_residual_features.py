"""Features of residuals: they equal a direct count, show an invisible change, and exist for every size."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.fft import dctn

from usb_rsmatch.detection.residual_features import _dct_statistics, _pairs, residual_features


def test_frequencies_of_pairs_equal_a_direct_count() -> None:
    residual = np.random.default_rng(0).normal(scale=2, size=(1, 4, 5))
    levels = np.clip(np.rint(residual[0] / 1.0), -2, 2).astype(int)
    counts = np.zeros((5, 5))
    for row in levels:
        for a, b in itertools.pairwise(row):
            counts[a + 2, b + 2] += 1
    both = (counts + counts[::-1, ::-1]).ravel()[:13] / 16
    np.testing.assert_allclose(_pairs(residual, 1.0)[0, :13], np.sqrt(both))


def test_dct_statistics_equal_scipys_transform() -> None:
    channel = np.random.default_rng(1).normal(scale=20, size=(1, 8, 8)).astype(np.float32)
    expected = np.log(np.abs(dctn(channel[0], norm="ortho")).ravel() + 0.5)
    np.testing.assert_allclose(_dct_statistics(channel)[0, :64], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (28, 1), (32, 3), (64, 3)])
def test_every_size_has_finite_features(size: int, channels: int) -> None:
    images = np.random.default_rng(2).integers(0, 256, (3, size, size, channels), dtype=np.uint8)
    features = residual_features(images)
    assert features.dtype == np.float32 and features.shape[0] == 3 and np.isfinite(features).all()
