"""Real images to train a generator or a quality classifier: the part of the training set that `--part` names."""

from __future__ import annotations

import re

import numpy as np

from usb_rsmatch import counter_rng
from usb_rsmatch.data.pool.balanced_order import balanced_order
from usb_rsmatch.data.pool.split import class_counts, split_training
from usb_rsmatch.data.sources.dataset_registry import RealData
from usb_rsmatch.errors import UserError

FORMS = "train, train[:50%], train[100:600] or labeled:N"


def training_indices(real: RealData, part: str, seed: int) -> np.ndarray:
    """Indices int64 of the training images that `part` names.

    "train" means all images that have a class. "train[A:B]", in images or per cent, is a slice of them in a fixed
    order, which is shuffled once per data set and balanced over the classes; slices that do not overlap share no image.
    "labeled:N" means the labelled images of a run with `num_labels: N` and this seed. Raises UserError for other parts
    and for an empty one.
    """
    labels = real.train.labels
    if found := re.fullmatch(r"labeled:(\d+)", part):
        counts = class_counts("--part labeled", int(found[1]), len(real.classes), 1.0)
        return np.sort(split_training(labels, len(real.classes), real.spec.name, seed, counts, None, 0).labeled)
    found = re.fullmatch(r"train(?:\[(?:(\d+)(%?))?:(?:(\d+)(%?))?\])?", part)
    if not found:
        raise UserError(f"--part {part}: must be {FORMS}")
    with_class = np.flatnonzero(labels >= 0)
    if part == "train":
        return with_class
    order = with_class[balanced_order(labels[with_class], counter_rng.generator(0, "part", real.spec.name))]
    first, last = (_bound(found[i], found[i + 1], len(order)) for i in (1, 3))
    rows = order[first or 0 : len(order) if last is None else last]
    if not len(rows):
        raise UserError(f"--part {part}: is empty; the training set has {len(order)} images")
    return np.sort(rows)


def load_training_images(real: RealData, part: str, seed: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The part's images, uint8 [N, size, size, C], resized like those of a pool, and their classes int64 [N]."""
    rows = training_indices(real, part, seed)
    return real.train.load(rows, size, real.spec.channels), real.train.labels[rows]


def _bound(number: str | None, percent: str | None, total: int) -> int | None:
    if number is None:
        return None
    return round(total * int(number) / 100) if percent else int(number)
