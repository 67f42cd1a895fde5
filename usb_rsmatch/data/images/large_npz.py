"""Large arrays in npz files: read in place, or unpacked once if they are compressed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from tqdm import tqdm

from usb_rsmatch.cache import cache_folder, file_lock, require_disk_space
from usb_rsmatch.data.images.hashes import content_order, image_digests
from usb_rsmatch.data.images.image_file import StoredImages, read_header, write_header
from usb_rsmatch.io import atomic_write

CHUNK = 64 * 2**20  # bytes that are read at a time
LOCAL_HEADER = struct.Struct("<26xHH")  # offset in a zip member's header: the lengths of its name and its extra field


def array_header(path: Path, name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, Fortran order flag and dtype of an array in an npz file. Raises ValueError if it is not npy data."""
    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as stream:
        return read_header(stream)


def open_large(path: Path, name: str, stored: tuple[int, ...], channels_first: bool) -> StoredImages:
    """The uint8 array `name` of an npz file as images of the shape `stored`, with their digests.

    The first time, everything is read once, which verifies the archive's own checksum; the digests are cached, and if
    the archive is compressed the pixels too. Later it opens immediately, as long as size and modification time are
    equal. Raises zipfile.BadZipFile, OSError or ValueError for a damaged file, UserError for a full disk.
    """
    state = path.stat()
    text = f"{path.absolute()}\0{state.st_size}\0{state.st_mtime_ns}\0{name}"
    folder = cache_folder() / "npz"
    key = folder / hashlib.blake2b(os.fsencode(text), digest_size=16).hexdigest()
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo(f"{name}.npy")
    images = _lying(path, member, stored, channels_first, key)
    if images is None:
        in_place = member.compress_type == zipfile.ZIP_STORED
        require_disk_space(
            16 * member.file_size // int(np.prod(stored)) if in_place else member.file_size, folder, str(path)
        )
        with file_lock(key.with_suffix(".lock")):
            images = _lying(path, member, stored, channels_first, key)
            if images is None:
                _read_once(path, member, stored, channels_first, key, in_place)
                images = _lying(path, member, stored, channels_first, key)
    if images is None:
        raise ValueError(f"the cache {folder} does not keep its files")
    return images


def _lying(
    path: Path, member: zipfile.ZipInfo, stored: tuple[int, ...], channels_first: bool, key: Path
) -> StoredImages | None:
    """The images in place, None if the first reading has not been done."""
    with contextlib.suppress(OSError, ValueError):
        digests = np.load(_digests_of(key), mmap_mode="r", allow_pickle=False)
        in_place = member.compress_type == zipfile.ZIP_STORED
        file = path if in_place else key.with_suffix(".npy")
        with open(file, "rb") as stream:
            stream.seek(_data_offset(stream, member) if in_place else 0)
            shape, _, _ = read_header(stream)
            if len(digests) == shape[0]:
                return StoredImages(file, stream.tell(), shape[0], stored, channels_first, digests=_digests_of(key))
    return None


def _data_offset(file: IO[bytes], member: zipfile.ZipInfo) -> int:
    """The offset of an uncompressed member's bytes (APPNOTE.TXT of PKWARE, 4.3.7)."""
    file.seek(member.header_offset)
    name, extra = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
    return member.header_offset + LOCAL_HEADER.size + name + extra


def _read_once(
    path: Path, member: zipfile.ZipInfo, stored: tuple[int, ...], channels_first: bool, key: Path, in_place: bool
) -> None:
    """Hash every image, and unpack compressed ones; the digests are written last, as the sign of completeness."""
    size = int(np.prod(stored))
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(stack.enter_context(zipfile.ZipFile(path)).open(member))
        shape, _, _ = read_header(stream)
        file = None
        if not in_place:
            temporary = stack.enter_context(atomic_write(key.with_suffix(".npy")))
            file = stack.enter_context(open(temporary, "wb"))
            write_header(file, shape)
        bar = stack.enter_context(
            tqdm(total=shape[0], desc=f"opening {path} for the first time", unit=" images", disable=None, leave=False)
        )
        digests = [np.empty((0, 2), dtype=np.uint64)]
        step = max(1, CHUNK // size)
        for start in range(0, shape[0], step):
            count = min(step, shape[0] - start)
            data = stream.read(count * size)
            if len(data) != count * size:
                raise ValueError("it ends too early")
            if file is not None:
                file.write(data)
            images = np.frombuffer(data, dtype=np.uint8).reshape(count, *stored)
            digests.append(image_digests(images.transpose(0, 2, 3, 1) if channels_first else images))
            bar.update(count)
        stream.read(1)  # read to the end, where zipfile verifies the checksum
    every = np.concatenate(digests)
    _save(_order_of(_digests_of(key)), content_order(every).astype(np.int32))
    _save(_digests_of(key), every)


def large_order(images: StoredImages) -> np.ndarray:
    """The order by content int32 [N] of the images of `open_large`, computed at the first reading."""
    assert images.digests is not None
    with contextlib.suppress(OSError, ValueError):
        order = np.load(_order_of(images.digests), allow_pickle=False)
        if len(order) == len(images):
            return order
    return content_order(np.load(images.digests, allow_pickle=False))


def _digests_of(key: Path) -> Path:
    return key.with_suffix(".digests.npy")


def _order_of(digests: Path) -> Path:
    return digests.with_suffix(".order.npy")


def _save(path: Path, array: np.ndarray) -> None:
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.save(file, array)
