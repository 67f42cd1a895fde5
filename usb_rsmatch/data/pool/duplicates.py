"""Finds images that are both in the training and in the test set, by pixels or by the bytes of unread files."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from tqdm import tqdm

from usb_rsmatch.cache import cache_folder
from usb_rsmatch.data.images.hashes import contained, digests_sha256
from usb_rsmatch.data.images.lazy_images import LazyImages
from usb_rsmatch.data.pool.image_names import ImageNames
from usb_rsmatch.data.pool.image_set import ImageSet
from usb_rsmatch.errors import UserError
from usb_rsmatch.io import atomic_write

TAIL = 4096  # bytes at the end of a file that are compared before the whole file


def refuse_in_test(synthetic: ImageSet, test: ImageSet) -> None:
    """Raise UserError that names a synthetic image which is also in the test set."""
    found = np.flatnonzero(found_in(synthetic, test))
    if len(found):
        name = synthetic.names[int(found[0])] if synthetic.names else f"synthetic image {found[0]}"
        raise UserError(f"{name}: the same image is in the test set; remove it from the synthetic source")


def found_in(images: ImageSet, test: ImageSet) -> np.ndarray:
    """Which of the images are also in the test set: bool [N].

    Images are equal if their pixels in the pool are equal. If the images of a side are read from their files only when
    they are needed, as millions of large ones are, files are compared instead: by size, then by their last bytes, then
    by all bytes; the result is kept in the user's cache.
    """
    found = contained(images.hashed(), test.hashed())
    names, others = images.names, test.names
    later = isinstance(images.images, LazyImages) or isinstance(test.images, LazyImages)
    if later and names is not None and others is not None:
        sizes, other_sizes = _file_sizes(names), _file_sizes(others)
        rows = np.flatnonzero((sizes >= 0) & np.isin(sizes, other_sizes))
        if len(rows):
            key = f"{digests_sha256(images.hashed())}\0{digests_sha256(test.hashed())}"
            found[_kept(key, partial(_same_files, names, rows, sizes, others, other_sizes))] = True
    return found


def in_two_classes(images: ImageSet) -> np.ndarray:
    """Pairs int64 [n, 2] of equal images whose known classes differ."""
    digests, labels = images.hashed(), images.labels
    known = np.flatnonzero(labels >= 0)
    order = known[np.lexsort((labels[known], digests[known, 1], digests[known, 0]))]
    first, second = order[:-1], order[1:]
    same = (digests[first] == digests[second]).all(axis=1) & (labels[first] != labels[second])
    return np.stack([first[same], second[same]], axis=1)


def _file_sizes(names: ImageNames) -> np.ndarray:
    """The sizes of the images' files in bytes, int64 [N]; -1 for images that are not files."""
    sizes = np.full(len(names), -1, dtype=np.int64)
    for number, source in enumerate(names.sources):
        here = np.flatnonzero(names.part == number)
        sizes[here] = source.file_sizes(names.row[here])
    return sizes


def _same_files(
    names: Sequence[str], candidates: np.ndarray, sizes: np.ndarray, others: Sequence[str], other_sizes: np.ndarray
) -> np.ndarray:
    """The candidates whose file has the same content as one of the others: int64 [n]."""
    by_size: dict[int, list[int]] = {}
    for j in np.flatnonzero(np.isin(other_sizes, sizes[candidates])).tolist():
        by_size.setdefault(int(other_sizes[j]), []).append(j)
    tails = {size: {_hash(others[j], TAIL) for j in rows} for size, rows in by_size.items()}
    same = []
    bar = tqdm(candidates.tolist(), desc="comparing files with the test set", disable=None, delay=2, leave=False)
    for i in bar:
        size = int(sizes[i])
        if _hash(names[i], TAIL) in tails[size]:
            whole = _hash(names[i])
            if whole is not None and any(_hash(others[j]) == whole for j in by_size[size]):
                same.append(i)
    return np.array(same, dtype=np.int64)


def _hash(name: str, last: int | None = None) -> bytes | None:
    """The hash of a file, or of its last bytes; None if it cannot be read (decoding it will report that)."""
    try:
        with open(name, "rb") as file:
            if last is not None:
                file.seek(max(0, os.fstat(file.fileno()).st_size - last))
            return hashlib.blake2b(file.read(), digest_size=16).digest()
    except OSError:
        return None


def _kept(key: str, find: Callable[[], np.ndarray]) -> np.ndarray:
    """The result of `find`, int64 [n], read from the user's cache if it was computed before."""
    path = cache_folder() / "duplicates" / f"{hashlib.blake2b(key.encode(), digest_size=16).hexdigest()}.npy"
    with contextlib.suppress(OSError, ValueError):
        return np.load(path, allow_pickle=False)
    found = find()
    with contextlib.suppress(OSError), atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.save(file, found)
    return found
