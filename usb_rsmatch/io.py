"""Files that are either whole or absent: written beside the target, flushed, then renamed; and JSON from outside."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_LEFTOVER = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp")  # what `atomic_write` calls a file that is not whole yet


@contextlib.contextmanager
def atomic_write(
    path: str | os.PathLike[str], keep: str | os.PathLike[str] | None = None, flush: bool = True
) -> Iterator[Path]:
    """Give a temporary path in the target's folder; on success flush it to disk and rename it to `path`.

    With `keep`, a path of the same folder, the file that stood at `path` stands there afterwards. Without `flush` a
    power failure, but nothing less, can leave an empty file: for many small ones that can be remade.
    Errors: whatever the body raises; the temporary file is removed and the target is left as it was.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        if flush:
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        if keep is not None and target.exists():
            _keep(target, Path(keep))
        os.replace(temporary, target)
        if flush:
            _flush_folder(target.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _keep(target: Path, kept: Path) -> None:
    """Let `kept` name the file of `target`, which keeps its own name: at no moment is there no whole file."""
    link = target.with_name(f".{target.name}.previous.tmp")  # always the same name: a crash leaves one at most
    try:
        link.unlink(missing_ok=True)
        os.link(target, link)
    except OSError:  # a file system without hard links: for a moment `kept` alone is there
        os.replace(target, kept)
        return
    os.replace(link, kept)
    link.unlink(missing_ok=True)  # renaming a file onto another name of its own does nothing


def _flush_folder(folder: Path) -> None:
    """Write the folder's names to disk, so that a power cut does not undo a rename; not every system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def is_leftover(path: Path) -> bool:
    """Whether a file is what `atomic_write` leaves where its process is killed."""
    return _LEFTOVER.fullmatch(path.name) is not None


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left half-written in `folder`; the caller knows that no other one writes there."""
    for path in folder.iterdir():
        if is_leftover(path):
            path.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON, atomically; NaN is refused, because JSON has none."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def parse_json(text: str) -> Any:
    """The value of a JSON text from outside; a whole number that no float can hold becomes infinity.

    Errors: ValueError for what is no JSON, lists deeper than Python reads and text that no file holds among it.
    """
    try:
        value = json.loads(text, parse_int=lambda digits: int(digits) if len(digits) < 300 else float(digits))
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()  # half of a pair is a UnicodeEncodeError, a ValueError
    except RecursionError:
        raise ValueError("lists or mappings are too deep") from None
    return value


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
