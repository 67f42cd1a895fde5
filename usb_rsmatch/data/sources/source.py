"""The base classes of sources: images that are listed first and read later, in memory, in files, or joined."""

from __future__ import annotations

import contextlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from usb_rsmatch.cache import cache_folder
from usb_rsmatch.data.images.decode import UnreadableImage, fit_array, image_size, quiet_bombs, read_image
from usb_rsmatch.data.images.decode import fit as fitted
from usb_rsmatch.data.images.file_index import KEEP_FROM, FileList, describe, size_of
from usb_rsmatch.data.images.image_file import StoredImages
from usb_rsmatch.errors import UserError
from usb_rsmatch.io import write_json

DECODE_THREADS = 4  # Pillow decodes without the interpreter lock
SHOW_PROGRESS_FROM = 5000  # files
STORED_LIMIT = 256 * 2**20  # bytes: reading decoded images from a file is nearly as fast as from memory
SKIP_LIMIT = 0.01  # share of a source's files that may be unreadable
SKIP_ALWAYS = 1  # file that may be unreadable in a small source, whatever its share


class Source(ABC):
    """N images that are listed in an order independent of the disk, and read on demand.

    `labels` is int64 [N], -1 for unknown; `generator` is int16 [N] into `generators`. A source that is `in_order` is
    already in a balanced drawing order. The images that a pool takes from a source are kept in memory up to
    `resident_limit` bytes; above that they are read when they are needed. `numbers` int [N] are the numbers of the
    images in messages, if they differ from their order. `notes` are lines for the user on how it was read.
    """

    resident_limit = 2 * 2**30

    def __init__(
        self,
        origin: str,
        labels: np.ndarray,
        generators: Sequence[str] = ("",),
        generator: np.ndarray | None = None,
        in_order: bool = False,
        numbers: np.ndarray | None = None,
    ) -> None:
        self.origin = origin
        self.in_order = in_order
        self.numbers = numbers
        self.labels = np.asarray(labels, dtype=np.int64)
        self.generators = tuple(generators)
        self.generator = np.zeros(len(self.labels), dtype=np.int16) if generator is None else generator
        self.skipped: dict[str, str] = {}
        self.notes: list[str] = []

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def load(self, indices: np.ndarray, size: int, channels: int, fit: str = "crop") -> np.ndarray:
        """The images at `indices` as uint8 [n, size, size, channels]; `fit` is how others become square (`FITS`).

        Raises UserError naming an image that cannot be read.
        """

    def some_sizes(self, most: int) -> list[tuple[int, int]]:
        """Width and height in pixels of at most `most` evenly spaced images, without those that cannot be read."""
        return []

    def name(self, index: int) -> str:
        """The name of an image in messages."""
        return f"{self.origin}, image {index if self.numbers is None else int(self.numbers[index])}"

    def digests(self, indices: np.ndarray, size: int, channels: int) -> np.ndarray | None:
        """The digests uint64 [n, 2] of the images that `load` returns, if known without reading them; else None."""
        return None

    def file_sizes(self, indices: np.ndarray) -> np.ndarray:
        """The sizes in bytes int64 [n] of the images' files, -1 for images that are not files of their own."""
        return np.full(len(indices), -1, dtype=np.int64)

    def without_unreadable(self, limit: float = SKIP_LIMIT) -> Source:
        """This source without unreadable images; `skipped` lists each of them with its reason.

        Raises UserError where more are unreadable than the share `limit` and than `SKIP_ALWAYS`.
        """
        return self


class ArraySource(Source):
    """Images uint8 [N, H, W, C] in memory, with their digests [N, 2] if known, or stored in a file."""

    def __init__(
        self,
        origin: str,
        images: np.ndarray | StoredImages,
        labels: np.ndarray,
        *columns: Any,
        digests: np.ndarray | None = None,
        **options: Any,
    ) -> None:
        super().__init__(origin, labels, *columns, **options)
        self.images, self._digests = images, digests
        if isinstance(images, StoredImages):
            self.resident_limit = STORED_LIMIT

    def load(self, indices: np.ndarray, size: int, channels: int, fit: str = "crop") -> np.ndarray:
        return fit_array(self.images[indices], size, channels, fit)

    def some_sizes(self, most: int) -> list[tuple[int, int]]:
        return [(self.images.shape[2], self.images.shape[1])] if len(self) else []

    def digests(self, indices: np.ndarray, size: int, channels: int) -> np.ndarray | None:
        if self.images.shape[1:] != (size, size, channels):
            return None
        if isinstance(self.images, StoredImages):
            return self.images.digests_at(indices)
        return None if self._digests is None else self._digests[indices]


