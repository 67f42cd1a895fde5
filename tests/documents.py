"""Code blocks of the documents, for the tests that run them."""

from __future__ import annotations

import re
from pathlib import Path

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    return [body for found, body in BLOCK.findall(page.read_text(encoding="utf-8")) if found == language]


def write_files_of(page: Path, folder: Path) -> list[Path]:
    """Write the files that a page's blocks name in their first line, `# my_module.py`, and join blocks of one file."""
    parts: dict[str, list[str]] = {}
    for body in blocks(page, "python") + blocks(page, "yaml"):
        first, _, rest = body.partition("\n")
        if first.startswith("# ") and first.endswith((".py", ".yaml")):
            parts.setdefault(first[2:], []).append(rest)
    for name, bodies in parts.items():
        (folder / name).write_text("\n".join(bodies), encoding="utf-8")
    return [folder / name for name in parts]
