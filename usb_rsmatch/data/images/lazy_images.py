"""Lazily loaded images that behave like one array, for pools larger than memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np


class Reader(Protocol):
    """Reads images by row, uint8 [n, S, S, C]."""

    def read(self, rows: np.ndarray) -> np.ndarray: ...


class ArrayReader:
    """An array uint8 [N, S, S, C] in memory as a reader."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = images

    def read(self, rows: np.ndarray) -> np.ndarray:
        return self.images[rows]


class LazyImages:
    """uint8 [N, S, S, C]: image i is row `row[i]` of reader `part[i]`; indexing works as in NumPy.

    Joining and selecting read nothing; indexing reads only the selected images.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(
        self, readers: Sequence[Reader], part: np.ndarray, row: np.ndarray, image_shape: tuple[int, ...]
    ) -> None:
        self.readers, self.part, self.row = tuple(readers), part, row
        self.shape: tuple[int, ...] = (len(row), *image_shape)

    @classmethod
    def of(cls, reader: Reader, rows: np.ndarray, image_shape: tuple[int, ...]) -> LazyImages:
        """The rows int64 [N] of one reader."""
        return cls((reader,), np.zeros(len(rows), np.int16), np.asarray(rows, np.int32), image_shape)

    def __len__(self) -> int:
        return len(self.row)

    def take(self, indices: np.ndarray) -> LazyImages:
        """The images at `indices` (int64 or bool), unread."""
        return LazyImages(self.readers, self.part[indices], self.row[indices], self.shape[1:])

    def __getitem__(self, key: Any) -> np.ndarray:
        if isinstance(key, (int, np.integer)):
            return self.readers[int(self.part[key])].read(self.row[key : key + 1 or None])[0]
        part, row = self.part[key], self.row[key]
        if len(row) and (part == part[0]).all():
            return self.readers[int(part[0])].read(row)
        images = np.empty((len(row), *self.shape[1:]), dtype=np.uint8)
        for number in np.unique(part).tolist():
            here = part == number
            images[here] = self.readers[number].read(row[here])
        return images

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self[:] if dtype is None else self[:].astype(dtype)


Images: TypeAlias = np.ndarray | LazyImages


def take(images: Images, indices: np.ndarray) -> Images:
    """The images at `indices` (int64 or bool); lazy ones stay unread."""
    return images.take(indices) if isinstance(images, LazyImages) else images[indices]


def join(parts: Sequence[Images]) -> Images:
    """Concatenate images: an array if all parts are arrays, otherwise lazy.

    Raises ValueError if they differ in size or channels.
    """
    shapes = {part.shape[1:] for part in parts}
    if len(shapes) != 1:
        raise ValueError(f"images of different shapes cannot be joined: {sorted(shapes)}")
    arrays = [part for part in parts if isinstance(part, np.ndarray)]
    if len(arrays) == len(parts):
        return np.concatenate(arrays)
    readers: list[Reader] = []
    numbers, rows = [], []
    for part in parts:
        if isinstance(part, np.ndarray):
            lazy = LazyImages.of(ArrayReader(part), np.arange(len(part)), part.shape[1:])
        else:
            lazy = part
        if not len(lazy):
            continue
        own = []
        for reader in lazy.readers:
            if not any(reader is known for known in readers):
                readers.append(reader)
            own.append(next(i for i, known in enumerate(readers) if known is reader))
        numbers.append(np.array(own, dtype=np.int16)[lazy.part])
        rows.append(lazy.row)
    part, row = (np.concatenate([np.empty(0, kind), *of]) for kind, of in ((np.int16, numbers), (np.int32, rows)))
    return LazyImages(readers, part, row, next(iter(shapes)))
