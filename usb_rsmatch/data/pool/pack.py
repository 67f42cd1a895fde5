"""Packs: the images of many files decoded once into one array on disk (`usb-rsmatch pool --pack`)."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from usb_rsmatch.cache import cache_folder, file_lock, require_disk_space
from usb_rsmatch.data.images.hashes import image_digests
from usb_rsmatch.data.images.image_file import StoredImages, write_header
from usb_rsmatch.data.sources.source import ArraySource, FileSource, JoinedSource
from usb_rsmatch.io import atomic_write

if TYPE_CHECKING:
    from usb_rsmatch.data.pool.preprocessing import Pipeline

CHUNK = 2048  # files that are decoded between two writes


class PackedSource(ArraySource):
    """A source of files whose decoded images, at one size, are stored in a pack; images keep their files' names."""

    def __init__(self, files: FileSource, images: StoredImages) -> None:
        super().__init__(files.origin, images, files.labels, files.generators, files.generator)
        self.file_source, self.skipped = files, files.skipped

    def name(self, index: int) -> str:
        return self.file_source.name(index)


def packed(source: Any, pipeline: Pipeline, make: bool = False) -> Any:
    """The source as a `PackedSource` if a pack of it exists at the pipeline's size, else the source itself.

    With `make` a missing pack of a source of files is made. It is stored in the user's cache; its file name is a hash
    of the files' paths, sizes and times (see `FileIndex.fingerprint`). Raises UserError for an image that cannot be
    read, and for a disk without enough space.
    """
    if isinstance(source, JoinedSource):
        return JoinedSource(packed(source.first, pipeline, make), packed(source.second, pipeline, make))
    folder = cache_folder() / "packs"
    if not isinstance(source, FileSource) or not len(source) or not (make or folder.is_dir()):
        return source
    described = source.described()
    if described is None:
        return source
    fit = "" if pipeline.fit == "crop" else f"-{pipeline.fit}"
    path = folder / f"{described[0]}-{pipeline.size}x{pipeline.channels}{fit}.npy"
    if make and _open(source, path) is None:
        require_disk_space(len(source) * int(np.prod(pipeline.image_shape)), folder, f"a pack of {source.origin}")
        with file_lock(path.with_suffix(".lock")):
            if _open(source, path) is None:  # another process may have made it in the meantime
                _make(source, pipeline, path)
    return _open(source, path) or source


def _open(source: FileSource, path: Path) -> PackedSource | None:
    with contextlib.suppress(OSError, ValueError):
        images, digests = StoredImages.of_npy(path), np.load(_digests_of(path), mmap_mode="r", allow_pickle=False)
        if len(images) == len(digests) == len(source):
            images.digests = _digests_of(path)
            return PackedSource(source, images)
    return None


def _make(source: FileSource, pipeline: Pipeline, path: Path) -> None:
    """Write the digests last: a pack is valid only with them."""
    digests = [np.empty((0, 2), dtype=np.uint64)]
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        write_header(file, (len(source), *pipeline.image_shape))
        with tqdm(total=len(source), desc=f"packing {source.origin}", unit=" images", disable=None, leave=False) as bar:
            for start in range(0, len(source), CHUNK):
                rows = np.arange(start, min(start + CHUNK, len(source)))
                images = source.load(rows, pipeline.size, pipeline.channels, pipeline.fit)
                file.write(images.data)
                digests.append(image_digests(images))
                bar.update(len(rows))
    with atomic_write(_digests_of(path)) as temporary, open(temporary, "wb") as file:
        np.save(file, np.concatenate(digests))


def _digests_of(path: Path) -> Path:
    return path.with_suffix(".digests.npy")
