"""Quality figures: right on cases that can be computed, and able to tell good images from bad ones."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import sqrtm
from sklearn.neighbors import NearestNeighbors

from usb_rsmatch.synthesis.quality import (
    frechet_distance,
    kernel_distance,
    measure,
    precision_and_recall,
    relative_diversity,
)

Digits = tuple[np.ndarray, np.ndarray]


def test_frechet_distance_agrees_with_the_matrix_square_root() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=(200, 6)) @ rng.normal(size=(6, 6)) + 1
    b = rng.normal(size=(150, 6)) @ rng.normal(size=(6, 6))
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    offset = a.mean(axis=0) - b.mean(axis=0)
    expected = offset @ offset + np.trace(cov_a + cov_b - 2 * sqrtm(cov_a @ cov_b).real)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def test_kernel_distance_agrees_with_sums_over_pairs() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(7, 3)), rng.normal(size=(5, 3)) + 0.5

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return float((x @ y / 3 + 1) ** 3)

    within = [np.mean([kernel(x, y) for i, x in enumerate(s) for j, y in enumerate(s) if i != j]) for s in (a, b)]
    between = np.mean([kernel(x, y) for x in a for y in b])
    assert kernel_distance(a, b) == pytest.approx(sum(within) - 2 * between, rel=1e-9)
    large = rng.normal(size=(4000, 3))
    assert abs(kernel_distance(large[:2000], large[2000:])) < 0.02 < kernel_distance(large[:2000], large[2000:] + 0.3)


def test_precision_and_recall_agree_with_sklearn_and_tell_what_is_missing() -> None:
    rng = np.random.default_rng(0)
    real, made = rng.normal(size=(60, 4)), rng.normal(size=(80, 4)) * 0.6
    first = made[:60]
    expected = []
    for reference, other in ((real, first), (first, real)):
        radius = NearestNeighbors(n_neighbors=4).fit(reference).kneighbors(reference)[0][:, 3]
        expected.append(np.mean([(np.linalg.norm(reference - x, axis=1) <= radius).any() for x in other]))
    assert precision_and_recall(real, made) == pytest.approx(tuple(expected))
    assert precision_and_recall(real, real) == (1, 1)
    centre = np.concatenate([rng.normal(size=(200, 4)), rng.normal(size=(200, 4)) + 30])
    precision, recall = precision_and_recall(rng.permutation(centre), rng.normal(size=(400, 4)))  # one of two modes
    assert precision > 0.8 and 0.3 < recall < 0.6
    assert np.isnan(precision_and_recall(real[:3], made)).all()


def test_diversity_is_a_ratio_of_distances_within_classes() -> None:
    rng = np.random.default_rng(0)
    feat, labels = rng.normal(size=(60, 4)), np.repeat([0, 1, 2], 20)
    assert relative_diversity(feat, labels, feat, labels) == pytest.approx(1)
    assert relative_diversity(feat, labels, feat / 4 + 7, labels) == pytest.approx(0.25)
    assert relative_diversity(feat, labels, np.ones((60, 4)), labels) == 0
    second = feat + 100 * labels[:, None]  # the distance between classes does not count
    assert relative_diversity(feat, labels, second, labels) == pytest.approx(1)


def test_real_images_look_real_and_damaged_ones_do_not(digits: Digits) -> None:
    images, labels = digits
    real, fresh = slice(0, 1300), slice(1300, None)
    steps = 80
    good = measure(images[real], labels[real], images[fresh], labels[fresh], 10, steps=steps, device="cpu")
    assert good.class_accuracy > 0.85 and good.real_class_accuracy > 0.85
    assert 0.8 < good.diversity < 1.2
    assert good.precision > 0.7 and good.recall > 0.6
    noise = np.random.default_rng(0).integers(0, 256, images[fresh].shape, dtype=np.uint8)
    bad = measure(images[real], labels[real], noise, labels[fresh], 10, steps=steps, device="cpu")
    assert bad.class_accuracy < 0.3
    assert bad.classifier_frechet > 3 * good.classifier_frechet
    assert bad.classifier_kernel > 0.005 > 5 * abs(good.classifier_kernel) and bad.recall < 0.2
    assert bad.real_class_accuracy == good.real_class_accuracy  # the same classifier


def test_images_of_some_classes_are_compared_with_real_ones_of_these_classes(digits: Digits) -> None:
    images, labels = digits
    two = np.flatnonzero((labels == 3) | (labels == 7))
    figures = measure(images, labels, images[two], labels[two], 10, steps=80, device="cpu")
    assert figures.classifier_frechet < 0.1  # real images of two classes are real ones; against all ten it is over 0.5


def test_one_image_a_class_again_and_again_has_no_diversity(digits: Digits) -> None:
    images, labels = digits
    first = np.array([np.flatnonzero(labels == label)[0] for label in range(10)])
    repeated = np.tile(first, 20)
    figures = measure(images, labels, images[repeated], labels[repeated], 10, steps=30, device="cpu")
    assert figures.diversity < 1e-3
