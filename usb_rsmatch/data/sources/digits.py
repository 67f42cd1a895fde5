"""`dataset: digits`: scikit-learn's 1,797 digits of 8 x 8 pixels, which need no files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from usb_rsmatch import counter_rng
from usb_rsmatch.data.sources.dataset_registry import DataSpec, RealData
from usb_rsmatch.data.sources.source import ArraySource


def open_digits(data_dir: Path) -> RealData:
    """scikit-learn's 1,797 digits of 8 x 8 pixels, which need no files: grey levels 0..16 as 0..255.

    A fifth of each class, fixed once for all seeds, is the test set.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = digits.target.astype(np.int64)
    is_test = np.zeros(len(labels), dtype=np.bool_)
    for c in range(10):
        members = counter_rng.generator(0, "digits", "test", c).permutation(np.flatnonzero(labels == c))
        is_test[members[: round(len(members) / 5)]] = True
    return RealData(
        DataSpec("digits", mean=(0.3054,), std=(0.3760,), flip=False, img_size=8),
        tuple(map(str, range(10))),
        ArraySource("digits", images[~is_test], labels[~is_test]),
        ArraySource("digits", images[is_test], labels[is_test]),
    )
