"""Image files in a ZIP or tar file, as their relative paths and bytes, so that an archive is read like a folder."""

from __future__ import annotations

import os
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import PurePosixPath

from usb_rsmatch.data.images.decode import image_suffixes
from usb_rsmatch.data.images.file_index import SYSTEM_FOLDERS
from usb_rsmatch.data.sources.metadata import METADATA_FILES
from usb_rsmatch.errors import UserError

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
LIMIT = 4 * 2**30  # bytes of image files, which are kept in memory


def is_archive(path: str) -> bool:
    """Whether the path is a file with the suffix of a ZIP or tar file."""
    return path.lower().endswith(SUFFIXES) and os.path.isfile(os.path.expanduser(path))


def read_archive(path: str) -> list[tuple[str, bytes]]:
    """Relative path and bytes of each image file, in the order of a folder's files; hidden ones are ignored.

    Raises UserError for a damaged or encrypted archive, for more than `LIMIT` bytes of images, and for one with
    metadata, which is only read from folders.
    """
    members, total = [], 0
    try:
        for place, size, read in _members(os.path.expanduser(path)):
            if PurePosixPath(place).name in METADATA_FILES:
                raise UserError(f"{path}: contains {place}, which is only read from a folder; unpack the archive")
            if not _is_image(place):
                continue
            total += size
            if total > LIMIT:
                raise UserError(f"{path}: holds more than {LIMIT // 2**30} GiB of images; unpack it into a folder")
            members.append((place, read()))
    except (OSError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile, tarfile.TarError) as error:
        raise UserError(f"{path}: cannot be read ({error}); copy it again, or unpack it into a folder") from None
    if not members:
        raise UserError(f"{path}: contains no images; check the path")
    return sorted(members, key=lambda member: (unicodedata.normalize("NFC", member[0]), member[0]))


def _members(path: str) -> Iterator[tuple[str, int, Callable[[], bytes]]]:
    """Relative path, size in bytes and a function that reads it, of each file."""
    if path.lower().endswith(".zip"):
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if not info.is_dir():
                    yield _relative(info.filename), info.file_size, partial(archive.read, info)
    else:
        with tarfile.open(path) as tar:
            for entry in tar:
                stream = tar.extractfile(entry) if entry.isfile() else None
                if stream is not None:
                    yield _relative(entry.name), entry.size, stream.read


def _relative(name: str) -> str:
    return str(PurePosixPath(name.replace("\\", "/")))


def _is_image(name: str) -> bool:
    place = PurePosixPath(name)
    hidden = any(part.startswith(".") or part in SYSTEM_FOLDERS for part in place.parts)
    return not hidden and place.suffix.lower() in image_suffixes()
