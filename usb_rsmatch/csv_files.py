"""CSV files: written atomically and safe for spreadsheets, tables of scores read; and a check of output paths."""

from __future__ import annotations

import contextlib
import csv
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePath

from usb_rsmatch.errors import UserError
from usb_rsmatch.io import atomic_write

# Spreadsheets execute a cell that begins with one of these as a formula (OWASP, "CSV injection").
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")

Cell = str | int | float
WriteRow = Callable[[Sequence[Cell]], None]


def escape_formula(cell: Cell) -> str:
    """A cell as text; text that a spreadsheet would execute gets a leading apostrophe. Numbers have six digits."""
    if isinstance(cell, (int, float)):
        return f"{cell:.6g}"
    return f"'{cell}" if cell.startswith(FORMULA) else cell


def refuse_existing(*paths: Path) -> None:
    """UserError if a target exists or its folder is not writable; to be called before the work starts."""
    for path in paths:
        if path.exists():
            raise UserError(f"{path} exists: choose another --out, nothing is overwritten")
        folder = next(above for above in path.absolute().parents if above.exists())
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder: {path} cannot be written there")
        if not os.access(folder, os.W_OK):
            raise UserError(f"{folder} cannot be written: choose another --out")


@contextlib.contextmanager
def csv_rows(path: Path, columns: Sequence[str]) -> Iterator[WriteRow]:
    """A context that yields a function which writes one row; the file appears when all rows are written."""
    with (
        atomic_write(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        yield lambda row: writer.writerow([escape_formula(cell) for cell in row])


def read_score_table(path: str, called: str) -> tuple[list[dict[str, str | None]], bool]:
    """The rows of a CSV with the columns `score`, and `index` or `file`; and whether it has an `index`.

    Raises UserError, which begins with `called`, for a file that cannot be read and for missing columns.
    """
    if Path(path).exists() and not Path(path).is_file():  # reading a pipe or a device might never end
        raise UserError(f"{called}: {path} is not a file of scores")
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{called}: cannot read the scores {path}: {error}") from None
    columns = set(rows[0]) if rows else set()
    if "score" not in columns or not columns & {"index", "file"}:
        raise UserError(f"{called}: {Path(path).name} needs the columns score, and index or file")
    return rows, "index" in columns


class PathEnds:
    """Finds an image among `names` [N] by its path or a unique end of its path."""

    def __init__(self, names: Sequence[str]) -> None:
        self._places: dict[str, list[tuple[PurePath, int]]] = {}
        for index, name in enumerate(names):
            self._places.setdefault(PurePath(name).name, []).append((PurePath(name), index))

    def find(self, file: str, where: str) -> int | None:
        """The number of the image whose path ends with `file`, None if there is none; UserError if there are two."""
        wanted = PurePath(file)
        ends = [
            (path, index)
            for path, index in self._places.get(wanted.name, [])
            if path.parts[-len(wanted.parts) :] == wanted.parts
        ]
        if len(ends) > 1:
            raise UserError(f"{where}: {file} matches {ends[0][0]} and {ends[1][0]}; give more of the path")
        return ends[0][1] if ends else None
