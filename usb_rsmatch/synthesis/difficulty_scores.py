"""Difficulty of real images: a score in [0, 1] for each, from out-of-fold classifiers or from a CSV file."""

from __future__ import annotations

import hashlib
import math
import os
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from usb_rsmatch.cache import cache_folder, file_lock
from usb_rsmatch.counter_rng import derive, generator
from usb_rsmatch.csv_files import PathEnds, csv_rows, read_score_table, refuse_existing
from usb_rsmatch.errors import UserError
from usb_rsmatch.io import atomic_write

FOLDS, REPEATS, STEPS = 5, 2, 200
DECIMALS = 6  # of a score, so that a CSV file holds it exactly


@dataclass(frozen=True)
class DifficultyScores:
    """Scores of N real images, float64 [N] in [0, 1], and the probabilities [N] of their classes that they rank."""

    score: np.ndarray
    probability: np.ndarray


class Named(Protocol):
    """A source whose images have names, and file sizes (-1 for images that are not files)."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str: ...

    def file_sizes(self, indices: np.ndarray) -> np.ndarray: ...


def out_of_fold_scores(
    images: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    seed: int,
    *,
    folds: int = FOLDS,
    repeats: int = REPEATS,
    steps: int = STEPS,
    device: str = "auto",
) -> DifficultyScores:
    """Difficulty of real images (uint8 [N, H, W, C], labels int64 [N]): the rank of the loss of unseen classifiers.

    The images are divided into `folds`, identical images together, and each fold is scored by a classifier that is
    trained for `steps` on the other folds; this is repeated with other folds. A score of 0.8 means that the mean
    cross-entropy of an image is larger than that of 80 % of these images. Raises UserError for a class with fewer
    than two different images.
    Source: difficulty as a score from a trained classifier, arXiv 2411.18109; folds and ranks are our choice.
    """
    from usb_rsmatch.synthesis.flow_settings import pick_device
    from usb_rsmatch.synthesis.quality import class_log_probabilities, train_classifier

    where = pick_device(device)
    loss = np.zeros(len(images))
    for repeat in range(repeats):
        fold_of = assign_folds(images, labels, folds, generator(seed, "difficulty", "folds", repeat))
        for fold in range(folds):
            unseen = np.flatnonzero(fold_of == fold)
            seen = np.flatnonzero(fold_of != fold)
            key = derive(seed, "difficulty", "classifier", repeat, fold) % 2**32
            classifier = train_classifier(images[seen], labels[seen], num_classes, steps, key, where)
            log_probabilities = class_log_probabilities(classifier, images[unseen], where)
            loss[unseen] -= log_probabilities[np.arange(len(unseen)), labels[unseen]] / repeats
    return DifficultyScores(ranks(loss), np.exp(-loss).round(DECIMALS))


def ranks(values: np.ndarray) -> np.ndarray:
    """Each value's rank in the middle of its share of [0, 1], float64 [N]; equal values have equal ranks."""
    ordered = np.sort(values)
    below, up_to = (np.searchsorted(ordered, values, side=side) for side in ("left", "right"))
    return ((below + up_to) / (2 * len(values))).round(DECIMALS)


def assign_folds(images: np.ndarray, labels: np.ndarray, folds: int, rng: np.random.Generator) -> np.ndarray:
    """A fold for each image, int64 [N]; classes are balanced over folds, and identical images share their fold.

    Raises UserError for a class with fewer than two different images.
    """
    digests = [int.from_bytes(hashlib.blake2b(image.tobytes(), digest_size=7).digest(), "little") for image in images]
    _, first, group = np.unique(np.array(digests, dtype=np.int64), return_index=True, return_inverse=True)
    fold_of_group = np.empty(len(first), dtype=np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels[first] == label)
        if len(members) < 2:
            raise UserError(f"difficulty: class number {label} has fewer than two different images to learn from")
        fold_of_group[rng.permutation(members)] = (np.arange(len(members)) + label) % folds
    return fold_of_group[group]


