"""CSV files that are safe to open in spreadsheets, written atomically; and a check of output paths."""

from __future__ import annotations

import contextlib
import csv
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

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
