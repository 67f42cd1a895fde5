"""What a user should know of a pool before training: repeated images, and classes without a labelled image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from usb_rsmatch.data.pool.duplicates import in_two_classes
from usb_rsmatch.data.pool.image_set import ImageSet

if TYPE_CHECKING:
    from usb_rsmatch.data.pool.pool import HybridPool

SHOWN_CLASSES = 5


def empty_classes(pool: HybridPool) -> list[str]:
    """The classes that have no labelled image."""
    counts = np.bincount(pool.labeled.labels, minlength=len(pool.classes))
    return [name for name, count in zip(pool.classes, counts, strict=False) if count == 0]


def pool_notes(pool: HybridPool, trained: ImageSet) -> list[str]:
    """One line for each problem; `trained` are the real training images of the pool, with their hidden classes."""
    notes = []
    if pool.duplicates:
        first = f", the first: {pool.duplicate_names[0]}" if pool.duplicate_names else ""
        notes.append(f"real training images that are also in the test set: {pool.duplicates}{first}; remove them there")
    pairs = in_two_classes(trained)
    if len(pairs):
        names = [trained.names[int(i)] if trained.names else f"image {i}" for i in pairs[0]]
        notes.append(
            f"equal real images with two classes: {len(pairs)}, the first: {names[0]} and {names[1]}; remove one of "
            "each pair"
        )
    empty = empty_classes(pool)
    if empty:
        more = ", ..." if len(empty) > SHOWN_CLASSES else ""
        notes.append(
            f"{len(empty)} of {len(pool.classes)} classes have no labelled image: "
            f"{', '.join(empty[:SHOWN_CLASSES])}{more}; they cannot be learned"
        )
    return notes
