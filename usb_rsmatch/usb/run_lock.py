"""A lock for run folders: one process at a time, by an operating system lock that ends with its process."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from usb_rsmatch.errors import UserError
from usb_rsmatch.io import is_leftover, remove_leftovers

LOCK = ".lock"
_held: dict[Path, int] = {}  # lock files by process: the system would grant a lock to the same process twice


@contextlib.contextmanager
def lock_run_folder(folder: Path) -> Iterator[None]:
    """A context that locks `folder`, creates it if necessary, and removes incomplete files of killed processes.

    The file `.lock` stays and names the last holder. On a file system without locks, two runs in one folder are not
    detected. Raises UserError if another process holds the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = (folder / LOCK).resolve()
    if _held.get(path) == os.getpid():
        raise UserError(_taken(folder, "this process"))
    with open(path, "a+", encoding="utf-8") as file:
        if not _try_lock(file):
            file.seek(0)
            raise UserError(_taken(folder, file.read(200).strip() or "another process"))
        _held[path] = os.getpid()
        try:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}\n")
            file.flush()
            remove_leftovers(folder)
            yield
        finally:
            del _held[path]  # closing the file releases the lock


def is_empty(folder: Path) -> bool:
    """Whether a folder contains only a lock and incomplete files, so that it can become a run folder."""
    return all(path.name == LOCK or is_leftover(path) for path in folder.iterdir())


def _taken(folder: Path, holder: str) -> str:
    return f"{folder} is in use: {holder} is training in it; wait until it ends, or choose another save_name"


if sys.platform == "win32":
    import msvcrt

    def _try_lock(file: IO[str]) -> bool:
        file.seek(1 << 20)  # after the text, which stays readable
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _try_lock(file: IO[str]) -> bool:
        """A record lock, which worker processes do not inherit: they may live longer than a killed run."""
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        except OSError:
            return True
        return True
