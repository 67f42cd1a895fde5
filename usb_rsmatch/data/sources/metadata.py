"""Hugging Face's imagefolder: a `metadata.csv` or `metadata.jsonl` next to the images contains class and generator."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from usb_rsmatch.data.sources.asked_difficulty import asked_difficulty
from usb_rsmatch.errors import UserError
from usb_rsmatch.io import parse_json

FILE_COLUMN = "file_name"
LABEL_COLUMNS = ("label", "labels", "class", "class_name", "category")
GENERATOR_COLUMN = "generator"
DIFFICULTY_COLUMN = "difficulty"


@dataclass(frozen=True)
class Entry:
    """What a line says about its image, None if not given: class name (or number, as text), generator, difficulty."""

    label: str | None
    generator: str | None = None
    difficulty: float | None = None


def read_metadata(root: Path) -> dict[str, Entry] | None:
    """The metadata entry of each image, by path relative to `root`; None if there is no metadata with classes.

    The class is in the first of the columns `LABEL_COLUMNS` that exists. Raises UserError for a file that
    is not valid, lacks `file_name`, names a missing image or one outside of `root`.
    """
    readers = {root / "metadata.csv": _csv_rows, root / "metadata.jsonl": _json_rows}
    path = next((path for path in readers if path.is_file()), None)
    if path is None:
        return None
    try:
        rows = readers[path](path)
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({error}); fix or remove it") from None
    column = next((name for name in LABEL_COLUMNS if any(name in row for row in rows)), None)
    if column is None:
        return None
    entries: dict[str, Entry] = {}
    for number, row in enumerate(rows, start=1):
        place = row.get(FILE_COLUMN)
        if not isinstance(place, str) or not place:
            raise UserError(f"{path}: entry {number} has no {FILE_COLUMN}; Hugging Face's imagefolder needs it")
        parts = PurePosixPath(place)
        if parts.is_absolute() or ".." in parts.parts:
            raise UserError(f"{path}: entry {number} names {place}, which is outside of the folder")
        if not (root / parts).is_file():
            raise UserError(f"{path}: entry {number} names {place}, which does not exist")
        entries[str(parts)] = Entry(
            _text(row.get(column)), _text(row.get(GENERATOR_COLUMN)), asked_difficulty(row.get(DIFFICULTY_COLUMN))
        )
    return dict(sorted(entries.items()))


def _text(value: Any) -> str | None:
    return None if value is None or value == "" else str(value)


def _csv_rows(path: Path) -> list[dict[str, Any]]:
    with open(path, newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def _json_rows(path: Path) -> list[dict[str, Any]]:
    with open(path, encoding="utf-8") as file:  # `splitlines` would also split at characters inside a JSON text
        rows = [parse_json(line) for line in file if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("each line must be an object")
    return rows
