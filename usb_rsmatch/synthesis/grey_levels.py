"""Rounds generated images to the pixel values of real ones, so that a detector cannot use the quantisation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FEW = 64  # a set with at most so many distinct values is quantised (digits: 17); natural images use all 256
MANY_ZEROS = 0.1  # share of exact zeros from which 0 is a background and not merely the darkest grey
ZERO_FLOOR = 4  # generated values below this become 0 on such a background


@dataclass(frozen=True)
class Levels:
    """The pixel values in use in a set of real images, ascending, and the floor below which values become 0.

    A network reproduces a background of exact zeros only approximately, which would reveal every generated image. So if
    real images have such a background, values under a small floor become 0: generated Fashion-MNIST images then have
    about as many zeros as real ones. Real images also contain 1 or 2 % of values of 1 to 3, and the generated ones
    none: to compare detectors, clear small values (under 8) on both sides.
    """

    values: tuple[int, ...]
    floor: int = 0

    @classmethod
    def of(cls, images: np.ndarray) -> Levels:
        """Levels of uint8 `images` of any shape (our choice of both thresholds)."""
        counts = np.bincount(images.reshape(-1), minlength=256)
        used = np.flatnonzero(counts)
        if len(used) <= FEW:
            return cls(tuple(used.tolist()))
        return cls(tuple(range(256)), ZERO_FLOOR if counts[0] > MANY_ZEROS * images.size else 0)

    def snap(self, images: np.ndarray) -> np.ndarray:
        """Float images on the scale 0..255 to the nearest levels, uint8 of the same shape."""
        values = np.asarray(self.values, dtype=np.float32)
        middles = (values[1:] + values[:-1]) / 2
        snapped = np.asarray(self.values, dtype=np.uint8)[np.searchsorted(middles, images)]
        snapped[snapped < self.floor] = 0
        return snapped
