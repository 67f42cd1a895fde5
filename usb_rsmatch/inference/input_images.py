"""Input images by file, folder, glob, array or list of paths: read in batches with the preprocessing of a pool."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from usb_rsmatch.data.images.decode import UnreadableImage, fit, fit_array, quiet_bombs, read_image
from usb_rsmatch.data.images.file_index import file_index
from usb_rsmatch.data.pool.preprocessing import Pipeline
from usb_rsmatch.data.sources.archives import is_archive
from usb_rsmatch.data.sources.npz import read_npy, read_npz
from usb_rsmatch.data.sources.source import DECODE_THREADS
from usb_rsmatch.errors import UserError

PREFETCH = 2  # batches that are decoded in advance


@dataclass(frozen=True)
class Batch:
    """Images at `rows` int64 [n] of the list: uint8 [n, size, size, C], without unreadable ones.

    `failed` maps each unreadable row to the reason.
    """

    rows: np.ndarray
    images: np.ndarray
    failed: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ArrayImage:
    """Image `row` of an array [N, H, W, C] in memory or on disk."""

    images: Any
    row: int

    def read(self) -> np.ndarray:
        """uint8 [1, H, W, C]."""
        pixels: np.ndarray = self.images[np.array([self.row])]
        return pixels


class ImageList:
    """An ordered list of image names whose pixels are read on demand; at most `PREFETCH` batches are in memory."""

    def __init__(self, names: Sequence[str], items: Sequence[Path | ArrayImage]) -> None:
        self.names, self.items = list(names), list(items)

    @classmethod
    def of_array(cls, images: Any, name: str = "image") -> ImageList:
        """The images of an array uint8 [N, H, W, C], in memory or on disk, named `name#0`, `name#1`, ..."""
        rows = range(len(images))
        return cls([f"{name}#{row}" for row in rows], [ArrayImage(images, row) for row in rows])

    def __len__(self) -> int:
        return len(self.names)

    def take(self, rows: np.ndarray) -> ImageList:
        """The images at `rows` int64 [n], in that order."""
        return ImageList([self.names[row] for row in rows], [self.items[row] for row in rows])

    def native_side(self) -> int:
        """The shorter side of the first image that can be read; UserError if none can."""
        for item in self.items:
            if isinstance(item, ArrayImage):
                return min(item.images.shape[1:3])
            try:
                return min(read_image(item).size)
            except UserError:
                continue
        raise UserError(f"none of the {len(self)} images can be read; the first is {self.names[0]}")

    def is_grey(self, sample: int = 64) -> bool:
        """Whether an evenly spaced sample of the images has no colours."""
        rows = np.unique(np.linspace(0, len(self) - 1, min(sample, len(self))).astype(np.int64))
        for row in rows:
            item = self.items[row]
            try:
                pixels = item.read()[0] if isinstance(item, ArrayImage) else np.asarray(read_image(item))
            except UserError:
                continue
            if pixels.ndim == 3 and bool((pixels != pixels[..., :1]).any()):
                return False
        return True

    def batches(self, pipeline: Pipeline, batch_size: int = 256) -> Iterator[Batch]:
        """All images in order through `pipeline`, decoded in advance by a few threads."""
        with quiet_bombs(), ThreadPoolExecutor(DECODE_THREADS) as threads:
            waiting: list[tuple[range, list[Future[np.ndarray | str]]]] = []
            starts = iter(range(0, len(self), batch_size))
            try:
                while True:
                    while len(waiting) < PREFETCH and (start := next(starts, None)) is not None:
                        rows = range(start, min(start + batch_size, len(self)))
                        waiting.append((rows, [threads.submit(self._read, row, pipeline) for row in rows]))
                    if not waiting:
                        return
                    rows, futures = waiting.pop(0)
                    read = [future.result() for future in futures]
                    good = [pixels for pixels in read if not isinstance(pixels, str)]
                    empty = np.empty((0, pipeline.size, pipeline.size, pipeline.channels), np.uint8)
                    yield Batch(
                        np.array([row for row, pixels in zip(rows, read, strict=True) if not isinstance(pixels, str)]),
                        np.stack(good) if good else empty,
                        {row: pixels for row, pixels in zip(rows, read, strict=True) if isinstance(pixels, str)},
                    )
            finally:
                threads.shutdown(cancel_futures=True)

    def _read(self, row: int, pipeline: Pipeline) -> np.ndarray | str:
        """One image as uint8 [size, size, C], or the reason why it is unreadable; preprocessed as a pool's images."""
        item = self.items[row]
        try:
            if isinstance(item, ArrayImage):
                pixels = fit_array(item.read(), pipeline.size, pipeline.channels, pipeline.fit)
            else:
                image = read_image(item, self.names[row])
                pixels = fit(image, pipeline.size, pipeline.channels, pipeline.fit)[None]
            return pipeline.alter(pixels)[0]
        except UnreadableImage as error:
            return error.reason


def open_images(places: Sequence[str | os.PathLike[str]]) -> ImageList:
    """The images of files, folders, globs, npz and npy files and lists of paths, in the order given, each file once.

    Folders are searched recursively, in an order that does not depend on the disk. A list is a text file (.txt) with a
    path per line, absolute or relative to the list's folder. Raises UserError for a path that does not exist, for an
    archive, and if there is no image.
    """
    names: list[str] = []
    items: list[Path | ArrayImage] = []
    seen: set[str] = set()
    for place in places:
        for path in _expand(os.fspath(place)):
            key = os.path.abspath(path)
            if key in seen:
                continue
            seen.add(key)
            if is_archive(path):
                raise UserError(f"{path}: is an archive; unpack it into a folder")
            if path.lower().endswith((".npz", ".npy")):
                array = read_npz(path)[0] if path.lower().endswith(".npz") else read_npy(path)
                packed = ImageList.of_array(array, path)
                names += packed.names
                items += packed.items
            else:
                names.append(path)
                items.append(Path(path))
    if not names:
        raise UserError(f"{', '.join(map(str, places)) or 'IMAGES'}: contains no images; check the path")
    return ImageList(names, items)


def _expand(place: str) -> list[str]:
    """The files of a path: the file itself, a folder's images, those of a list, or a glob's files and folders."""
    path = os.path.expanduser(place)
    if path.lower().endswith(".txt") and os.path.isfile(path):
        return _listed(path)
    if os.path.isdir(path):
        index = file_index(Path(path))
        return [os.path.join(path, *index.place(i).split("/")) for i in range(len(index))]
    if os.path.exists(path):
        return [path]
    found = sorted(glob.glob(path, recursive=True)) if glob.has_magic(path) else []
    if not found:
        raise UserError(f"{place}: no such file or folder; check the path")
    return [file for match in found for file in (_expand(glob.escape(match)) if os.path.isdir(match) else [match])]


def _listed(path: str) -> list[str]:
    """The files that a text file names, one per line; UserError if one of them does not exist."""
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        lines = [line.rstrip("\n") for line in file if line.strip()]
    files = [os.path.join(os.path.dirname(path), os.path.expanduser(line)) for line in lines]
    missing = [line for line, file in zip(lines, files, strict=True) if not os.path.isfile(file)]
    if missing:
        raise UserError(
            f"{path}: {len(missing)} of the {len(files)} files that it names do not exist, the first: {missing[0]}; "
            "paths are absolute, or relative to the folder of the list"
        )
    return files
