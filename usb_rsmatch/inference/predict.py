"""`usb-rsmatch predict`: from images to a CSV with class, confidence and probability of synthetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from usb_rsmatch.csv_files import Cell, csv_rows, refuse_existing
from usb_rsmatch.errors import UserError
from usb_rsmatch.inference.input_images import ImageList
from usb_rsmatch.progress import Progress


@dataclass(frozen=True)
class PredictionSummary:
    """The number of images with a prediction, and the reason for each unreadable image, by name."""

    written: int
    unreadable: dict[str, str]


def predict(run: Any, images: ImageList, out: Path, batch_size: int = 256) -> PredictionSummary:
    """Write one row per image: file, class, confidence (probability of that class), synthetic, error.

    `synthetic` is the detector's probability, empty if the run has none; `error` is the reason why a file cannot
    be read, and the other cells are then empty. Raises UserError, and writes nothing, if `out` exists or is not
    writable, and if no image can be read.
    """
    refuse_existing(out)
    unreadable: dict[str, str] = {}
    columns = ("file", "class", "confidence", "synthetic", "error")
    with csv_rows(out, columns) as write, Progress(len(images), "predict") as progress:
        for batch in images.batches(run.pipeline, batch_size):
            probabilities = run.predict(batch.images, batch_size)
            scores: Sequence[Cell] = (
                run.synthetic_score(batch.images, batch_size).tolist() if run.has_detector else [""] * len(batch.rows)
            )
            rows: dict[int, list[Cell]] = {}
            for row, p, score in zip(batch.rows.tolist(), probabilities, scores, strict=True):
                rows[row] = [images.names[row], run.classes[int(p.argmax())], float(p.max()), score, ""]
            for row, reason in batch.failed.items():
                unreadable[images.names[row]] = reason
                rows[row] = [images.names[row], "", "", "", reason]
            for _, cells in sorted(rows.items()):
                write(cells)
            progress.update(len(rows))
        if len(unreadable) == len(images):
            name, reason = next(iter(unreadable.items()))
            raise UserError(f"none of the {len(images)} images can be read; the first is {name} ({reason})")
    return PredictionSummary(len(images) - len(unreadable), unreadable)


def unreadable_lines(unreadable: dict[str, str], most: int = 10) -> list[str]:
    """Lines about unreadable files: the first few by name, and how many there are."""
    lines = [f"cannot be read: {name} ({reason})" for name, reason in list(unreadable.items())[:most]]
    if len(unreadable) > most:
        lines.append(f"... and {len(unreadable) - most} more that cannot be read")
    return lines
