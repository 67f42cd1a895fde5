"""Atomic file writes (a temporary file, flushed, then renamed), and strict reading of JSON."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_LEFTOVER = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp")  # suffix of files that `atomic_write` has not completed


@contextlib.contextmanager
def atomic_write(
    path: str | os.PathLike[str], keep: str | os.PathLike[str] | None = None, flush: bool = True
) -> Iterator[Path]:
    """A context with a temporary path in the target's folder; on success it is flushed and renamed to `path`.

    With `keep`, a path in the same folder, the previous file at `path` is renamed to it. Without `flush` a power
    failure (but nothing less) can leave an empty file; use that for many small files that can be made again. Raises
    whatever the body raises; the temporary file is then removed and the target stays unchanged.
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
    """Hard-link `target` as `kept`, so that at every moment there is a complete file."""
    link = target.with_name(f".{target.name}.previous.tmp")  # a fixed name: a crash leaves at most one
    try:
        link.unlink(missing_ok=True)
        os.link(target, link)
    except OSError:  # a file system without hard links: for a moment only `kept` exists
        os.replace(target, kept)
        return
    os.replace(link, kept)
    link.unlink(missing_ok=True)  # renaming a file to another hard link of itself does nothing


def _flush_folder(folder: Path) -> None:
    """Flush the folder, so that a power failure does not undo a rename; not every system can do this."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def is_leftover(path: Path) -> bool:
    """Whether a file is a leftover of `atomic_write` in a killed process."""
    return _LEFTOVER.fullmatch(path.name) is not None


def remove_leftovers(folder: Path) -> None:
    """Remove incomplete files of killed processes from `folder`; no other process may be writing there."""
    for path in folder.iterdir():
        if is_leftover(path):
            path.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON, atomically; NaN raises an error, because JSON does not have it."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def parse_json(text: str) -> Any:
    """The value of an untrusted JSON text; an integer too large for a float becomes infinity.

    Raises ValueError for invalid JSON, too deep nesting, and text that cannot be encoded.
    """
    try:
        value = json.loads(text, parse_int=lambda digits: int(digits) if len(digits) < 300 else float(digits))
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()  # a lone surrogate raises UnicodeEncodeError, a ValueError
    except RecursionError:
        raise ValueError("lists or mappings are too deep") from None
    return value


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
