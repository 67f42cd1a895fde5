"""Sampled images: real levels, recognisable classes, and bytes that no split of the work changes."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from usb_rsmatch.synthesis.flow import FlowModel, sample

LABELS = np.arange(50, dtype=np.int64) % 10


@pytest.fixture(scope="module")
def images(brief_model: FlowModel) -> np.ndarray:
    return sample(brief_model, LABELS, brief_model.settings, seed=3, batch=16, device="cpu")


def test_shape_and_levels_are_those_of_the_real_images(
    images: np.ndarray, digits: tuple[np.ndarray, np.ndarray]
) -> None:
    assert images.shape == (50, 8, 8, 1) and images.dtype == np.uint8
    assert set(np.unique(images)) <= set(np.unique(digits[0]))


def test_a_classifier_of_real_digits_recognises_the_intended_classes(
    brief_model: FlowModel, digits: tuple[np.ndarray, np.ndarray]
) -> None:
    labels = np.arange(200, dtype=np.int64) % 10
    made = sample(brief_model, labels, replace(brief_model.settings, guidance=2.0), seed=0, device="cpu")
    judge = LogisticRegression(max_iter=1000).fit(digits[0].reshape(-1, 64) / 255.0, digits[1])
    assert judge.score(made.reshape(-1, 64) / 255.0, labels) > 0.6


def test_the_same_seed_gives_the_same_bytes_and_another_gives_others(
    brief_model: FlowModel, images: np.ndarray
) -> None:
    settings = brief_model.settings
    again = sample(brief_model, LABELS, settings, seed=3, batch=16, device="cpu")
    np.testing.assert_array_equal(again, images)
    other = sample(brief_model, LABELS, settings, seed=4, batch=16, device="cpu")
    assert (other != images).any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize("cuts", [(0, 50), (0, 16, 50), (0, 7, 20, 33, 50)])
def test_parts_of_a_plan_are_the_whole(brief_model: FlowModel, images: np.ndarray, cuts: tuple[int, ...]) -> None:
    parts = [
        sample(brief_model, LABELS, brief_model.settings, 3, 16, start=start, stop=stop, device="cpu")
        for start, stop in pairwise(cuts)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), images)


def test_a_shorter_plan_is_a_prefix(brief_model: FlowModel, images: np.ndarray) -> None:
    short = sample(brief_model, LABELS[:21], brief_model.settings, 3, 16, device="cpu")
    np.testing.assert_array_equal(short, images[:21])


def test_images_of_a_class_differ_from_one_another(images: np.ndarray) -> None:
    assert len({image.tobytes() for image in images}) == len(images)


@pytest.mark.parametrize("change", [{"solver": "euler"}, {"weights": "early"}, {"guidance": 1.0}])
def test_each_sampling_setting_changes_the_images(
    brief_model: FlowModel, images: np.ndarray, change: dict[str, object]
) -> None:
    settings = replace(brief_model.settings, **change)  # type: ignore[arg-type]
    assert (sample(brief_model, LABELS, settings, 3, 16, device="cpu") != images).any()


def test_guidance_of_one_is_the_limit_of_guidance_near_one(brief_model: FlowModel) -> None:
    """The cheap path without the second evaluation agrees with the guided one, to rounding."""
    plain, near = (
        sample(brief_model, LABELS, replace(brief_model.settings, guidance=g, bf16=False), 3, 16, device="cpu")
        for g in (1.0, 1.0 + 1e-6)
    )
    assert (plain != near).mean() < 0.005
