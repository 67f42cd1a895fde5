"""What a user should know of a pool before training: repeated or reshaped images, classes without a labelled image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from usb_rsmatch.data.images.decode import FITS
from usb_rsmatch.data.pool.duplicates import in_two_classes
from usb_rsmatch.data.pool.image_set import ImageSet
from usb_rsmatch.data.sources.source import Source

SHOWN_CLASSES = 5
SIZE_SAMPLE = 64  # images of a source whose size is read


def empty_classes(classes: Sequence[str], labeled: ImageSet) -> list[str]:
    """The classes that have no labelled image."""
    counts = np.bincount(labeled.labels, minlength=len(classes))
    return [name for name, count in zip(classes, counts, strict=True) if count == 0]


def repeated_note(what: str, part: str, images: ImageSet, rows: np.ndarray) -> list[str]:
    """A line on the images at `rows` int64 [n] of a set that are also in the part `part`; none for no such image."""
    if not len(rows):
        return []
    first = f", the first: {images.names[int(rows[0])]}" if images.names else ""
    called = "labelled" if part == "labeled" else part
    return [f"{what} that are also in the {called} set: {len(rows)}{first}; remove them there"]


def shape_notes(sources: Iterable[Source], fit: str) -> list[str]:
    """One line for each source with images that are not square, which are changed by `fit`."""
    notes = []
    for source in sources:
        sizes = source.some_sizes(SIZE_SAMPLE)
        wide = [size for size in sizes if size[0] != size[1]]
        if wide:
            share = f"{100 * len(wide) / len(sizes):.0f} % of the images are not square"
            shown = f"such as {wide[0][0]} x {wide[0][1]} px"
            notes.append(f"{source.origin}: {share}, {shown}; they are {FITS[fit]} (key fit)")
    return notes


def pool_notes(classes: Sequence[str], labeled: ImageSet, trained: ImageSet, repeated: np.ndarray) -> list[str]:
    """One line for each problem of the real training images `trained`, with their hidden classes.

    `repeated` int64 [n] are those that are also in the test set.
    """
    notes = repeated_note("real training images", "test", trained, repeated)
    pairs = in_two_classes(trained)
    if len(pairs):
        names = [trained.names[int(i)] if trained.names else f"image {i}" for i in pairs[0]]
        notes.append(
            f"equal real images with two classes: {len(pairs)}, the first: {names[0]} and {names[1]}; remove one of "
            "each pair"
        )
    empty = empty_classes(classes, labeled)
    if empty:
        more = ", ..." if len(empty) > SHOWN_CLASSES else ""
        notes.append(
            f"{len(empty)} of {len(classes)} classes have no labelled image: "
            f"{', '.join(empty[:SHOWN_CLASSES])}{more}; they cannot be learned"
        )
    return notes
