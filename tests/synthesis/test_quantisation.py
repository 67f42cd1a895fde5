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
    quantiser = PixelQuantiser.from_images(np.array(values, dtype=np.uint8))
    quantised = quantiser.quantise(pixels)
    distances = np.abs(pixels[:, None] - np.array(values, dtype=np.float32))
    assert set(quantised.tolist()) <= set(values)
    np.testing.assert_allclose(np.abs(pixels - quantised), distances.min(axis=1), atol=1e-4)


def test_real_images_are_left_as_they_are(digits: tuple[np.ndarray, np.ndarray]) -> None:
    quantiser = PixelQuantiser.from_images(digits[0])
    assert len(quantiser.values) == 17
    np.testing.assert_array_equal(quantiser.quantise(digits[0].astype(np.float32)), digits[0])


def test_a_black_background_gets_a_floor_and_a_photograph_none() -> None:
    every = np.arange(256, dtype=np.uint8)
    pixels = np.array([-3.0, 1.4, 2.6, 3.2, 40.3, 254.7, 280.0], dtype=np.float32)
    photograph = PixelQuantiser.from_images(every)
    np.testing.assert_array_equal(photograph.quantise(pixels), [0, 1, 3, 3, 40, 255, 255])
    garment = PixelQuantiser.from_images(np.concatenate([every, np.zeros(200, dtype=np.uint8)]))
    np.testing.assert_array_equal(garment.quantise(pixels), [0, 0, 0, 0, 40, 255, 255])
