"""`usb-rsmatch eval`: USB's metrics of a run on its own test set, or on any labelled source."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from usb_rsmatch.data.sources.class_names import UNKNOWN, ClassIndex
from usb_rsmatch.data.sources.dataset_registry import is_known_dataset, open_real
from usb_rsmatch.data.sources.registry import SourceRequest, open_source
from usb_rsmatch.data.sources.source import Source
from usb_rsmatch.errors import UserError
from usb_rsmatch.progress import Progress
from usb_rsmatch.usb.evaluation import classification_metrics, confusion_matrix


@dataclass(frozen=True)
class Evaluation:
    """USB's metrics over `count` images; `recall` is per class, None for a class without images.

    `unknown` counts images of a class that the run does not know: these and unreadable images are not evaluated.
    `notes` are lines on how the images were read.
    """

    metrics: Mapping[str, float]
    recall: Mapping[str, float | None]
    count: int
    unknown: int
    unreadable: Mapping[str, str]
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "count": self.count,
            "metrics": dict(self.metrics),
            "notes": list(self.notes),
            "recall": dict(self.recall),
            "unknown": self.unknown,
            "unreadable": dict(self.unreadable),
        }


def evaluate(run: Any, data: str | None = None, batch_size: int = 256) -> Evaluation:
    """Metrics of the EMA weights on `data`, by default the run's own test set.

    `data` is a source as in the configuration (`folder:PATH`, `npz:FILE`, ...), a folder of class folders, an npz
    file, or the name of a real data set, whose test set is used. Raises UserError if no image has a class that the
    run knows.
    """
    if data is None:
        return _measure(run, run.logits(run.test.images, batch_size), run.test.labels, 0, {}, run.test_notes())
    source = _open(run, data)
    known = np.flatnonzero(source.labels >= 0)
    logits, kept = [], []
    unreadable: dict[str, str] = {}
    with Progress(len(known), "eval") as progress:
        for start in range(0, len(known), batch_size):
            rows = known[start : start + batch_size]
            images, read = _load(run, source, rows, unreadable)
            logits.append(run.logits(images, batch_size))
            kept.append(read)
            progress.update(len(rows))
    if not sum(map(len, kept)):
        raise UserError(f"{data}: none of its {len(source)} images can be read and has a class of this run")
    labels = source.labels[np.concatenate(kept)]
    return _measure(run, np.concatenate(logits), labels, len(source) - len(known), unreadable, source.notes)


def _load(run: Any, source: Source, rows: np.ndarray, unreadable: dict[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """The readable images of a batch and their rows; the others are added to `unreadable`."""
    try:
        return run.pipeline.load(source, rows), rows
    except UserError:  # at least one is unreadable: find out which
        pass
    images, kept = [], []
    for row in rows:
        try:
            images.append(run.pipeline.load(source, np.array([row])))
            kept.append(row)
        except UserError as error:
            unreadable[source.name(int(row))] = getattr(error, "reason", str(error))
    empty = np.empty((0, run.pipeline.size, run.pipeline.size, run.pipeline.channels), np.uint8)
    return np.concatenate([empty, *images]), np.array(kept, dtype=np.int64)


def _open(run: Any, data: str) -> Source:
    """The labelled source that `data` names, with labels of the run's classes."""
    request = SourceRequest(ClassIndex(run.classes), generator="", layouts=run.config.layouts)
    place = os.path.expanduser(data)
    if os.path.isdir(place):
        return open_source(f"folder:{place}", request)
    if os.path.isfile(place):
        if not place.lower().endswith(".npz"):
            raise UserError(f"{data}: a labelled source is a folder of class folders or an npz file")
        return open_source(f"npz:{place}", request)
    if is_known_dataset(data):
        real = open_real(data, run.config.data_dir, run.config.labels if data == run.config.dataset else None)
        names = request.classes.of_names(list(real.classes), data)
        real.test.labels = np.where(real.test.labels < 0, UNKNOWN, names[real.test.labels])
        real.test.notes += request.classes.notes
        return real.test
    if ":" not in data:
        raise UserError(f"{data}: no such folder, npz file or data set; check the path")
    return open_source(data, request)


def _measure(
    run: Any,
    logits: np.ndarray,
    labels: np.ndarray,
    unknown: int,
    unreadable: Mapping[str, str],
    notes: Sequence[str],
) -> Evaluation:
    scores, targets = torch.from_numpy(logits), torch.from_numpy(np.asarray(labels, dtype=np.int64))
    matrix = confusion_matrix(targets, scores.argmax(1), len(run.classes)).double()
    true = matrix.sum(1)
    recall = {name: float(matrix[c, c] / true[c]) if true[c] else None for c, name in enumerate(run.classes)}
    metrics = classification_metrics(scores, targets)
    return Evaluation(metrics, recall, len(labels), unknown, dict(unreadable), tuple(dict.fromkeys(notes)))


def metrics_text(evaluation: Evaluation) -> str:
    """The metrics as lines, and each class's recall."""
    lines = [f"{'images':14s} {evaluation.count}"]
    lines += [f"{name:14s} {value:.4f}" for name, value in evaluation.metrics.items()]
    width = max(len(name) for name in evaluation.recall)
    lines += [
        f"  {name:{width}s} {'no image' if value is None else f'{value:.4f}'}"
        for name, value in evaluation.recall.items()
    ]
    if evaluation.unknown:
        lines.append(f"{evaluation.unknown} images of other classes are not evaluated")
    return "\n".join(lines)
