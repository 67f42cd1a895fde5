"""Native patches of images, never resized, and their features: resizing would erase the traces of synthesis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from usb_rsmatch.data.images.decode import UnreadableImage, image_size, quiet_bombs, read_image
from usb_rsmatch.data.sources.source import DECODE_THREADS
from usb_rsmatch.detection.residual_features import residual_features
from usb_rsmatch.errors import UserError
from usb_rsmatch.inference.file_history import Step, applied
from usb_rsmatch.inference.input_images import ArrayImage, ImageList
from usb_rsmatch.progress import Progress

LARGEST = 64  # pixels of a patch
GRID = 16  # patches begin at multiples: the blocks of JPEG files with subsampled chroma
MANY = 4  # patches of an image if all images are large enough
BATCH = 256
SIZE_SAMPLE = 2000  # largest number of files whose sizes are read

StepsOf = Callable[[int], Sequence[Step]]


@dataclass(frozen=True)
class Patches:
    """`side` in pixels, `channels` 1 or 3, and `count` patches of every image, the same for both sides of an audit."""

    side: int
    channels: int
    count: int

    @classmethod
    def of(cls, real: ImageList, pool: ImageList, side: int | None, smallest: int) -> Patches:
        """Patches that nearly all images contain; UserError if `side` is larger, or images are under `smallest` px."""
        sizes = [_sides(images) for images in (real, pool)]
        native = int(min(np.percentile(each, 1, method="lower") for each in sizes))
        if native < smallest:
            raise UserError(f"images of {native} px are too small: a detector needs {smallest} px")
        if side is not None and side > native:
            raise UserError(f"--size {side}: images of {native} px are smaller; nothing is enlarged")
        chosen = side or min(LARGEST, native)
        channels = 1 if real.is_grey() and pool.is_grey() else 3
        return cls(chosen, channels, MANY if native >= 2 * chosen + GRID else 1)

    def features(
        self, images: ImageList, rows: np.ndarray, steps_of: StepsOf, label: str
    ) -> tuple[np.ndarray, np.ndarray, dict[str, str]]:
        """The readable ones of `rows`, their features float32 [n, d], mean over patches, and why others failed."""
        kept: list[int] = []
        parts: list[np.ndarray] = []
        unreadable: dict[str, str] = {}

        def read(row: int) -> np.ndarray | str:
            try:
                return self.cut(applied(steps_of(row), opened(images, row, self.channels)))
            except UnreadableImage as error:
                return error.reason
            except ValueError as error:
                return str(error)

        with quiet_bombs(), Progress(len(rows), label) as progress, ThreadPoolExecutor(DECODE_THREADS) as threads:
            for start in range(0, len(rows), BATCH):
                batch = rows[start : start + BATCH].tolist()
                found = list(threads.map(read, batch))
                good = [patches for patches in found if not isinstance(patches, str)]
                kept += [row for row, patches in zip(batch, found, strict=True) if not isinstance(patches, str)]
                unreadable |= {
                    images.names[row]: why for row, why in zip(batch, found, strict=True) if isinstance(why, str)
                }
                if good:
                    each = residual_features(np.concatenate(good))
                    parts.append(each.reshape(len(good), self.count, -1).mean(1))
                progress.update(len(batch))
        features = np.concatenate(parts) if parts else np.empty((0, 1), np.float32)
        return np.array(kept, dtype=np.int64), features, unreadable

    def cut(self, image: Image.Image) -> np.ndarray:
        """uint8 [count, side, side, C] from an image's middle, or spread over it; ValueError if it is smaller."""
        width, height = image.size
        if min(width, height) < self.side:
            raise ValueError(f"{width} x {height} is smaller than the {self.side} px that are analysed")
        places = (0.5,) if self.count == 1 else (0.2, 0.8)
        pixels = np.asarray(image).reshape(height, width, self.channels)
        lefts, tops = ([int((length - self.side) * p) // GRID * GRID for p in places] for length in (width, height))
        return np.stack([pixels[t : t + self.side, left : left + self.side] for t in tops for left in lefts])


def opened(images: ImageList, row: int, channels: int) -> Image.Image:
    """An image with its native pixels, "L" or "RGB"; UnreadableImage if it cannot be read."""
    item: Any = images.items[row]
    if isinstance(item, ArrayImage):
        pixels = item.read()[0]
        image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    else:
        image = read_image(item, images.names[row])
    return image.convert("L" if channels == 1 else "RGB")


def _sides(images: ImageList) -> list[int]:
    """The shorter sides of an evenly spaced sample of the images; UserError if none can be read."""
    rows = np.unique(np.linspace(0, len(images) - 1, min(SIZE_SAMPLE, len(images))).astype(np.int64))
    sides = []
    for row in rows:
        item: Any = images.items[row]
        size = item.images.shape[1:3] if isinstance(item, ArrayImage) else image_size(item)
        if size is not None:
            sides.append(min(size))
    if not sides:
        raise UserError(f"none of the {len(images)} images can be read; the first is {images.names[0]}")
    return sides