def cached_scores(
    images: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    seed: int,
    cache_dir: str | os.PathLike[str] | None = None,
    device: str = "auto",
) -> DifficultyScores:
    """The scores of `out_of_fold_scores`, computed once and kept in the cache folder.

    Raises UserError if the cache cannot be written or read.
    """
    digest = hashlib.blake2b(digest_size=8)
    digest.update(repr((FOLDS, REPEATS, STEPS, seed, num_classes, images.shape)).encode())
    digest.update(np.ascontiguousarray(images).data)
    digest.update(labels.astype("<i8").tobytes())
    folder = cache_folder(cache_dir)
    file = folder / f"difficulty-{digest.hexdigest()}.npz"
    try:
        with file_lock(folder / f"{file.stem}.lock"):
            if not file.exists():
                print("computing difficulty scores by out-of-fold classifiers", file=sys.stderr)
                scores = out_of_fold_scores(images, labels, num_classes, seed, device=device)
                with atomic_write(file) as temporary, open(temporary, "wb") as target:
                    np.savez(target, score=scores.score, probability=scores.probability)
            with np.load(file, allow_pickle=False) as arrays:
                return DifficultyScores(arrays["score"], arrays["probability"])
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{file} is damaged: remove it to compute the scores again") from error
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"the cache {folder} cannot be used ({reason}): give another with --cache DIR") from error


def write_scores(
    path: Path, scores: DifficultyScores, source: Named, rows: np.ndarray, labels: np.ndarray, classes: Sequence[str]
) -> None:
    """Write scores of the images `rows` [N] of a source, with `labels` [N], to a new CSV file.

    Its columns are `file` (or `index`, for images that are not files), `class`, `score`, and `probability`. Raises
    UserError if the file exists or cannot be written.
    """
    refuse_existing(path)
    files = bool((source.file_sizes(rows) >= 0).all())
    with csv_rows(path, ("file" if files else "index", "class", "score", "probability")) as write:
        for row, label, score, probability in zip(rows, labels, scores.score, scores.probability, strict=True):
            image = source.name(int(row)) if files else str(row)
            write((image, classes[int(label)], float(score), float(probability)))


def read_scores(path: str, source: Named, rows: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Scores float64 [N] of the images `rows` [N] of a training set, from a CSV file; NaN for images without one.

    A column `index` gives an image's number in the training set, or a column `file` its path or a unique end of it;
    the column `score` is in [0, 1], and other columns are ignored. Raises UserError for a missing file or column,
    an unknown image, a score outside of [0, 1], an image with two scores, and a class without any score.
    """
    if not Path(path).is_file():
        raise UserError(f"--difficulty-scores {path}: no such file; --write-difficulty FILE.csv makes one")
    called = f"--difficulty-scores {Path(path).name}"
    lines, by_index = read_score_table(path, "--difficulty-scores")
    ends = None if by_index else PathEnds([source.name(index) for index in range(len(source))])
    of_set = np.full(len(source), np.nan)
    for number, line in enumerate(lines, start=2):
        where = f"{called}:{number}"
        index = _index(line["index"], len(source), where) if ends is None else _by_file(ends, line["file"], where)
        score = _number(line["score"])
        if not 0 <= score <= 1:
            raise UserError(f"{where}: score {line['score']} is not a number from 0 to 1")
        if not math.isnan(of_set[index]):
            raise UserError(f"{where}: the image has a second score; keep one")
        of_set[index] = score
    scores = of_set[rows]
    known = set(labels[~np.isnan(scores)].tolist())
    if missing := [classes[label] for label in sorted(set(labels.tolist()) - known)]:
        raise UserError(f"{called}: has no score for any training image of class {missing[0]}")
    return scores


def _by_file(ends: PathEnds, file: str | None, where: str) -> int:
    found = ends.find(file or "", where)
    if found is None:
        raise UserError(f"{where}: {file or 'an empty name'} is not in the training set")
    return found


def _index(text: str | None, count: int, where: str) -> int:
    value = _number(text)
    if not (value.is_integer() and 0 <= value < count):
        raise UserError(f"{where}: index {text} is not in the training set, which has {count} images")
    return int(value)


def _number(text: str | None) -> float:
    try:
        return float(text or "")
    except ValueError:
        return math.nan
