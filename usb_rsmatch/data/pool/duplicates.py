"""The same image in training and in the test set: by pixels, or by the bytes of files that are not read yet."""

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

TAIL = 4096  # bytes at a file's end that are compared before the whole is


def refuse_in_test(synthetic: ImageSet, test: ImageSet) -> None:
    """Raise UserError, naming it, for a synthetic image that is also in the test set."""
    found = np.flatnonzero(found_in(synthetic, test))
    if len(found):
        name = synthetic.names[int(found[0])] if synthetic.names else f"synthetic image {found[0]}"
        raise UserError(f"{name}: the same image is in the test set; remove it from the synthetic source")


def found_in(images: ImageSet, test: ImageSet) -> np.ndarray:
    """Which of the images are also in the test set: bool [N].

    Images are the same by their pixels in the pool. Where a side's images stay in their files until they are needed,
    as millions of large ones do, files are compared instead, by size, then tail, then all their bytes; what came of
    it is kept in the user's cache.
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


def _file_sizes(names: ImageNames) -> np.ndarray:
    """The bytes of the images' files, -1 for those that are in none: int64 [N]."""
    sizes = np.full(len(names), -1, dtype=np.int64)
    for number, source in enumerate(names.sources):
        here = np.flatnonzero(names.part == number)
        sizes[here] = source.file_sizes(names.row[here])
    return sizes


def _same_files(
    names: Sequence[str], candidates: np.ndarray, sizes: np.ndarray, others: Sequence[str], other_sizes: np.ndarray
) -> np.ndarray:
    """Those of the candidates whose file has the content of one of the others: int64 [n]."""
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
    """Of a file, or of its last bytes; None where it cannot be read, which reading it as an image will tell."""
    try:
        with open(name, "rb") as file:
            if last is not None:
                file.seek(max(0, os.fstat(file.fileno()).st_size - last))
            return hashlib.blake2b(file.read(), digest_size=16).digest()
    except OSError:
        return None


def _kept(key: str, find: Callable[[], np.ndarray]) -> np.ndarray:
    """What `find` finds, int64 [n], from the user's cache where it has been asked before."""
    path = cache_folder() / "duplicates" / f"{hashlib.blake2b(key.encode(), digest_size=16).hexdigest()}.npy"
    with contextlib.suppress(OSError, ValueError):
        return np.load(path, allow_pickle=False)
    found = find()
    with contextlib.suppress(OSError), atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.save(file, found)
    return found
