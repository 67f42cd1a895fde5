"""Hugging Face's imagefolder: a `metadata.csv` or `metadata.jsonl` next to the images contains class and generator."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from usb_rsmatch.data.sources.asked_difficulty import asked_difficulty
from usb_rsmatch.data.sources.class_names import UNKNOWN, ClassIndex
from usb_rsmatch.errors import UserError
from usb_rsmatch.io import parse_json

METADATA_FILES = ("metadata.csv", "metadata.jsonl")
FILE_COLUMNS = ("file_name", "filename", "file", "image", "path")
LABEL_COLUMNS = ("label", "labels", "class", "class_name", "category")
GENERATOR_COLUMN = "generator"
DIFFICULTY_COLUMN = "difficulty"
SEPARATORS = (",", ";", "\t")


@dataclass(frozen=True)
class Entry:
    """What a line says about its image, None if not given: class name (or number, as text), generator, difficulty."""

    label: str | None
    generator: str | None = None
    difficulty: float | None = None


@dataclass(frozen=True)
class Metadata:
    """The entry of each image by its path relative to the folder, and notes on what the file lacks."""

    entries: dict[str, Entry]
    notes: list[str] = field(default_factory=list)


def has_metadata(root: Path) -> bool:
    """Whether the folder contains a metadata file."""
    return any((root / name).is_file() for name in METADATA_FILES)


def read_metadata(root: Path, places: Collection[str]) -> Metadata | None:
    """The metadata of the images at `places`, paths relative to `root`; None if there is no metadata with classes.

    Columns are found by name in any case: file and class in the first of `FILE_COLUMNS` and `LABEL_COLUMNS` that
    exists. Raises UserError for a file that is not valid, has no column of files, names an image twice, a missing one
    or one outside of `root`, and for images that it does not name.
    """
    path = next((root / name for name in METADATA_FILES if (root / name).is_file()), None)
    if path is None:
        return None
    rows = [{str(key).strip().casefold(): value for key, value in row.items()} for row in read_rows(path)]
    column = _first(LABEL_COLUMNS, rows)
    if column is None:
        found = ", ".join(rows[0]) if rows else "none"
        note = f"{path}: gives no classes: its columns are {found}, a class is read from {', '.join(LABEL_COLUMNS)}"
        return Metadata({}, [note]) if rows and _first((GENERATOR_COLUMN,), rows) is None else None
    place_column = _first(FILE_COLUMNS, rows) or FILE_COLUMNS[0]
    entries: dict[str, Entry] = {}
    for number, row in enumerate(rows, start=1):
        place = row.get(place_column)
        if not isinstance(place, str) or not place:
            raise UserError(f"{path}: entry {number} has no {FILE_COLUMNS[0]}; Hugging Face's imagefolder needs it")
        parts = PurePosixPath(place)
        if parts.is_absolute() or ".." in parts.parts:
            raise UserError(f"{path}: entry {number} names {place}, which is outside of the folder")
        if not (root / parts).is_file():
            raise UserError(f"{path}: entry {number} names {place}, which does not exist")
        if str(parts) in entries:
            raise UserError(f"{path}: entry {number} names {place} again; keep one of the entries")
        entries[str(parts)] = Entry(
            _text(row.get(column)), _text(row.get(GENERATOR_COLUMN)), asked_difficulty(row.get(DIFFICULTY_COLUMN))
        )
    unlisted = [place for place in places if place not in entries]
    if unlisted:
        raise UserError(
            f"{path}: {len(unlisted)} of {len(places)} images are not listed, the first: {unlisted[0]}; add them (the "
            "class may be empty) or remove them"
        )
    return Metadata(dict(sorted(entries.items())))


def read_rows(path: Path) -> list[dict[Any, Any]]:
    """The rows of a table with a header, CSV or (`.jsonl`) one JSON object a line; UserError if it is not valid.

    In a CSV, columns are separated by commas, semicolons or tabs; further cells of a row have the key None.
    """
    if path.exists() and not path.is_file():  # reading a pipe or a device might never end
        raise UserError(f"{path}: is not a file; give a CSV or JSONL file")
    try:
        return _json_rows(path) if path.suffix.lower() == ".jsonl" else _csv_rows(path)
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({error}); fix or remove it") from None


def refuse_other_class(
    root: Path, rows: Iterable[tuple[str, str | None, str | None]], labels: Iterable[int], classes: ClassIndex
) -> None:
    """Raise UserError for an image that lies in the folder of another class than its metadata says.

    `rows` are path, folder and class in the metadata of each image, `labels` the numbers of those classes.
    """
    of_folder: dict[str, int] = {}
    for (place, folder, name), label in zip(rows, labels, strict=True):
        if folder is None or label == UNKNOWN:
            continue
        if folder not in of_folder:
            of_folder[folder] = classes.number(folder)
        if of_folder[folder] not in (UNKNOWN, label):
            raise UserError(
                f"{root}: {place} has the class {name!r} in the metadata and lies in the folder {folder!r}; "
                "correct one of them"
            )


def _first(names: Sequence[str], rows: Sequence[dict[str, Any]]) -> str | None:
    return next((name for name in names if any(name in row for row in rows)), None)


def _text(value: Any) -> str | None:
    return None if value is None or value == "" else str(value)


def _csv_rows(path: Path) -> list[dict[str, Any]]:
    with open(path, newline="", encoding="utf-8-sig") as file:
        header = file.readline()
        file.seek(0)
        separator = max(SEPARATORS, key=header.count)  # the first of equals: a comma
        return list(csv.DictReader(file, delimiter=separator))


def _json_rows(path: Path) -> list[dict[str, Any]]:
    with open(path, encoding="utf-8") as file:  # `splitlines` would also split at characters inside a JSON text
        rows = [parse_json(line) for line in file if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("each line must be an object")
    return rows
