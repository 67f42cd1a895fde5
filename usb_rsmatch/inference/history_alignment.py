"""Gives trusted images the history of the audited files, and tests whether that has succeeded.

First by what stands in the files: trusted images are re-encoded by the audited files' own JPEG tables. Then by search:
if the mean features of both sides differ, and one earlier encoding of the trusted images removes most of the
difference, they get it too; if one edit does (resized, sharpened, brightened), the histories differ and no share can be
stated. Synthetic images are not removed by any of these steps (rules and thresholds are our choice).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from usb_rsmatch.counter_rng import derive, generator
from usb_rsmatch.detection.audit_detector import principal_axes
from usb_rsmatch.inference.file_history import (
    JpegTables,
    Step,
    earlier_encodings,
    edits,
    file_format,
    jpeg_tables,
)
from usb_rsmatch.inference.input_images import ImageList

TRIED = 300  # trusted images on which each step is tried
DIFFER = 0.3  # squared distance of the sides' means, in deviations, from which on a step is looked for
ALIGNED = 0.25  # share of the distance that may remain after an encoding
EXPLAINED = 0.6  # share of the distance that may remain for an edit to be recognised
FEW = 0.05  # difference between the sides' shares of JPEG tables that is ignored

Features = Callable[[np.ndarray, Callable[[int], Sequence[Step]]], np.ndarray]


@dataclass
class Alignment:
    """Steps of each side: every trusted image goes through `earlier`, then all of `last_real` or `last_pool`.

    `tables` are those of the audited files, one of which ends each trusted image's steps if `match_tables`. `edit`
    names a difference that no alignment removes.
    """

    last_real: list[Step] = field(default_factory=list)
    last_pool: list[JpegTables] = field(default_factory=list)
    earlier: list[Step] = field(default_factory=list)
    tables: list[JpegTables] = field(default_factory=list)
    seed: int = 0
    notes: list[str] = field(default_factory=list)
    edit: str | None = None

    def of_real(self, row: int) -> list[Step]:
        """The steps of a trusted image."""
        drawn: list[Step] = []
        if self.tables:
            drawn = [self.tables[derive(self.seed, "tables", row) % len(self.tables)]]
        return [*self.earlier, *drawn, *self.last_real]

    def of_pool(self, row: int) -> list[JpegTables]:
        """The steps of an audited image."""
        return self.last_pool


def by_files(real: ImageList, pool: ImageList, jpeg: int | str | None, seed: int) -> Alignment:
    """The alignment that the files' own tables and formats ask for; `jpeg` is a quality, "auto", or None for none."""
    found = Alignment(seed=seed)
    if jpeg is None:
        return found
    if jpeg != "auto":
        quality = JpegTables.of_quality(int(jpeg))
        return Alignment([quality], [quality], seed=seed, notes=[f"both sides are re-encoded as JPEG {jpeg}"])
    sides = [[jpeg_tables(item) for item in images.items] for images in (real, pool)]
    first, second = ([tables for tables in side if tables is not None] for side in sides)
    formats = [Counter(map(file_format, images.items)) for images in (real, pool)]
    if not first and not second:
        if _distance(*formats) > FEW:
            found.notes.append("the two sides' files have different formats")
        return found
    shares = [Counter(t.key() if t else "" for t in side) for side in sides]
    if _distance(*shares) <= FEW:
        return found
    if len(second) == len(sides[1]):
        found.tables = second
        found.notes.append("trusted images are re-encoded by the JPEG tables of the audited files")
        return found
    common = Counter(first or second).most_common(1)[0][0]
    found.last_real, found.last_pool = [common], [common]
    found.notes.append("the files differ in format: both sides are re-encoded by one set of JPEG tables")
    return found


def by_search(alignment: Alignment, real: np.ndarray, pool: np.ndarray, rows: np.ndarray, features: Features) -> bool:
    """Look for an earlier encoding or an edit that explains the difference; True if the alignment has changed.

    `real` [n, d] and `pool` [m, d] are features as aligned so far, `rows` the trusted images tried, and `features`
    computes theirs with other steps.
    """
    metric = _metric(real, pool, alignment.seed)
    if _squared_distance(real, pool, metric) < DIFFER:
        return False
    tried = rows[generator(alignment.seed, "tried").permutation(len(rows))[:TRIED]]

    def remaining(steps: Mapping[str, Step]) -> dict[str, float]:
        left = {}
        for name, step in steps.items():
            altered = features(tried, lambda row, step=step: [step, *alignment.of_real(row)])  # type: ignore[misc]
            left[name] = _squared_distance(altered, pool, metric)
        return left

    unchanged = _squared_distance(features(tried, alignment.of_real), pool, metric)
    encodings, changes = earlier_encodings(), edits()
    encoded, edited = remaining(encodings), remaining(changes)
    encoding, edit = min(encoded, key=encoded.__getitem__), min(edited, key=edited.__getitem__)
    if encoded[encoding] <= edited[edit] and encoded[encoding] < ALIGNED * unchanged:
        alignment.earlier = [encodings[encoding]]
        alignment.notes.append(f"the audited images look as if once saved as {encoding}: trusted ones are so too")
        return True
    if edited[edit] < EXPLAINED * unchanged:
        alignment.edit = edit
    return False


def _distance(first: Counter[str], second: Counter[str]) -> float:
    """Total variation between two distributions."""
    n, m = first.total(), second.total()
    return sum(abs(first[key] / n - second[key] / m) for key in {*first, *second}) / 2


def _metric(real: np.ndarray, pool: np.ndarray, seed: int) -> np.ndarray:
    """A projection [d, r] that makes deviations within the sides about 1, smaller in directions of little variance."""
    within = np.concatenate([real - real.mean(0), pool - pool.mean(0)])
    _, axes = principal_axes(within, seed)
    variance = ((within - within.mean(0)) @ axes).var(0)
    projection: np.ndarray = axes / np.sqrt(variance + 1.0)
    return projection


def _squared_distance(first: np.ndarray, second: np.ndarray, metric: np.ndarray) -> float:
    """The squared distance between two sides' means, from halves, so that noise adds nothing to its expectation."""
    a, b = (
        (second[half::2].mean(0, dtype=np.float64) - first[half::2].mean(0, dtype=np.float64)) @ metric
        for half in (0, 1)
    )
    return float(a @ b)