class FileSource(Source):
    """Images in files (or in the bytes of files), decoded by a few threads when they are needed."""

    resident_limit = 4 * 2**30  # decoding is expensive: `usb-rsmatch pool --pack` does it once for larger pools

    def __init__(
        self, origin: str, files: Sequence[Path | bytes], labels: np.ndarray, *columns: Any, **options: Any
    ) -> None:
        super().__init__(origin, labels, *columns, **options)
        self.files = files

    def load(self, indices: np.ndarray, size: int, channels: int, fit: str = "crop") -> np.ndarray:
        images = np.empty((len(indices), size, size, channels), dtype=np.uint8)

        def place(row: int) -> None:
            index = int(indices[row])
            file = self.files[index]
            called = self.name(index) if isinstance(file, bytes) else None
            images[row] = fitted(read_image(file, called), size, channels, fit)

        _each(place, len(indices), f"reading {self.origin}")
        return images

    def some_sizes(self, most: int) -> list[tuple[int, int]]:
        rows = np.unique(np.linspace(0, len(self) - 1, min(len(self), most)).astype(np.int64))
        return [size for row in rows if (size := image_size(self.files[int(row)])) is not None]

    def take(self, indices: np.ndarray) -> FileSource:
        """The source of the images at `indices` int64 [n] alone."""
        chosen, files = copy(self), self.files
        chosen.files = files.take(indices) if isinstance(files, FileList) else [files[i] for i in indices]
        chosen.labels, chosen.generator = self.labels[indices], self.generator[indices]
        chosen.numbers = None if self.numbers is None else self.numbers[indices]
        return chosen

    def _checked_file(self) -> Path | None:
        """The cache file for the rows of unreadable images; None for few images, or images that are not files."""
        described = self.described() if len(self) >= KEEP_FROM else None
        return None if described is None else cache_folder() / "checked" / f"{described[0]}.json"

    def described(self) -> tuple[str, str] | None:
        """Fingerprint and listing of the files as in `FileIndex`, None for images that are not files."""
        if isinstance(self.files, FileList):
            return self.files.fingerprint, self.files.listing
        files = [file for file in self.files if isinstance(file, Path)]
        return describe(files) if files else None

    def file_sizes(self, indices: np.ndarray) -> np.ndarray:
        if isinstance(self.files, FileList):
            return self.files.sizes[indices]
        files = [self.files[i] for i in indices]
        return np.array([-1 if isinstance(file, bytes) else size_of(file) for file in files], dtype=np.int64)

    def name(self, index: int) -> str:
        file = self.files[index]
        return super().name(index) if isinstance(file, bytes) else str(file)

    def without_unreadable(self, limit: float = SKIP_LIMIT) -> Source:
        reasons: dict[int, str] = {}

        def probe(row: int) -> None:
            try:
                read_image(self.files[row], self.name(row))
            except UnreadableImage as error:
                reasons[row] = error.reason

        kept = self._checked_file()
        bad = read_rows(kept)
        if bad is None:
            _each(probe, len(self), f"checking {self.origin}")
            write_rows(kept, list(reasons))
        else:  # all files were checked before and are unchanged: only check the unreadable ones again
            _each(lambda i: probe(bad[i]), len(bad), f"checking {self.origin}")
        if len(reasons) > max(limit * len(self), min(SKIP_ALWAYS, len(self) - 1)):
            first = min(reasons)
            raise UserError(
                f"{self.origin}: {len(reasons)} of {len(self)} images cannot be read, more than skip_limit: {limit:g}; "
                f"the first: {self.name(first)} ({reasons[first]}); restore or remove them, or raise skip_limit"
            )
        keep = np.array([row for row in range(len(self)) if row not in reasons], dtype=np.int64)
        rest = self.take(keep)
        rest.skipped = {self.name(row): reasons[row] for row in sorted(reasons)}
        return rest


class JoinedSource(Source):
    """Two sources concatenated."""

    def __init__(self, first: Source, second: Source) -> None:
        super().__init__(first.origin, np.concatenate([first.labels, second.labels]))
        self.first, self.second = first, second
        self.resident_limit = min(first.resident_limit, second.resident_limit)

    def load(self, indices: np.ndarray, size: int, channels: int, fit: str = "crop") -> np.ndarray:
        images = np.empty((len(indices), size, size, channels), dtype=np.uint8)
        early = indices < len(self.first)
        images[early] = self.first.load(indices[early], size, channels, fit)
        images[~early] = self.second.load(indices[~early] - len(self.first), size, channels, fit)
        return images

    def file_sizes(self, indices: np.ndarray) -> np.ndarray:
        early = indices < len(self.first)
        sizes = np.empty(len(indices), dtype=np.int64)
        sizes[early] = self.first.file_sizes(indices[early])
        sizes[~early] = self.second.file_sizes(indices[~early] - len(self.first))
        return sizes

    def name(self, index: int) -> str:
        early = index < len(self.first)
        return self.first.name(index) if early else self.second.name(index - len(self.first))


def read_rows(path: Path | None) -> list[int] | None:
    """Row numbers from a cache file, None if there are none."""
    if path is None:
        return None
    try:
        return [int(row) for row in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        return None


def write_rows(path: Path | None, rows: list[int]) -> None:
    """Write row numbers to a cache file, if there is one."""
    if path is not None:
        with contextlib.suppress(OSError):
            write_json(path, sorted(rows))


def _each(work: Callable[[int], None], n: int, title: str) -> None:
    """Call `work` on 0..n-1 in threads, with a progress bar on a terminal if there are many."""
    if n == 1:  # a single item: threads would cost more than the image
        with quiet_bombs():
            return work(0)
    with quiet_bombs(), ThreadPoolExecutor(DECODE_THREADS) as threads:
        results = threads.map(work, range(n))
        hidden = None if n >= SHOW_PROGRESS_FROM else True  # None: shown on terminals only
        try:
            for _ in tqdm(results, total=n, desc=title, disable=hidden, leave=False):
                pass
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise
