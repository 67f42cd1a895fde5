"""Tables of labels: CSV or JSONL files that list images with their class (a name, a number, or one-hot) and split."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from usb_rsmatch.data.sources.metadata import FILE_COLUMNS, LABEL_COLUMNS, read_rows
from usb_rsmatch.errors import UserError
from usb_rsmatch.keys import nearest

IMAGE_COLUMNS = (*FILE_COLUMNS, "image_id", "image_path", "filepath", "img", "id")
CLASS_COLUMNS = (*LABEL_COLUMNS, "target", "class_id", "label_id")
SPLITS = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "val": ("val", "valid", "validation"),
    "unlabeled": ("unlabeled", "unlabelled"),
}
TABLES = ("train", "test", "unlabeled")  # keys of `labels:` that name a table
KEYS = (*TABLES, "file_column", "class_column")
_PART = {word: part for part, words in SPLITS.items() for word in words}
_WHOLE = re.compile(r"(-?\d+)(\.0+)?")


@dataclass(frozen=True)
class LabelRow:
    """What a row says of an image: its file as written, its part (train, test, val, unlabeled), its class or None.

    `where` names the row in messages.
    """

    file: str
    part: str
    label: str | None
    where: str


def read_label_rows(labels: str | Mapping[str, Any], data_dir: Path) -> tuple[list[LabelRow], list[str]]:
    """The rows of the tables that the configuration's `labels:` names, and notes on them.

    Columns are found by name in any case, or named by `file_column` and `class_column`. A list of class columns is
    one-hot; so are the columns of 0 and 1 of a table without a column of classes. Where all classes are whole numbers,
    3.0 is 3 and -1 is no class. Raises UserError for a table that cannot be read or lacks a column, and for rows
    without a file, with an unknown split or with several classes.
    """
    settings = _checked({"train": labels} if isinstance(labels, str) else labels)
    rows: list[LabelRow] = []
    one_hot: dict[str, None] = {}
    for part in TABLES:
        if part in settings:
            table = _Table.read(_find(settings[part], data_dir), part, settings)
            one_hot |= dict.fromkeys(table.one_hot)
            rows += table.rows(part)
    empty = [repr(name) for name in one_hot.keys() - {row.label for row in rows}]
    notes = [f"labels: no row has the class {', '.join(sorted(empty))}; it is left out"] if empty else []
    return _plain_numbers(rows), notes


def counted(problems: Mapping[str, Sequence[str]]) -> str:
    """One line of what is wrong with how many rows, from {"without a file": ["row 3", ...]}."""
    return "; ".join(f"rows {what}: {len(rows)}, the first: {rows[0]}" for what, rows in problems.items())


@dataclass(frozen=True)
class _Table:
    """A table, and which of its columns contain the file, the class (or each class, one-hot), and the split."""

    path: Path
    content: Sequence[Mapping[str, Any]]
    file: str
    label: str | None
    one_hot: tuple[str, ...]
    split: str | None

    @classmethod
    def read(cls, path: Path, part: str, settings: Mapping[str, Any]) -> _Table:
        raw = read_rows(path)
        longer = next((number for number, row in enumerate(raw, start=1) if any(row.get(None) or ())), None)
        if longer is not None:
            raise UserError(f"{path}: row {longer} has more cells than the first line, which names the columns; fix it")
        content = [{key.strip(): value for key, value in row.items() if key is not None} for row in raw]
        columns = tuple(dict.fromkeys(key for row in content for key in row))

        def column(given: str | None, usual: Sequence[str], what: str, key: str) -> str:
            known = [name for word in usual for name in columns if name.casefold() == word]
            found = next(iter(known if given is None else [name for name in columns if name == given]), None)
            if found is None:
                wanted = f"column {given!r}" if given is not None else f"column of {what} ({', '.join(usual)})"
                has = ", ".join(columns[:20]) or "none"
                raise UserError(f"{path}: has no {wanted}, its columns are {has}; name one by labels: {{{key}: NAME}}")
            return found

        file = column(settings.get("file_column"), IMAGE_COLUMNS, "files", "file_column")
        if part == "unlabeled":
            return cls(path, content, file, None, (), None)
        split = next((name for name in columns if name.casefold() == "split"), None)
        named = settings.get("class_column")
        if isinstance(named, list):
            names = tuple(column(name, (), "", "class_column") for name in named)
            return cls(path, content, file, None, names, split)
        usual = [word for word in CLASS_COLUMNS if word != file.casefold()]
        if named is None and not any(name.casefold() in usual for name in columns):
            others = [name for name in columns if name not in (file, split)]
            flags = tuple(name for name in others if all(_flag(row.get(name)) is not None for row in content))
            if len(flags) > 1:
                return cls(path, content, file, None, flags, split)
        return cls(path, content, file, column(named, usual, "classes", "class_column"), (), split)

    def rows(self, part: str) -> list[LabelRow]:
        """The rows; they belong to `part` unless their split says another."""
        problems: dict[str, list[str]] = {}
        found = []
        for number, row in enumerate(self.content, start=1):
            where = f"row {number}"
            file = self._text(row, self.file, where) or ""
            split = (self._text(row, self.split, where) or part).casefold()
            flags = [_flag(row.get(name)) for name in self.one_hot]
            if not file:
                problems.setdefault(f"without {self.file}", []).append(where)
            if split not in _PART:
                problems.setdefault(f"with a split other than {', '.join(SPLITS)}", []).append(f"{where} ({split!r})")
            if None in flags:
                problems.setdefault("with other values than 0 and 1 in columns of classes", []).append(where)
            elif sum(map(bool, flags)) > 1:
                some = ", ".join(self.one_hot[:4]) + ", ..." * (len(self.one_hot) > 4)
                problems.setdefault(f"with several of the classes {some}", []).append(f"{where} ({file})")
            label = next((name for name, flag in zip(self.one_hot, flags, strict=True) if flag), None)
            label = self._text(row, self.label, where) if self.label else label
            found.append(LabelRow(file, _PART.get(split, part), label, f"{self.path}, {where}"))
        if problems:
            raise UserError(f"{self.path}: {counted(problems)}; correct the table, or name its columns")
        return found

    def _text(self, row: Mapping[str, Any], column: str | None, where: str) -> str | None:
        """A cell as text, None if it is empty; UserError for a list or mapping in JSON."""
        value = row.get(column) if column else None
        if isinstance(value, (list, dict)):
            raise UserError(
                f"{self.path}: {where} has a {type(value).__name__} as {column}; it must be text or a number"
            )
        return None if value is None else str(value).strip() or None


def _checked(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping `labels:`, without empty entries; UserError for unknown keys, wrong types, and no table."""
    for key, value in settings.items():
        if key not in KEYS:
            raise UserError(f"labels: unknown key {key!r}{nearest(key, KEYS)}; known: {', '.join(KEYS)}")
        names = value if key == "class_column" and isinstance(value, list) and len(value) > 1 else [value]
        if not all(isinstance(name, (str, int)) for name in names if name is not None):
            raise UserError(f"labels: {key} takes a name{', or a list of them' * (key == 'class_column')}")
    given = {key: value for key, value in settings.items() if value is not None}
    if "train" not in given:
        raise UserError("labels: names no table of training images; give train: FILE")
    return {key: list(map(str, value)) if isinstance(value, list) else str(value) for key, value in given.items()}


def _find(name: str, data_dir: Path) -> Path:
    """The table `name`, in the working directory or in `data_dir`."""
    here, there = Path(os.path.expanduser(name)), data_dir / name
    if here.exists() and there.exists() and not here.samefile(there):
        raise UserError(f"labels: there are {here} and {there}; give the longer path of one of them, such as ./{name}")
    if not here.exists() and not there.exists():
        raise UserError(f"labels: {name} is neither in the working directory nor in {data_dir}; check the path")
    return here if here.exists() else there


def _flag(value: Any) -> bool | None:
    """A one-hot cell, None if it is neither 0 nor 1; an empty one is 0."""
    try:
        number = float(str(value if value is not None else "").strip() or 0) if not isinstance(value, bool) else value
    except ValueError:
        return None
    return bool(number) if number in (0, 1) else None


def _plain_numbers(rows: list[LabelRow]) -> list[LabelRow]:
    """Where all classes are whole numbers: without decimals, which pandas writes if a cell is empty, and -1 as None."""
    numbers = {row.label: _WHOLE.fullmatch(row.label) for row in rows if row.label is not None}
    if not all(numbers.values()):
        return rows
    plain = {text: None if found[1] == "-1" else found[1] for text, found in numbers.items() if found}
    return [replace(row, label=plain[row.label] if row.label is not None else None) for row in rows]
