"""Image files in a ZIP or tar file, as their relative paths and bytes, so that an archive is read like a folder."""

from __future__ import annotations

import os
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import PurePosixPath

from usb_rsmatch.data.images.decode import image_suffixes
from usb_rsmatch.data.images.file_index import SYSTEM_FOLDERS
from usb_rsmatch.errors import UserError

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
LIMIT = 4 * 2**30  # bytes of image files, which are kept in memory


def is_archive(path: str) -> bool:
    """Whether the path is a file with the suffix of a ZIP or tar file."""
    return path.lower().endswith(SUFFIXES) and os.path.isfile(os.path.expanduser(path))


def read_archive(path: str) -> list[tuple[str, bytes]]:
    """Relative path and bytes of each image file, in the order of a folder's files; hidden ones are ignored.

    Raises UserError for a damaged or encrypted archive, and for more than `LIMIT` bytes of images.
    """
    members, total = [], 0
    try:
        for place, size, content in _members(os.path.expanduser(path)):
            total += size
            if total > LIMIT:
                raise UserError(f"{path}: holds more than {LIMIT // 2**30} GiB of images; unpack it into a folder")
            members.append((place, content))
    except (OSError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile, tarfile.TarError) as error:
        raise UserError(f"{path}: cannot be read ({error}); copy it again, or unpack it into a folder") from None
    if not members:
        raise UserError(f"{path}: contains no images; check the path")
    return sorted(members, key=lambda member: (unicodedata.normalize("NFC", member[0]), member[0]))


def _members(path: str) -> Iterator[tuple[str, int, bytes]]:
    suffixes = image_suffixes()
    if path.lower().endswith(".zip"):
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if not info.is_dir() and _is_image(info.filename, suffixes):
                    yield _relative(info.filename), info.file_size, archive.read(info)
    else:
        with tarfile.open(path) as tar:
            for entry in tar:
                if entry.isfile() and _is_image(entry.name, suffixes):
                    stream = tar.extractfile(entry)
                    yield _relative(entry.name), entry.size, stream.read() if stream is not None else b""


def _relative(name: str) -> str:
    return str(PurePosixPath(name.replace("\\", "/")))


def _is_image(name: str, suffixes: frozenset[str]) -> bool:
    place = PurePosixPath(_relative(name))
    hidden = any(part.startswith(".") or part in SYSTEM_FOLDERS for part in place.parts)
    return not hidden and place.suffix.lower() in suffixes
