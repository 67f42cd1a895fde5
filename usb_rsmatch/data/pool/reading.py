"""Reads the selected images of real and synthetic sources through the pool's preprocessing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from usb_rsmatch.data.pool.image_names import ImageNames
from usb_rsmatch.data.pool.image_set import REAL, ImageSet
from usb_rsmatch.data.pool.pack import packed
from usb_rsmatch.data.pool.preprocessing import Pipeline
from usb_rsmatch.data.pool.selection import Selection


def read_selections(selections: Sequence[Selection], pipeline: Pipeline, pack: bool = False) -> list[ImageSet]:
    """The images of each selection; `pipeline` is that of real ones.

    With `pack` images in files are first packed into an array in the user's cache. Raises UserError for an image that
    cannot be read.
    """
    sources = {id(part.source): part.source for part in selections}
    opened = {key: packed(source, pipeline, pack) for key, source in sources.items()}
    sets = []
    for part in selections:
        source, n = opened[id(part.source)], len(part.rows)
        images, digests = (pipeline.for_synthetic() if part.synthetic else pipeline).take(source, part.rows)
        number = source.generator[part.rows] + 1 if part.synthetic else np.zeros(n)
        sets.append(
            ImageSet(
                images=images,
                labels=source.labels[part.rows],
                is_synthetic=np.full(n, part.synthetic),
                generator=number.astype(np.int16),
                generators=(REAL, *source.generators) if part.synthetic else (REAL,),
                is_labeled=np.full(n, part.labeled),
                digests=digests,
                names=ImageNames.of(source, part.rows),
            )
        )
    return sets
