"""PixelQuantiser: generated values are moved to the nearest that real images take, and zeros to zero."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from usb_rsmatch.synthesis.quantisation import PixelQuantiser


@given(
    st.lists(st.integers(0, 255), min_size=1, max_size=64, unique=True),
    arrays(np.float32, 20, elements=st.floats(-50, 300, width=32)),
)
def test_few_levels_are_rounded_to_the_nearest(values: list[int], pixels: np.ndarray) -> None:
    levels = PixelQuantiser.of(np.array(values, dtype=np.uint8))
    snapped = quantiser.quantise(pixels)
    distances = np.abs(pixels[:, None] - np.array(values, dtype=np.float32))
    assert set(snapped.tolist()) <= set(values)
    np.testing.assert_allclose(np.abs(pixels - snapped), distances.min(axis=1), atol=1e-4)


def test_real_images_are_left_as_they_are(digits: tuple[np.ndarray, np.ndarray]) -> None:
    levels = PixelQuantiser.of(digits[0])
    assert len(levels.values) == 17
    np.testing.assert_array_equal(quantiser.quantise(digits[0].astype(np.float32)), digits[0])


def test_a_black_background_gets_a_floor_and_a_photograph_none() -> None:
    every = np.arange(256, dtype=np.uint8)
    pixels = np.array([-3.0, 1.4, 2.6, 3.2, 40.3, 254.7, 280.0], dtype=np.float32)
    photograph = PixelQuantiser.of(every)
    np.testing.assert_array_equal(photograph.snap(pixels), [0, 1, 3, 3, 40, 255, 255])
    garment = PixelQuantiser.of(np.concatenate([every, np.zeros(200, dtype=np.uint8)]))
    np.testing.assert_array_equal(garment.snap(pixels), [0, 0, 0, 0, 40, 255, 255])
