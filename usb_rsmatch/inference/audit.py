"""`usb-rsmatch audit`: which images of a folder look synthetic, and what share. The images are only read."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from usb_rsmatch.counter_rng import generator
from usb_rsmatch.data.pool.preprocessing import Pipeline
from usb_rsmatch.data.pool.shortcuts import SAMPLE, WARN_OVER, file_cues, pixel_cues
from usb_rsmatch.detection import audit_detector
from usb_rsmatch.detection.share_estimation import Scored, Share, contamination_share, posterior, standardised
from usb_rsmatch.errors import UserError
from usb_rsmatch.inference.detector_file import SavedDetector
from usb_rsmatch.inference.input_images import ImageList
from usb_rsmatch.progress import Progress

MAX_TRAINING_IMAGES = 20_000  # per side; all images are scored
MAX_DEFAULT_SIZE = 64  # pixels, unless another size is given: takes minutes on a CPU
SIZE_RANGE = (8, 512)  # smallest and largest size in pixels: the detector's minimum, and the limit of memory
JPEG_QUALITY = 75  # quality at which both sides are re-encoded if their files differ in format
CUE_SAMPLE = 400  # largest number of files per side whose formats are compared

ASSUMPTIONS = (
    "The share assumes that the real images of the folder have the same origin as the trusted ones, and that some of "
    "them look more real than any synthetic one. The interval is a bootstrap over images: it does not include the "
    "variation between trainings. Images of a generator that the detector misses are not counted."
)


@dataclass(frozen=True)
class Audit:
    """The result of an audit; arrays have one entry per image, NaN for images that cannot be read.

    `probability` is P(synthetic) given the score and the share, `score` the distance from the real images' median in
    robust deviations, `parts` the underlying scores of each detector.
    """

    images: ImageList
    pipeline: Pipeline
    share: Share
    probability: np.ndarray
    score: np.ndarray
    unreadable: dict[str, str]
    reference: str
    warnings: list[str] = field(default_factory=list)
    parts: list[Scored] = field(default_factory=list)

    def order(self) -> np.ndarray:
        """Rows int64 of the readable images, the most synthetic-looking first, ties by number."""
        rows = np.flatnonzero(np.isfinite(self.score))
        return rows[np.lexsort((rows, -self.score[rows]))]


# audits with the three kinds of detectors ---------------------------------------------------------------------------


def audit_with_run(run: Any, images: ImageList, batch_size: int = 256) -> Audit:
    """Audit with a trained run's detector; the scores of real images are those of its data set's test images."""
    reference = _log_odds(run.synthetic_score(run.test.images, batch_size))
    scores, unreadable = _score_in_batches(
        images, run.pipeline, lambda rows, pixels: _log_odds(run.synthetic_score(pixels)), batch_size
    )
    rows = _readable(images, scores)
    return _conclude(
        images,
        run.pipeline,
        [Scored(reference, scores[rows], rows)],
        unreadable,
        f"the detector of {run.folder.name}; the real images are the {len(reference)} test images of {run.spec.name}",
        run.config.seed,
        run.test_notes(),
    )


def audit_with_detector(saved: SavedDetector, images: ImageList, batch_size: int = 256) -> Audit:
    """Audit with a saved detector: no fold was trained on the images, so the scores of all folds are averaged."""

    def score(rows: np.ndarray, pixels: np.ndarray) -> np.ndarray:
        return np.stack([audit_detector.logits(detector, pixels, saved.look) for detector in saved.detectors], axis=1)

    scores, unreadable = _score_in_batches(images, saved.pipeline, score, batch_size, len(saved.detectors))
    rows = _readable(images, scores[:, 0])
    parts = [Scored(real, scores[rows, k], rows) for k, real in enumerate(saved.real_scores)]
    reference = f"a saved detector; the real images are the {sum(map(len, saved.real_scores))} of its training"
    return _conclude(images, saved.pipeline, parts, unreadable, reference, saved.seed, [])


def audit_with_real(
    real: ImageList,
    images: ImageList,
    seed: int = 0,
    size: int | None = None,
    jpeg: int | str | None = "auto",
    batch_size: int = 256,
) -> tuple[Audit, SavedDetector]:
    """Audit with a detector that is trained here on trusted `real` images and the audited images, without labels.

    `size` is the side in pixels, by default the smaller native one and at most `MAX_DEFAULT_SIZE`. `jpeg` is a quality
    at which both sides are re-encoded, None for no re-encoding, "auto" for `JPEG_QUALITY` if the files' formats reveal
    the side. Raises UserError for too few or too small images.
    """
    if size is not None and not SIZE_RANGE[0] <= size <= SIZE_RANGE[1]:
        raise UserError(f"--size takes {SIZE_RANGE[0]} to {SIZE_RANGE[1]} pixels, not {size}")
    native = min(real.native_side(), images.native_side())
    side = size or min(native, MAX_DEFAULT_SIZE)
    cues = file_cues(_sample_names(real, seed, "real"), _sample_names(images, seed, "pool"))
    revealing = [name for name, value in cues.items() if value is not None and value > WARN_OVER]
    quality = JPEG_QUALITY if jpeg == "auto" and revealing else None if jpeg == "auto" else jpeg
    pipeline = Pipeline(side, 1 if real.is_grey() and images.is_grey() else 3, quality)  # type: ignore[arg-type]
    warnings = _overlap_warnings(real, images) + _format_warnings(revealing, cues, quality)

    real_rows, real_pixels, real_unreadable = _read_sample(real, pipeline, seed, "real", batch_size)
    rows, pixels, unreadable = _read_sample(images, pipeline, seed, "pool", batch_size)
    for name, reason in real_unreadable.items():
        warnings.append(f"trusted image {name} cannot be read ({reason})")
    warnings += _pixel_warnings(real_pixels, pixels)
    look = audit_detector.Look.of(real_pixels)
    with Progress(audit_detector.FOLDS * audit_detector.STEPS[1], "train the detector", "step") as progress:
        detectors = audit_detector.train_folds(real_pixels, pixels, look, seed, tell=lambda step: progress.update(1))

    real_fold, fold = audit_detector.folds(len(real_rows), seed, "real"), audit_detector.folds(len(rows), seed, "pool")
    real_scores = [
        audit_detector.logits(detector, real_pixels[real_fold == k], look) for k, detector in enumerate(detectors)
    ]
    scores = np.full(len(images), np.nan)
    fold_of = np.arange(len(images)) % audit_detector.FOLDS  # any fold for images that no detector was trained on
    fold_of[rows] = fold
    for k, detector in enumerate(detectors):
        scores[rows[fold == k]] = audit_detector.logits(detector, pixels[fold == k], look)
    unscored = np.setdiff1d(np.arange(len(images)), rows)
    if len(unscored) > len(unreadable):

        def score(at: np.ndarray, batch: np.ndarray) -> np.ndarray:
            each = np.stack([audit_detector.logits(detector, batch, look) for detector in detectors], axis=1)
            return each[np.arange(len(at)), fold_of[unscored[at]]]

        scores[unscored], more = _score_in_batches(images.take(unscored), pipeline, score, batch_size)
        unreadable |= more
    readable = _readable(images, scores)
    rows_of_fold = [readable[fold_of[readable] == k] for k in range(len(detectors))]
    parts = [Scored(real_scores[k], scores[rows], rows) for k, rows in enumerate(rows_of_fold)]
    reference = f"a detector trained here on {len(real_rows)} trusted real images"
    audit = _conclude(images, pipeline, parts, unreadable, reference, seed, warnings)
    return audit, SavedDetector(pipeline, look, detectors, real_scores, seed)


def jpeg_quality(text: str) -> int | str | None:
    """The value of `--jpeg`: "auto", None for "off", or a quality; UserError for anything else."""
    if text in ("auto", "off"):
        return "auto" if text == "auto" else None
    if not text.isdecimal() or not 1 <= int(text) <= 100:
        raise UserError(f"--jpeg takes auto, off or a quality from 1 to 100, not {text!r}")
    return int(text)


# internal functions -----------------------------------------------------------------------------------------------


def _conclude(
    images: ImageList,
    pipeline: Pipeline,
    parts: list[Scored],
    unreadable: dict[str, str],
    reference: str,
    seed: int,
    warnings: list[str],
) -> Audit:
    share = contamination_share(parts, seed)
    probability = posterior(parts, share.estimate, len(images))
    score = standardised(parts, len(images))
    count = int(np.isfinite(score).sum())
    if count < audit_detector.FEWEST:
        warnings = [f"{count} images are too few for a reliable share: look at their scores", *warnings]
    return Audit(images, pipeline, share, probability, score, unreadable, reference, warnings, parts)


def _score_in_batches(
    images: ImageList,
    pipeline: Pipeline,
    score: Callable[[np.ndarray, np.ndarray], np.ndarray],
    batch_size: int,
    columns: int | None = None,
) -> tuple[np.ndarray, dict[str, str]]:
    """Scores of all images, batch by batch, NaN for images that cannot be read, and the reasons."""
    scores = np.full(len(images) if columns is None else (len(images), columns), np.nan)
    unreadable: dict[str, str] = {}
    with Progress(len(images), "audit") as progress:
        for batch in images.batches(pipeline, batch_size):
            if len(batch.rows):
                scores[batch.rows] = score(batch.rows, batch.images)
            unreadable |= {images.names[row]: reason for row, reason in batch.failed.items()}
            progress.update(len(batch.rows) + len(batch.failed))
    return scores, unreadable


def _read_sample(
    images: ImageList, pipeline: Pipeline, seed: int, side: str, batch_size: int
) -> tuple[np.ndarray, np.ndarray, dict[str, str]]:
    """Rows int64 [n] and pixels uint8 [n, size, size, C] of at most `MAX_TRAINING_IMAGES` images, by the seed."""
    rows = np.arange(len(images))
    if len(rows) > MAX_TRAINING_IMAGES:
        rows = np.sort(generator(seed, "trained on", side).choice(len(rows), MAX_TRAINING_IMAGES, replace=False))
    chosen = images.take(rows)
    kept, pixels = [], []
    unreadable: dict[str, str] = {}
    with Progress(len(rows), f"read {side} images") as progress:
        for batch in chosen.batches(pipeline, batch_size):
            kept.append(rows[batch.rows] if len(batch.rows) else rows[:0])
            pixels.append(batch.images)
            unreadable |= {chosen.names[row]: reason for row, reason in batch.failed.items()}
            progress.update(len(batch.rows) + len(batch.failed))
    return np.concatenate(kept), np.concatenate(pixels), unreadable


def _readable(images: ImageList, scores: np.ndarray) -> np.ndarray:
    rows = np.flatnonzero(np.isfinite(scores))
    if not len(rows):
        raise UserError(f"none of the {len(images)} images can be read; the first is {images.names[0]}")
    return rows


def _log_odds(probability: np.ndarray) -> np.ndarray:
    p = np.clip(probability.astype(np.float64), 1e-12, 1 - 1e-12)
    return np.log(p / (1 - p))


def _sample_names(images: ImageList, seed: int, side: str) -> list[str]:
    """Names of a random sample of the images, by the seed."""
    order = generator(seed, "cues", side).permutation(len(images))[:CUE_SAMPLE]
    return [images.names[row] for row in np.sort(order)]


def _overlap_warnings(real: ImageList, images: ImageList) -> list[str]:
    """A warning if audited images are also trusted ones: then they count as real, whatever they show."""
    trusted, audited = (
        [os.path.abspath(item) for item in side.items if isinstance(item, Path)] for side in (real, images)
    )
    count = len(set(trusted).intersection(audited))
    return [f"{count} of the audited images are also trusted ones: remove them from one side"] if count else []


def _format_warnings(revealing: list[str], cues: dict[str, float | None], quality: int | str | None) -> list[str]:
    if not revealing:
        return []
    shown = ", ".join(f"{name} {cues[name]:.2f}" for name in revealing)
    line = f"the folders' files differ in their format (AUROC: {shown})"
    if quality is not None:
        return [f"{line}; both sides are re-encoded as JPEG {quality}, so that the format alone does not decide"]
    return [f"{line}; the detector may detect that instead of synthesis"]


def _pixel_warnings(real: np.ndarray, pool: np.ndarray) -> list[str]:
    return [
        f"{name} alone separates the folders with AUROC {value:.2f}: the detector may detect that instead of synthesis"
        for name, value in pixel_cues(real[:SAMPLE], pool[:SAMPLE]).items()
        if value > WARN_OVER
    ]
