"""Applies the patches of this folder to semilearn, or reverts them, after checking the hash of each file.

    python patches/apply.py [--revert | --check] [PATH_TO_semilearn]

Each sub-folder is a patch set for one upstream version: unified diffs without context lines that only insert lines,
and SHA256SUMS of the original files. A file is *clean* if it has that hash, *patched* if it has the hash after the
inserted lines are removed, and *unknown* otherwise: then nothing is written.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
HUNK = re.compile(rb"@@ -(\d+),0 \+(\d+)(?:,(\d+))? @@")


class Refusal(Exception):
    """Nothing was written; the message is the reason, in one line."""


@dataclass(frozen=True)
class Insertion:
    """The inserted lines of one hunk, and the number of upstream lines before them."""

    after: int
    lines: tuple[bytes, ...]


@dataclass(frozen=True)
class Target:
    """One upstream file: its path relative to semilearn's parent folder, its hash, and the inserted lines."""

    name: str
    sha256: str
    insertions: tuple[Insertion, ...]

    def insert(self, clean: bytes) -> bytes:
        """Return the patched content of a clean file."""
        lines = clean.splitlines(keepends=True)
        for hunk in sorted(self.insertions, key=lambda hunk: hunk.after, reverse=True):
            lines[hunk.after : hunk.after] = hunk.lines
        return b"".join(lines)

    def remove(self, patched: bytes) -> bytes | None:
        """Return the clean content of a patched file, or None if the inserted lines are not where they should be."""
        lines = patched.splitlines(keepends=True)
        for hunk in sorted(self.insertions, key=lambda hunk: hunk.after):
            end = hunk.after + len(hunk.lines)
            if tuple(lines[hunk.after : end]) != hunk.lines:
                return None
            del lines[hunk.after : end]
        return b"".join(lines)

    def state(self, content: bytes) -> str:
        """Return the state of a file with this content: `clean`, `patched` or `unknown`."""
        if hashlib.sha256(content).hexdigest() == self.sha256:
            return "clean"
        without = self.remove(content)
        if without is not None and hashlib.sha256(without).hexdigest() == self.sha256:
            return "patched"
        return "unknown"


def read_patch(path: Path) -> tuple[str, list[Insertion]]:
    """Read a diff of one file; return the file's name and the insertions.

    Raises ValueError if the diff is incomplete or does more than insert lines.
    """
    name = ""
    hunks: list[tuple[int, int, list[bytes]]] = []
    for line in path.read_bytes().splitlines(keepends=True):
        if line.startswith(b"+++ b/"):
            name = line[6:].decode().strip()
        elif match := HUNK.match(line):
            hunks.append((int(match[1]), int(match[3] or 1), []))
        elif hunks and line.startswith(b"+"):
            hunks[-1][2].append(line[1:])
        elif hunks or line.startswith(b"@@"):
            raise ValueError(f"{path} does more than insert lines")
    if not name or any(len(lines) != count for _, count, lines in hunks):
        raise ValueError(f"{path} is not a complete patch")
    return name, [Insertion(after, tuple(lines)) for after, _, lines in hunks]


def read_set(folder: Path) -> list[Target]:
    """Read the SHA256SUMS and *.patch files of a patch set; return one target per file in SHA256SUMS."""
    insertions: dict[str, list[Insertion]] = {}
    for path in sorted(folder.glob("*.patch")):
        name, found = read_patch(path)
        insertions.setdefault(name, []).extend(found)
    sums = [line.split() for line in (folder / "SHA256SUMS").read_text().splitlines()]
    return [Target(name, digest, tuple(insertions.pop(name))) for digest, name in sums]


def find_package(given: str | None) -> Path:
    """Return semilearn's folder: the given one, the one inside the given checkout, or the installed one."""
    if given is None:
        spec = importlib.util.find_spec("semilearn")  # finds a top-level package without importing it
        if spec is None or spec.origin is None:
            raise Refusal("semilearn is not installed in this Python: give the path of its folder")
        return Path(spec.origin).resolve().parent
    for folder in (Path(given), Path(given) / "semilearn"):
        if folder.name == "semilearn" and (folder / "__init__.py").is_file():
            return folder.resolve()
    raise Refusal(f"{given} is not the folder of semilearn, nor a checkout that contains it")


def choose_set(package: Path) -> tuple[str, dict[Target, bytes]]:
    """Return the name of the patch set that fits, and the content of its files.

    A set fits if all of its files are clean or patched; of several sets, the one with most files is chosen.
    """
    sets = {path.parent.name: read_set(path.parent) for path in HERE.glob("*/SHA256SUMS")}
    unknown: list[str] = []
    for name, targets in sorted(sets.items(), key=lambda item: (-len(item[1]), item[0])):
        paths = {target: package.parent / target.name for target in targets}
        contents = {target: path.read_bytes() if path.is_file() else b"" for target, path in paths.items()}
        unknown = [target.name for target, text in contents.items() if target.state(text) == "unknown"]
        if not unknown:
            return name, contents
    raise Refusal(f"{package.parent / unknown[0]} is not from a supported version (its hash differs): not changed")


def replace(path: Path, content: bytes) -> None:
    """Replace a file atomically: write a temporary file in its folder, copy the file's mode, rename."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        shutil.copymode(path, temporary)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def main(argv: list[str] | None = None) -> int:
    """Run the script; return 0, or 2 if it refuses."""
    parser = argparse.ArgumentParser(description="Patch semilearn so that it loads plugins by entry point.")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--revert", action="store_true", help="remove the inserted lines")
    what.add_argument("--check", action="store_true", help="report the state of the files, write nothing")
    parser.add_argument(
        "package", nargs="?", help="folder of semilearn, or a checkout of USB (default: the installed semilearn)"
    )
    args = parser.parse_args(argv)
    try:
        package = find_package(args.package)
        name, contents = choose_set(package)
        for target, content in contents.items():
            state, path = target.state(content), package.parent / target.name
            if not args.check and state == ("patched" if args.revert else "clean"):
                replace(path, target.insert(content) if state == "clean" else target.remove(content) or b"")
                state = "clean" if args.revert else "patched"
            print(f"{state}: {path} ({name})")
    except (Refusal, OSError) as error:
        print(f"patches/apply.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
