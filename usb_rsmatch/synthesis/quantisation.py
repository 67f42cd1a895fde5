"""Rounds generated images to the pixel values of real ones, so that a detector cannot use the quantisation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MAX_LEVELS = (
    64  # real images with at most this many distinct values are quantised (digits: 17); photographs use all 256
)
BACKGROUND_SHARE = 0.1  # if more than this share of the values are exact zeros, 0 is the background
ZERO_FLOOR = 4  # for images with such a background, generated values below this become 0


@dataclass(frozen=True)
class PixelQuantiser:
    """The pixel values (levels) of a set of real images, ascending, and the floor below which values become 0.

    A network reproduces a background of exact zeros only approximately, which would reveal every generated image.
    Therefore, if the real images have such a background, values under a small floor become 0: generated Fashion-MNIST
    images then have about as many zeros as real ones. A difference remains: 1 or 2 % of the values of real images are
    1 to 3, and none of the generated ones. To compare detectors, clear small values (under 8) in both.
    """

    values: tuple[int, ...]
    floor: int = 0

    @classmethod
    def from_images(cls, images: np.ndarray) -> PixelQuantiser:
        """The quantiser of real uint8 `images` of any shape. Both thresholds are our choice."""
        counts = np.bincount(images.reshape(-1), minlength=256)
        used = np.flatnonzero(counts)
        if len(used) <= MAX_LEVELS:
            return cls(tuple(used.tolist()))
        return cls(tuple(range(256)), ZERO_FLOOR if counts[0] > BACKGROUND_SHARE * images.size else 0)

    def quantise(self, images: np.ndarray) -> np.ndarray:
        """Round float images on the scale 0..255 to the nearest levels; returns uint8 of the same shape."""
        values = np.asarray(self.values, dtype=np.float32)
        midpoints = (values[1:] + values[:-1]) / 2
        quantised = np.asarray(self.values, dtype=np.uint8)[np.searchsorted(midpoints, images)]
        quantised[quantised < self.floor] = 0
        return quantised
