"""The user's cache folder for results that are expensive to compute, and file locks between parallel runs."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from usb_rsmatch.errors import UserError


def cache_folder(folder: str | os.PathLike[str] | None = None) -> Path:
    """The given folder, else `USB_RSMATCH_CACHE`, else the platform's cache folder; it need not exist."""
    named = folder or os.environ.get("USB_RSMATCH_CACHE")
    if named:
        return Path(named).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "usb_rsmatch"


def require_disk_space(size: int, folder: Path, what: str) -> None:
    """Create the folder for `what`; UserError if that fails or its disk has no space for `size` bytes."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        why = error.strerror or error
        raise UserError(f"the cache {folder} cannot be used ({why}): set USB_RSMATCH_CACHE to another") from None
    if free < 1.02 * size:
        raise UserError(
            f"{what} needs {size / 2**30:.1f} GiB in {folder}, which has {free / 2**30:.1f} GiB free: free space, "
            "or set USB_RSMATCH_CACHE to a folder on another disk"
        )


@contextlib.contextmanager
def file_lock(path: Path, poll: float = 0.2) -> Iterator[None]:
    """A context that holds a lock on the file `path`; it waits, polling every `poll` seconds, while another holds it.

    It is an operating system lock, so it ends with its process and is never stale; the file itself stays. On a file
    system without locks the body runs unlocked: writes are atomic, so the only cost is duplicate work. A run folder has
    `usb/run_lock.py`, which refuses instead of waiting.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        while not _try_lock(file):
            time.sleep(poll)
        try:
            yield
        finally:
            _unlock(file)


if sys.platform == "win32":
    import msvcrt

    def _try_lock(file: IO[bytes]) -> bool:
        file.seek(0)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _unlock(file: IO[bytes]) -> None:
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _try_lock(file: IO[bytes]) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    def _unlock(file: IO[bytes]) -> None:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_UN)
