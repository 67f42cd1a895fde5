"""The preprocessing that every image of a pool goes through, the same for real and synthetic images."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass, replace

import numpy as np
from tqdm import tqdm

from usb_rsmatch.cache import cache_folder
from usb_rsmatch.data.images.hashes import image_digests
from usb_rsmatch.data.images.history import History, read_history, through_history
from usb_rsmatch.data.images.image_file import StoredImages
from usb_rsmatch.data.images.lazy_images import Images, LazyImages
from usb_rsmatch.data.images.reencode import cleared, through_jpeg
from usb_rsmatch.data.pool.settings import PoolConfig
from usb_rsmatch.data.sources.dataset_registry import DataSpec
from usb_rsmatch.data.sources.source import ArraySource, FileSource, JoinedSource, Source
from usb_rsmatch.io import atomic_write

CHUNK = 64 * 2**20  # bytes of images that are hashed at a time
SHOW_PROGRESS_FROM = 2**30  # bytes


@dataclass(frozen=True)
class Pipeline:
    """Every image of a pool is decoded, made square, resized and, on demand, re-encoded.

    `size` is the side in pixels, `channels` 1 or 3, `jpeg` a quality from 1 to 100 or None for no
    re-encoding; then grey levels under `clear_below` become 0. `history` are the steps that real images go through
    first, because the generated ones did (see `images/history.py`). `fit` is how an image becomes square (`FITS`).
    """

    size: int
    channels: int
    jpeg: int | None = None
    clear_below: int = 0
    history: History = ()
    fit: str = "crop"

    @classmethod
    def of(cls, config: PoolConfig, spec: DataSpec) -> Pipeline:
        """The pipeline of a pool's real images: `img_size` or else the data set's own size, and all changes."""
        size, history = config.img_size or spec.img_size, read_history(config.real_history)
        return cls(size, spec.channels, config.reencode, config.clear_below, history, config.fit)

    def without_history(self) -> Pipeline:
        """The same pipeline for generated images and those of unknown provenance, which have their history already."""
        return replace(self, history=())

    @property
    def alters(self) -> bool:
        """Whether the images are changed in any way other than their size."""
        return self.jpeg is not None or self.clear_below > 0 or bool(self.history)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.size, self.size, self.channels

    def load(self, source: Source, indices: np.ndarray) -> np.ndarray:
        """The images of `source` at `indices` as uint8 [n, size, size, channels].

        Raises UserError naming an image that cannot be read.
        """
        fit = () if self.fit == "crop" else (self.fit,)  # a plugin's source need not know the argument
        return self.alter(source.load(indices, self.size, self.channels, *fit))

    def alter(self, images: np.ndarray) -> np.ndarray:
        """uint8 [n, size, size, channels] after the history, the re-encoding and the clearing of this pipeline."""
        images = through_history(images, self.history)
        if self.jpeg is not None:
            images = through_jpeg(images, self.jpeg)
        return cleared(images, self.clear_below) if self.clear_below else images

    def take(self, source: Source, rows: np.ndarray) -> tuple[Images, np.ndarray]:
        """The images at `rows` int64 [n] and their digests; images are loaded lazily above the source's memory limit.

        Digests uint64 [n, 2] are of pixels; for lazily loaded files, of the files' names and sizes.
        """
        if len(rows) * int(np.prod(self.image_shape)) <= source.resident_limit:
            images = self.load(source, rows)
            known = None if self.alters else source.digests(rows, self.size, self.channels)
            return images, image_digests(images) if known is None else known
        return LazyImages.of(_Later(self, source), rows, self.image_shape), self._digests(source, rows)

    def _digests(self, source: Source, rows: np.ndarray) -> np.ndarray:
        if isinstance(source, JoinedSource):
            digests, early = np.empty((len(rows), 2), dtype=np.uint64), rows < len(source.first)
            digests[early] = self._digests(source.first, rows[early])
            digests[~early] = self._digests(source.second, rows[~early] - len(source.first))
            return digests
        known = None if self.alters else source.digests(rows, self.size, self.channels)
        if known is not None:
            return known
        if isinstance(source, FileSource) and (described := source.described()) is not None:
            first = np.uint64(int(described[1][:16], 16))
            return np.stack([np.full(len(rows), first), rows.astype(np.uint64)], axis=1)
        if isinstance(source, ArraySource) and isinstance(source.images, StoredImages):
            return self._kept_digests(source, source.images)[rows]
        return self._hash_all(source, rows)

    def _kept_digests(self, source: Source, images: StoredImages) -> np.ndarray:
        """The digests of all preprocessed images of a stored source, computed once and kept in the user's cache."""
        text = f"{images.fingerprint()}\0{self}"
        path = cache_folder() / "digests" / f"{hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}.npy"
        with contextlib.suppress(OSError, ValueError):
            kept = np.load(path, allow_pickle=False)
            if kept.shape == (len(source), 2):
                return kept
        digests = self._hash_all(source, np.arange(len(source)))
        with contextlib.suppress(OSError), atomic_write(path) as temporary, open(temporary, "wb") as file:
            np.save(file, digests)
        return digests

    def _hash_all(self, source: Source, rows: np.ndarray) -> np.ndarray:
        step = max(1, CHUNK // int(np.prod(self.image_shape)))
        hidden = None if len(rows) * int(np.prod(self.image_shape)) >= SHOW_PROGRESS_FROM else True
        starts = tqdm(range(0, len(rows), step), desc=f"hashing {source.origin}", disable=hidden, leave=False)
        parts = [image_digests(self.load(source, rows[start : start + step])) for start in starts]
        return np.concatenate([np.empty((0, 2), dtype=np.uint64), *parts])


@dataclass(frozen=True, eq=False)
class _Later:
    """A source whose images are preprocessed when they are read, row by row."""

    pipeline: Pipeline
    source: Source

    def read(self, rows: np.ndarray) -> np.ndarray:
        return self.pipeline.load(self.source, rows)
