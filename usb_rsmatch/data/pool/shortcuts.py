"""Shortcuts: cues that have nothing to do with synthesis and still reveal which images of a pool are synthetic."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from usb_rsmatch.data.images.decode import quiet_bombs
from usb_rsmatch.data.pool.image_set import ImageSet, concatenate
from usb_rsmatch.data.pool.pool import HybridPool

WARN_OVER = 0.6  # AUROC of a trivial cue above which a detector may learn the cue instead of the synthesis
SAMPLE = 5000  # largest number of images per side whose cues are measured
QUICK_SAMPLE = 500  # the same before a training, which should start at once


def shortcut_cues(pool: HybridPool, sample: int = SAMPLE) -> dict[str, float | None]:
    """AUROC of provenance, between 0.5 and 1, from each of a few cues that have nothing to do with synthesis.

    The first are read from the pool's pixels, which is what a detector sees; those of the files ("file ...")
    show what a pool without the common pipeline would give away, and are None where a side does not come from
    files. At most `sample` images a side count, the labelled ones left out. An empty answer means that a side
    has no images.
    """
    images = pool.unlabeled
    real = _spread(np.flatnonzero(images.is_real & ~images.is_labeled), sample)
    return _cues(images, real, _spread(np.flatnonzero(images.is_synthetic), sample))


def unknown_cues(pool: HybridPool, sample: int = SAMPLE) -> dict[str, float | None]:
    """The same cues between the images known to be real, the labelled ones included, and those of unknown provenance.

    A high value means that the two differ in their history: a detector may learn that difference instead of synthesis.
    """
    images = pool.unlabeled
    sides = (images.is_real & ~images.is_labeled, images.is_unknown)
    real, unknown = (images.take(_spread(np.flatnonzero(side), sample)) for side in sides)
    both = concatenate([pool.labeled.take(_spread(np.arange(len(pool.labeled)), sample)), real, unknown])
    return _cues(both, np.flatnonzero(both.is_real), np.flatnonzero(both.is_unknown))


def _cues(images: ImageSet, first: np.ndarray, second: np.ndarray) -> dict[str, float | None]:
    """The cues between the images at two lists of rows; empty if a side has none."""
    if not len(first) or not len(second):
        return {}
    names = [[images.names[i] for i in side] if images.names else [] for side in (first, second)]
    return {**pixel_cues(images.images[first], images.images[second]), **file_cues(*names)}


def pixel_cues(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """AUROC of the pixel cues between two sides, uint8 [n, H, W, C] and [m, H, W, C]."""
    truth = np.repeat([False, True], [len(first), len(second)])
    return {
        name: _auroc(np.array([measure(image) for side in (first, second) for image in side]), truth)
        for name, measure in PIXEL_CUES.items()
    }


def file_cues(first: Sequence[str], second: Sequence[str]) -> dict[str, float | None]:
    """AUROC of the file cues between two sides of files; None where a side has no file that can be read."""
    sides = [[fact for name in side if (fact := _file_facts(name)) is not None] for side in (first, second)]
    if not all(sides):
        return dict.fromkeys(FILE_CUES)
    truth, facts = np.repeat([False, True], list(map(len, sides))), [*sides[0], *sides[1]]
    return {
        name: _auroc(_ranked([fact[number] for fact in facts], truth), truth) for number, name in enumerate(FILE_CUES)
    }


def shortcut_warnings(cues: dict[str, float | None]) -> list[str]:
    """One warning for each cue that reveals provenance."""
    return [
        f"{name} alone tells real from synthetic with AUROC {value:.2f} (over {WARN_OVER})"
        for name, value in cues.items()
        if value is not None and value > WARN_OVER
    ]


def unknown_warnings(cues: dict[str, float | None], real: int) -> list[str]:
    """One warning for each cue in which images of unknown provenance differ from the `real` ones (their number).

    With few real images a cue differs by chance: two standard errors of AUROC, (12 n)^-1/2 each, are allowed for it.
    """
    limit = WARN_OVER + 2 / np.sqrt(12 * max(real, 1))
    return [
        f"{name} alone tells images known to be real from those of unknown provenance with AUROC {value:.2f}"
        for name, value in cues.items()
        if value is not None and value > limit
    ]


PIXEL_CUES: dict[str, Callable[[np.ndarray], float]] = {
    "grey levels in use": lambda image: float(len(np.unique(image))),
    "share of exact zeros": lambda image: float((image == 0).mean()),
    "share of exact 255": lambda image: float((image == 255).mean()),
}
FILE_CUES = ("file size", "file image size", "file mode", "file format", "file JPEG tables")


def _spread(indices: np.ndarray, sample: int) -> np.ndarray:
    """At most `sample` of the indices, evenly spaced."""
    return indices[np.unique(np.linspace(0, len(indices) - 1, min(sample, len(indices))).astype(np.int64))]


def _auroc(values: np.ndarray, truth: np.ndarray) -> float:
    """AUROC of the values or of their negation, whichever is larger."""
    from sklearn.metrics import roc_auc_score

    score = float(roc_auc_score(truth, values))
    return max(score, 1 - score)


def _ranked(values: list[float | str], truth: np.ndarray) -> np.ndarray:
    """Numbers unchanged; a category becomes the share of synthetic images in it."""
    if not isinstance(values[0], str):
        return np.array(values, dtype=np.float64)
    _, names = np.unique(values, return_inverse=True)
    return (np.bincount(names, weights=truth) / np.bincount(names))[names]


def _file_facts(name: str) -> tuple[float, float, str, str, str] | None:
    """A file's properties without decoding it, in the order of `FILE_CUES`; None if `name` is not an image file."""
    with contextlib.suppress(Exception):  # a bomb or a damaged file can make a decoder fail in any way
        data = Path(name).read_bytes()
        with quiet_bombs(), Image.open(io.BytesIO(data)) as image:
            tables = repr(getattr(image, "quantization", None))
            return float(len(data)), float(image.width * image.height), image.mode, str(image.format), tables
    return None
