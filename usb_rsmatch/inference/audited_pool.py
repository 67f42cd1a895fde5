"""The two sides of an audit of a configuration's pool: its labelled images are trusted, its other ones are audited."""

from __future__ import annotations

import numpy as np

from usb_rsmatch.data.pool.image_set import ImageSet
from usb_rsmatch.data.pool.pool import HybridPool
from usb_rsmatch.inference.input_images import ArrayImage, ImageList
from usb_rsmatch.usb import config


def pool_sides(source: str) -> tuple[ImageList, ImageList]:
    """The labelled images and the unlabelled ones without them, by a configuration's path or shipped name."""
    config.import_semilearn()
    resolved, _ = config.resolve(source, {})
    pool = HybridPool.from_config(resolved)
    rows = np.flatnonzero(~pool.unlabeled.is_labeled)
    return _listed(pool.labeled, np.arange(len(pool.labeled)), "labelled"), _listed(pool.unlabeled, rows, "unlabelled")


def _listed(images: ImageSet, rows: np.ndarray, called: str) -> ImageList:
    names = [images.names[int(row)] if images.names else f"{called}#{row}" for row in rows]
    return ImageList(names, [ArrayImage(images.images, int(row)) for row in rows])
