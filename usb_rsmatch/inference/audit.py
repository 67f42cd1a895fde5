"""`usb-rsmatch audit`: which images of a folder look synthetic, and what share. The images are only read."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from usb_rsmatch.counter_rng import generator
from usb_rsmatch.data.pool.preprocessing import Pipeline
from usb_rsmatch.detection import audit_detector
from usb_rsmatch.detection.audit_verdict import CANNOT_TELL, DIFFERENT, REASONS, SHARE, Verdict, verdict
from usb_rsmatch.detection.share_estimation import Scored, Share, log_odds, posterior, standard_scores, standardised
from usb_rsmatch.errors import UserError
from usb_rsmatch.inference.detector_file import SavedDetector
from usb_rsmatch.inference.file_history import jpeg_tables
from usb_rsmatch.inference.history_alignment import by_files, by_search
from usb_rsmatch.inference.input_images import ImageList
from usb_rsmatch.inference.patches import Patches
from usb_rsmatch.progress import Progress

MAX_TRAINING_IMAGES = 4000  # per side; all images are scored
SIZE_RANGE = (8, 512)  # smallest and largest patch in pixels: the detector's minimum, and the limit of memory
FOREIGN = 0.05  # share of files with JPEG tables unknown to a saved detector that is accepted

ASSUMPTIONS = (
    "The share assumes that the real images of the folder have the same origin and file history as the trusted ones. "
    "Images of a generator that the detector misses are not counted, and an autoencoder's copy of a photograph counts "
    "as synthetic."
)
REMEDY = "bring trusted real images that went through the same camera, editing, resizing and saving"


@dataclass(frozen=True)
class Audit:
    """The result of an audit; arrays have one entry per image, NaN for images that cannot be read.

    `probability` is P(synthetic) given the score and the share, `score` the distance from the real images' median in
    robust deviations, `trainings` the held-out scores of each training, `reason` why no share is stated.
    """

    images: ImageList
    pipeline: Pipeline
    verdict: Verdict
    probability: np.ndarray
    score: np.ndarray
    unreadable: dict[str, str]
    reference: str
    warnings: list[str] = field(default_factory=list)
    trainings: list[list[Scored]] = field(default_factory=list)
    reason: str | None = None

    @property
    def share(self) -> Share:
        """The stated share, or 0 to 1."""
        return self.verdict.share

    def headline(self) -> str:
        """What the audit says, in one line."""
        share, count = self.share, int(np.isfinite(self.score).sum())
        if self.verdict.said == SHARE:
            return (
                f"{100 * share.estimate:.1f} % of {count} images look synthetic "
                f"(95 %: {100 * share.low:.1f} to {100 * share.high:.1f} %)"
            )
        return f"no share of {count} images is stated: {self.reason}"

    def order(self) -> np.ndarray:
        """Rows int64 of the readable images, the most synthetic-looking first, ties by number."""
        rows = np.flatnonzero(np.isfinite(self.score))
        return rows[np.lexsort((rows, -self.score[rows]))]

    def threshold(self, false_positives: float) -> float:
        """The score above which a share `false_positives` of the held-out trusted images lies."""
        parts = [part for training in self.trainings for part in training]
        return float(
            np.quantile(np.concatenate([standard_scores(part.real, part.real) for part in parts]), 1 - false_positives)
        )


# audits with the three kinds of detectors ---------------------------------------------------------------------------


def audit_with_run(run: Any, images: ImageList, batch_size: int = 256) -> Audit:
    """Audit with a trained run's detector; the scores of real images are those of its data set's test images."""
    reference = log_odds(run.synthetic_score(run.test.images, batch_size))
    scores, unreadable = _scores_by_run(run, images, batch_size)
    rows = _readable(images, scores)
    return _conclude(
        images,
        run.pipeline,
        [[Scored(reference, scores[rows], rows)]],
        unreadable,
        f"the detector of {run.folder.name}; the real images are the {len(reference)} test images of {run.spec.name}",
        run.config.seed,
        [],
    )


def audit_with_detector(saved: SavedDetector, images: ImageList) -> Audit:
    """Audit with a saved detector: no fold was trained on the images, so the scores of all folds are averaged."""
    rows, features, unreadable = saved.patches.features(
        images, np.arange(len(images)), lambda row: saved.steps, "audit"
    )
    if not len(rows):
        raise UserError(f"none of the {len(images)} images can be read; the first is {images.names[0]}")
    trainings = [
        [Scored(real, detector.scores(features), rows) for detector, real in zip(detectors, held, strict=True)]
        for detectors, held in saved.trainings
    ]
    count = sum(len(held) for held in saved.trainings[0][1])
    reference = f"a saved detector; the real images are the {count} of its training"
    known = set(saved.tables)
    foreign = np.mean([(tables.key() if (tables := jpeg_tables(item)) else "") not in known for item in images.items])
    edit = "their JPEG tables are not those of the detector's images" if foreign > FOREIGN else None
    pipeline = _pipeline(saved.patches)
    return _conclude(images, pipeline, trainings, unreadable, reference, saved.seed, [], edit)


def audit_with_real(
    real: ImageList,
    images: ImageList,
    seed: int = 0,
    size: int | None = None,
    jpeg: int | str | None = "auto",
    trainings: int = audit_detector.TRAININGS,
) -> tuple[Audit, SavedDetector]:
    """Audit with a detector that is trained here on trusted `real` images and the audited images, without labels.

    `size` is the side of the patches in pixels, by default the smallest native one and at most 64. `jpeg` is a quality
    at which both sides are re-encoded, None for no re-encoding, "auto" for the alignment of `history_alignment`.
    Raises UserError for too few or too small images.
    """
    if size is not None and not SIZE_RANGE[0] <= size <= SIZE_RANGE[1]:
        raise UserError(f"--size takes {SIZE_RANGE[0]} to {SIZE_RANGE[1]} pixels, not {size}")
    patches = Patches.of(real, images, size, SIZE_RANGE[0])
    alignment = by_files(real, images, jpeg, seed)
    warnings = _overlap_warnings(real, images)
    real_rows, trusted, failed = patches.features(
        real, _sample(real, seed, "real"), alignment.of_real, "read real images"
    )
    sample = _sample(images, seed, "pool")
    rows, audited, unreadable = patches.features(images, sample, alignment.of_pool, "read images")
    warnings += [f"trusted image {name} cannot be read ({reason})" for name, reason in failed.items()]
    if min(len(real_rows), len(rows)) >= audit_detector.FEWEST and patches.side >= 16:

        def altered(tried: np.ndarray, steps_of: Any) -> np.ndarray:
            return patches.features(real, tried, steps_of, "compare histories")[1]

        if by_search(alignment, trusted, audited, real_rows, altered):
            trusted = patches.features(real, real_rows, alignment.of_real, "read real images")[1]
    with Progress(audit_detector.FOLDS * trainings, "train the detector", "fold") as progress:
        trained = audit_detector.train(trusted, audited, seed, trainings, lambda step: progress.update(1))
    scored = [[Scored(part.real, part.pool, rows[part.rows]) for part in training.parts] for training in trained]
    others = np.setdiff1d(np.arange(len(images)), sample)
    for start in range(0, len(others), MAX_TRAINING_IMAGES):
        more, features, failed = patches.features(
            images, others[start : start + MAX_TRAINING_IMAGES], alignment.of_pool, "audit"
        )
        unreadable |= failed
        for training, parts in zip(trained, scored, strict=True):
            for k, (detector, part) in enumerate(zip(training.detectors, parts, strict=True)):
                chosen = more % audit_detector.FOLDS == k
                scores = np.concatenate([part.pool, detector.scores(features[chosen])])
                parts[k] = Scored(part.real, scores, np.concatenate([part.rows, more[chosen]]))
    reference = f"a detector trained here on {len(real_rows)} trusted real images"
    pipeline = _pipeline(patches)
    edit = None if alignment.edit is None else f"the audited images look {alignment.edit}"
    warnings = [*alignment.notes, *warnings]
    audit = _conclude(images, pipeline, scored, unreadable, reference, seed, warnings, edit)
    held = [(training.detectors, [part.real for part in training.parts]) for training in trained]
    tables = sorted({tables.key() if (tables := jpeg_tables(item)) else "" for item in images.items})
    return audit, SavedDetector(patches, held, tables, alignment.last_pool, seed)


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
    trainings: list[list[Scored]],
    unreadable: dict[str, str],
    reference: str,
    seed: int,
    warnings: list[str],
    edit: str | None = None,
) -> Audit:
    found = verdict(trainings, pipeline.size, seed)
    parts = [part for training in trainings for part in training]
    probability = posterior(parts, found.share.estimate, len(images))
    score = standardised(parts, len(images))
    count = int(np.isfinite(score).sum())
    reason = None
    if edit is not None or found.said == DIFFERENT:
        found = Verdict(DIFFERENT, Share(found.share.estimate, 0.0, 1.0), found.separation, found.apart)
        reason = f"the two sides' histories may differ ({edit or REASONS[DIFFERENT]}); {REMEDY}"
    elif found.said == CANNOT_TELL:
        reason = REASONS[CANNOT_TELL]
    if count < audit_detector.FEWEST:
        warnings = [f"{count} images are too few for a reliable share: look at their scores", *warnings]
    return Audit(images, pipeline, found, probability, score, unreadable, reference, warnings, trainings, reason)


def _pipeline(patches: Patches) -> Pipeline:
    return Pipeline(patches.side, patches.channels)


def _sample(images: ImageList, seed: int, side: str) -> np.ndarray:
    """Rows int64 of at most `MAX_TRAINING_IMAGES` images, by the seed."""
    if len(images) <= MAX_TRAINING_IMAGES:
        return np.arange(len(images))
    chosen = generator(seed, "trained on", side).choice(len(images), MAX_TRAINING_IMAGES, replace=False)
    return np.sort(chosen)


def _scores_by_run(run: Any, images: ImageList, batch_size: int) -> tuple[np.ndarray, dict[str, str]]:
    """Scores of all images, batch by batch, NaN for images that cannot be read, and the reasons."""
    scores = np.full(len(images), np.nan)
    unreadable: dict[str, str] = {}
    with Progress(len(images), "audit") as progress:
        for batch in images.batches(run.pipeline, batch_size):
            if len(batch.rows):
                scores[batch.rows] = log_odds(run.synthetic_score(batch.images))
            unreadable |= {images.names[row]: reason for row, reason in batch.failed.items()}
            progress.update(len(batch.rows) + len(batch.failed))
    return scores, unreadable


def _readable(images: ImageList, scores: np.ndarray) -> np.ndarray:
    rows = np.flatnonzero(np.isfinite(scores))
    if not len(rows):
        raise UserError(f"none of the {len(images)} images can be read; the first is {images.names[0]}")
    return rows


def _overlap_warnings(real: ImageList, images: ImageList) -> list[str]:
    """A warning if audited images are also trusted ones: then they count as real, whatever they show."""
    trusted, audited = (
        [os.path.abspath(item) for item in side.items if isinstance(item, Path)] for side in (real, images)
    )
    count = len(set(trusted).intersection(audited))
    return [f"{count} of the audited images are also trusted ones: remove them from one side"] if count else []
