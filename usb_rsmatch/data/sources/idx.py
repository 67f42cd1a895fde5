"""IDX files, the format of MNIST and similar data sets, plain or gzipped."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np

from usb_rsmatch.errors import UserError

_UINT8 = 0x08


def find_idx(folders: list[Path], stem: str) -> Path | None:
    """The first of `stem` and `stem.gz` in `folders` that exists."""
    candidates = (folder / f"{stem}{suffix}" for folder in folders for suffix in ("", ".gz"))
    return next((path for path in candidates if path.is_file()), None)


def read_idx(path: Path) -> np.ndarray:
    """The array of an IDX file of unsigned bytes: images uint8 [N, H, W], labels uint8 [N].

    Raises UserError for a file that is damaged, of another type, or not as long as its header says.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error}); copy or download it again") from None
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] != _UINT8:
        raise UserError(f"{path}: not an IDX file of unsigned bytes; copy or download it again")
    dimensions = data[3]
    start = 4 + 4 * dimensions
    shape = tuple(int(n) for n in np.frombuffer(data[4:start], dtype=">u4"))
    if len(shape) != dimensions or len(data) - start != int(np.prod(shape, dtype=np.int64)):
        raise UserError(f"{path}: {len(data)} bytes do not fit its header {shape}; copy or download it again")
    return np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape)
