"""Content hashes: of whole arrays for manifests, of single images to find duplicates.

The digests of N images are uint64 [N, 2], the two halves of 128 bits, and sort like their bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

DIGEST_BYTES = 16


def array_sha256(array: np.ndarray) -> str:
    """SHA-256 of an array's bytes in C order, in hexadecimal."""
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def digests_sha256(digests: np.ndarray) -> str:
    """SHA-256 of the digests [N, 2] one after the other, in hexadecimal: one hash for N images in their order."""
    return hashlib.sha256(np.ascontiguousarray(digests, dtype=">u8").data).hexdigest()


def image_digests(images: np.ndarray) -> np.ndarray:
    """The digests uint64 [N, 2] of images [N, ...]: equal pixels, equal digest."""
    return bytes_digests(image.tobytes() for image in images)


def bytes_digests(contents: Iterable[bytes]) -> np.ndarray:
    """The digests uint64 [N, 2] of byte strings (BLAKE2b)."""
    joined = b"".join(hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest() for content in contents)
    return np.frombuffer(joined, dtype=">u8").reshape(-1, 2).astype(np.uint64)


def content_order(digests: np.ndarray) -> np.ndarray:
    """The indices int64 [N] that sort images by their digests [N, 2], independent of how they are stored."""
    return np.lexsort((digests[:, 1], digests[:, 0]))


def contained(digests: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Which of the digests [N, 2] are also among others [M, 2]: bool [N]."""
    if not len(among):
        return np.zeros(len(digests), dtype=np.bool_)
    first = np.sort(among[:, 0])
    place = np.searchsorted(first, digests[:, 0])
    found = first[np.minimum(place, len(first) - 1)] == digests[:, 0]
    rows = np.flatnonzero(found)  # usually few: the second half is only compared for these
    if len(rows):
        others = set(map(tuple, among.tolist()))
        found[rows] = [tuple(pair) in others for pair in digests[rows].tolist()]
    return found
