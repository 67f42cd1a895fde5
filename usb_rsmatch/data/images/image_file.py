"""Images in a file of raw bytes, read row by row, so that a large pool needs no memory."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import IO, Any

import numpy as np

from usb_rsmatch.errors import UserError


class StoredImages:
    """uint8 [N, H, W, C] images stored consecutively in a file, beginning at an offset.

    They are read by position, not through a memory map: pages of a map count as the process's memory, and random
    sampling would soon touch all of them. The system's file cache keeps them while memory is free. `stored` is the
    shape of an image in the file, H x W x C or with `channels_first` C x H x W; `rows` [N] are the images' positions,
    None for all in order; `digests` is an npy file of uint64 [count, 2], the digests of all images of the file, if
    known. Pickled by path, for worker processes.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(
        self,
        path: Path,
        offset: int,
        count: int,
        stored: tuple[int, ...],
        channels_first: bool = False,
        rows: np.ndarray | None = None,
        digests: Path | None = None,
    ) -> None:
        self.path, self.offset, self.count, self.stored = path, offset, count, tuple(stored)
        self.channels_first, self.rows, self.digests = channels_first, rows, digests
        self._file: Any = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        a, b, c = self.stored
        return (len(self), b, c, a) if self.channels_first else (len(self), a, b, c)

    def __len__(self) -> int:
        return self.count if self.rows is None else len(self.rows)

    def take(self, indices: np.ndarray) -> StoredImages:
        """The images at `indices` int64 [n], still in the file."""
        rows = indices if self.rows is None else self.rows[indices]
        rows = rows.astype(np.int32)
        return StoredImages(self.path, self.offset, self.count, self.stored, self.channels_first, rows, self.digests)

    def digests_at(self, indices: np.ndarray) -> np.ndarray | None:
        """The digests uint64 [n, 2] of the images at `indices`, None where not known."""
        if self.digests is None:
            return None
        every = np.load(self.digests, mmap_mode="r", allow_pickle=False)  # not left open: a memory map counts as memory
        return np.array(every[indices if self.rows is None else self.rows[indices]])

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        """The images at `indices` int64 [n] as an array uint8 [n, H, W, C].

        Raises UserError if the file has become shorter or is missing.
        """
        rows = np.asarray(indices, dtype=np.int64)
        rows = rows if self.rows is None else self.rows[rows]
        images = np.empty((len(rows), *self.stored), dtype=np.uint8)
        size = int(np.prod(self.stored))
        flat = memoryview(images.reshape(-1).data) if len(rows) else memoryview(b"")
        for place in np.argsort(rows, kind="stable").tolist():  # in the file's order, which is faster
            self._read(flat[place * size : (place + 1) * size], self.offset + int(rows[place]) * size)
        return images.transpose(0, 2, 3, 1) if self.channels_first else images

    def fingerprint(self) -> str:
        """A hash of the file's path, size and modification time, and of the selected rows."""
        state = self.path.stat()
        text = f"{self.path.absolute()}\0{state.st_size}\0{state.st_mtime_ns}\0{self.offset}\0{self.channels_first}"
        digest = hashlib.blake2b(os.fsencode(text), digest_size=16)
        if self.rows is not None:
            digest.update(np.ascontiguousarray(self.rows).data)
        return digest.hexdigest()

    def _read(self, into: memoryview, offset: int) -> None:
        try:
            if self._file is None:
                self._file = open(self.path, "rb", buffering=0)  # noqa: SIM115  kept open for all batches
            if hasattr(os, "preadv"):  # pread has no shared position, so that forked workers can share the file
                got = os.preadv(self._file.fileno(), [into], offset)
            else:
                self._file.seek(offset)
                got = self._file.readinto(into)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror or error}); start again") from None
        if got != len(into):
            raise UserError(f"{self.path}: has become shorter during use; restore it and start again")

    @classmethod
    def of_npy(cls, path: Path) -> StoredImages:
        """The images of an npy file uint8 [N, H, W, C]. Raises OSError or ValueError for other contents."""
        with open(path, "rb") as file:
            shape, fortran, dtype = read_header(file)
            if fortran or dtype != cls.dtype or len(shape) != 4:
                raise ValueError(f"{path}: contains {dtype} {shape}")
            return cls(path, file.tell(), shape[0], shape[1:])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}


def read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, Fortran order flag and dtype of an npy stream, which is then positioned at its first value.

    Raises ValueError if it is not an npy stream.
    """
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file)


def write_header(file: IO[bytes], shape: tuple[int, ...]) -> None:
    """Write the npy header for uint8 values of a shape, which must follow in C order."""
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
