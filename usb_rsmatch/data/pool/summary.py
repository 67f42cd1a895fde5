"""A summary of a pool before training: a table of its parts, and a contact sheet of sample images."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from usb_rsmatch.data.pool.image_set import ImageSet
from usb_rsmatch.data.pool.pool import HybridPool
from usb_rsmatch.data.pool.provenance import Provenance
from usb_rsmatch.io import atomic_write

SHEET_CLASSES, SHEET_COLUMNS, SHEET_TILE = 20, 8, 48


def pool_table(pool: HybridPool) -> str:
    """The pool as a plain text table: a line for each part, provenance and generator."""
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
        if not part.is_real.all():
            for number, generator in enumerate(part.generators):
                rows.append(_row(f"  {generator}", part.take(part.generator == number), pool.classes))
            if part.is_unknown.any():
                collected = [source for source in pool.sources if source["provenance"] == Provenance.UNKNOWN.word]
                rows += [(f"    {source['name']}", str(source["taken"]), "", "") for source in collected]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(n) for cell, n in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    height, width, channels = pool.test.images.shape[1:]
    colour = "grey" if channels == 1 else "colour"
    head = f"{pool.spec.name}: {len(pool.classes)} classes, {height} x {width} px, {colour}"
    lines += pool.notes
    return "\n".join([head, *lines])


def contact_sheet(pool: HybridPool, path: str | PathLike[str]) -> None:
    """Save a PNG with a row for each class (at most `SHEET_CLASSES`): real images left, synthetic ones in the middle,
    those of unknown provenance right; without the columns that the pool has no images of, except for the first two.

    Images of unknown class are in the last row.
    """
    images = pool.unlabeled
    shown = [*range(min(len(pool.classes), SHEET_CLASSES)), -1]
    titles = [kind.word for kind in Provenance][: 3 if images.is_unknown.any() else 2]
    sides = [images.provenance == kind for kind in range(len(titles))]
    picks = [[np.flatnonzero((images.labels == c) & side)[:SHEET_COLUMNS] for side in sides] for c in shown]
    rows = [(c, pick) for c, pick in zip(shown, picks, strict=True) if any(map(len, pick))]
    tile, gap, margin = SHEET_TILE + 2, SHEET_TILE // 2, 110
    side_width = SHEET_COLUMNS * tile
    sheet = Image.new(
        "RGB", (margin + len(sides) * side_width + (len(sides) - 1) * gap, 20 + len(rows) * tile), "white"
    )
    draw = ImageDraw.Draw(sheet)
    draw.font = _font()
    for side, title in enumerate(titles):
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


def _row(name: str, part: ImageSet, classes: Sequence[str]) -> tuple[str, str, str, str]:
    counts = list(part.by_class(classes).values())[: len(classes)]
    least, most = min(counts), max(counts)
    unknown = int((part.labels < 0).sum())
    return name, str(len(part)), str(least) if least == most else f"{least} to {most}", str(unknown or "")


def _tile(pixels: np.ndarray) -> Image.Image:
    """One image at the sheet's tile size, without smoothing, so that single pixels stay visible."""
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).convert("RGB")
    return picture.resize((SHEET_TILE, SHEET_TILE), Image.Resampling.NEAREST)


def _font() -> Any:
    """A font with more than ASCII letters if the system has one; Pillow's own draws a box for other letters."""
    for name in ("DejaVuSans.ttf", "Arial Unicode.ttf", "arial.ttf"):
        with contextlib.suppress(OSError):
            return ImageFont.truetype(name, 10)
    return ImageFont.load_default()
