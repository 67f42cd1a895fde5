"""A pool looked at before it is trained on: a table, a sheet of samples, and what trivial cues give away."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from usb_rsmatch.data.decode import quiet_bombs
from usb_rsmatch.data.pool import HybridPool
from usb_rsmatch.data.records import REAL, ImageSet
from usb_rsmatch.io import atomic_write

WARN_OVER = 0.6  # AUROC of a trivial cue from which on a detector may read it instead of the synthesis
SHEET_CLASSES, SHEET_COLUMNS, SHEET_TILE = 20, 8, 48
SAMPLE = 5000  # images a side whose cues are measured


def pool_table(pool: HybridPool) -> str:
    """The pool as a plain text table: a line for each part, and for each generator in the unlabelled one."""
    rows = [("part", "images", "a class", "unknown class")]
    parts = {
        "labeled": pool.labeled,
        "unlabeled": pool.unlabeled,
        "validation": pool.validation,
        "test": pool.test,
    }
    for name, part in parts.items():
        if part is None:
            continue
        rows.append(_row(name, part, pool.classes))
        if part.is_synthetic.any():
            rows.append(_row(f"  {REAL}", part.take(~part.is_synthetic), pool.classes))
            for number, generator in enumerate(part.generators[1:], start=1):
                rows.append(_row(f"  {generator}", part.take(part.generator == number), pool.classes))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(n) for cell, n in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    height, width, channels = pool.test.images.shape[1:]
    colour = "grey" if channels == 1 else "colour"
    head = f"{pool.spec.name}: {len(pool.classes)} classes, {height} x {width} px, {colour}"
    if pool.duplicates:
        first = f", the first: {pool.duplicate_names[0]}" if pool.duplicate_names else ""
        lines.append(f"real training images that are also in the test set: {pool.duplicates}{first}; remove them there")
    return "\n".join([head, *lines])


def contact_sheet(pool: HybridPool, path: str | PathLike[str]) -> None:
    """Save a PNG with a row for each class (at most `SHEET_CLASSES`), real images left, synthetic right.

    Synthetic images of unknown class stand in a last row of their own.
    """
    images = pool.unlabeled
    shown = [*range(min(len(pool.classes), SHEET_CLASSES)), -1]
    sides = [~images.is_synthetic, images.is_synthetic]
    picks = [[np.flatnonzero((images.labels == c) & side)[:SHEET_COLUMNS] for side in sides] for c in shown]
    rows = [(c, pick) for c, pick in zip(shown, picks, strict=True) if any(map(len, pick))]
    tile, gap, margin = SHEET_TILE + 2, SHEET_TILE // 2, 110
    side_width = SHEET_COLUMNS * tile
    sheet = Image.new("RGB", (margin + 2 * side_width + gap, 20 + len(rows) * tile), "white")
    draw = ImageDraw.Draw(sheet)
    draw.font = _font()
    for side, title in enumerate(("real", "synthetic")):
        draw.text((margin + side * (side_width + gap), 4), title, fill="black")
    for line, (c, pick) in enumerate(rows):
        top = 20 + line * tile
        draw.text((4, top + tile // 3), pool.classes[c][:18] if c >= 0 else "unknown", fill="black")
        for side, members in enumerate(pick):
            for column, index in enumerate(members):
                left = margin + side * (side_width + gap) + column * tile
                sheet.paste(_tile(images.images[index]), (left, top))
    with atomic_write(path) as temporary:
        sheet.save(temporary, format="PNG")


def shortcut_cues(pool: HybridPool) -> dict[str, float | None]:
    """AUROC of provenance from each of some cues that have nothing to do with synthesis, between 0.5 and 1.

    The first are read from the pool's pixels, which is what a detector sees; those of the files ("file ...")
    show what a pool without the common pipeline would give away, and are None where a side does not come from
    files. At most `SAMPLE` images a side count, the labelled ones left out. An empty answer means that a side
    has no images.
    """
    images = pool.unlabeled
    real = _spread(np.flatnonzero(~images.is_synthetic & ~images.is_labeled))
    synthetic = _spread(np.flatnonzero(images.is_synthetic))
    if not len(real) or not len(synthetic):
        return {}
    names = [[pool.names[i] for i in side] if pool.names else [] for side in (real, synthetic)]
    return {**pixel_cues(images.images[real], images.images[synthetic]), **file_cues(*names)}


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
    """A line for each cue that gives provenance away."""
    return [
        f"{name} alone tells real from synthetic with AUROC {value:.2f} (over {WARN_OVER})"
        for name, value in cues.items()
        if value is not None and value > WARN_OVER
    ]


PIXEL_CUES: dict[str, Callable[[np.ndarray], float]] = {
    "grey levels in use": lambda image: float(len(np.unique(image))),
    "share of exact zeros": lambda image: float((image == 0).mean()),
    "share of exact 255": lambda image: float((image == 255).mean()),
}
FILE_CUES = ("file size", "file image size", "file mode", "file format", "file JPEG tables")


def _row(name: str, part: ImageSet, classes: Sequence[str]) -> tuple[str, str, str, str]:
    counts = list(part.by_class(classes).values())[: len(classes)]
    least, most = min(counts), max(counts)
    unknown = int((part.labels < 0).sum())
    return name, str(len(part)), str(least) if least == most else f"{least} to {most}", str(unknown or "")


def _tile(pixels: np.ndarray) -> Image.Image:
    """One image at the sheet's size, without smoothing, so that single pixels can be seen."""
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).convert("RGB")
    return picture.resize((SHEET_TILE, SHEET_TILE), Image.Resampling.NEAREST)


def _font() -> Any:
    """One with more than ASCII letters, where the system has it: Pillow's own draws a box for the others."""
    for name in ("DejaVuSans.ttf", "Arial Unicode.ttf", "arial.ttf"):
        with contextlib.suppress(OSError):
            return ImageFont.truetype(name, 10)
    return ImageFont.load_default()


def _spread(indices: np.ndarray) -> np.ndarray:
    """At most `SAMPLE` of some indices, evenly spread."""
    return indices[np.unique(np.linspace(0, len(indices) - 1, min(SAMPLE, len(indices))).astype(np.int64))]


def _auroc(values: np.ndarray, truth: np.ndarray) -> float:
    """Of the better direction."""
    from sklearn.metrics import roc_auc_score

    score = float(roc_auc_score(truth, values))
    return max(score, 1 - score)


def _ranked(values: list[float | str], truth: np.ndarray) -> np.ndarray:
    """Numbers as they are; each name as the share of synthetic images among those that bear it."""
    if not isinstance(values[0], str):
        return np.array(values, dtype=np.float64)
    _, names = np.unique(values, return_inverse=True)
    return (np.bincount(names, weights=truth) / np.bincount(names))[names]


def _file_facts(name: str) -> tuple[float, float, str, str, str] | None:
    """What a file says without being decoded, in the order of `FILE_CUES`; None where `name` is no image file."""
    with contextlib.suppress(Exception):  # a bomb or a damaged file can make a decoder fail in any way
        data = Path(name).read_bytes()
        with quiet_bombs(), Image.open(io.BytesIO(data)) as image:
            tables = repr(getattr(image, "quantization", None))
            return float(len(data)), float(image.width * image.height), image.mode, str(image.format), tables
    return None
