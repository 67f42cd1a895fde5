"""Reads the selected images of all sources through the pool's preprocessing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from usb_rsmatch.data.pool.image_names import ImageNames
from usb_rsmatch.data.pool.image_set import REAL, ImageSet
from usb_rsmatch.data.pool.pack import packed
from usb_rsmatch.data.pool.preprocessing import Pipeline
from usb_rsmatch.data.pool.provenance import Provenance
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
        real = part.provenance is Provenance.REAL
        images, digests = (pipeline if real else pipeline.without_history()).take(source, part.rows)
        number = np.zeros(n) if real else source.generator[part.rows] + 1
        sets.append(
            ImageSet(
                images=images,
                labels=source.labels[part.rows],
                provenance=np.full(n, part.provenance, dtype=np.int8),
                generator=number.astype(np.int16),
                generators=(REAL,) if real else (REAL, *source.generators),
                is_labeled=np.full(n, part.labeled),
                digests=digests,
                names=ImageNames.of(source, part.rows),
            )
        )
    return sets
