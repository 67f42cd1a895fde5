"""Layouts of image folders as one table of path patterns that give class, provenance, generator and split."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from usb_rsmatch.data.decode import image_suffixes
from usb_rsmatch.data.metadata import read_metadata
from usb_rsmatch.data.sources import FileSource, Opener, Source, SourceRequest, register_source
from usb_rsmatch.errors import UserError


@dataclass(frozen=True)
class Layout:
    """How paths under a folder are read. The first of `patterns` that matches the whole relative path counts.

    In a pattern, `{class}`, `{generator}`, `{split}` and `{provenance}` each name one folder, `{file}` the
    file, `*` is anything within a name and `**` any number of folders. `real` and `synthetic` are the
    provenance folders' names, in any case: only the synthetic ones are read into a synthetic source. `split`
    is the split that is read. `file_class` is a regular expression whose first group finds the class in the
    file name (without its suffix) instead.
    """

    patterns: tuple[str, ...]
    real: tuple[str, ...] = ()
    synthetic: tuple[str, ...] = ()
    split: str = "train"
    file_class: str | None = None


LAYOUTS: dict[str, Layout] = {
    "folder": Layout(("{class}/**/{file}", "{file}")),
    "flat": Layout(("**/{file}",)),  # folders that are no classes, such as DiffusionDB's parts
    "cifake": Layout(("{split}/{provenance}/{file}",), real=("REAL",), synthetic=("FAKE",)),
    "genimage": Layout(("{generator}/{split}/{provenance}/{file}",), real=("nature",), synthetic=("ai",)),
    "cnndetection": Layout(
        ("{class}/{provenance}/{file}", "{provenance}/{file}"), real=("0_real",), synthetic=("1_fake",)
    ),
}


def openers(rows: Mapping[str, Any]) -> dict[str, Opener]:
    """A source opener for each row of the config's `layouts:`, a mapping from name to the fields of `Layout`.

    Raises UserError for a row that is not of that form.
    """
    return {name: partial(open_layout, _layout(name, row)) for name, row in rows.items()}


def open_layout(layout: Layout, argument: str, request: SourceRequest) -> Source:
    """The synthetic images under the folder `argument`, by Hugging Face's metadata where it has that.

    Option: `split`, another than the layout's. Raises UserError where nothing matches.
    """
    request.reject_options(argument, "split")
    root = folder(argument)
    if (root / "images-00000.npz").is_file():
        raise UserError(f"{root}: holds packed images; read them with the source npz:{argument}")
    split = str(request.options.get("split", layout.split))
    listed = read_metadata(root) if "{file}" in layout.patterns else None
    places = list(listed) if listed is not None else list(walk(root))
    rows = [(place, match(layout, place)) for place in places]
    kept = [(place, parts) for place, parts in rows if parts is not None and _wanted(layout, split, parts)]
    if not kept:
        raise UserError(
            f"{root}: none of its {len(rows)} images is a synthetic one by the patterns "
            f"{', '.join(layout.patterns)}; check the path, or describe the layout in the config's `layouts:`"
        )
    names = [parts.get("class") if listed is None else listed[place].label for place, parts in kept]
    entries = [None if listed is None else listed[place].generator for place, _ in kept]
    told = [
        entry or parts.get("generator", request.generator) for entry, (_, parts) in zip(entries, kept, strict=True)
    ]
    generators = tuple(sorted(set(told)))
    numbers = {name: i for i, name in enumerate(generators)}
    return FileSource(
        origin=str(root),
        files=[root / place for place, _ in kept],
        labels=request.classes.of_names(names, str(root), numeric=listed is not None),
        generators=generators,
        generator=np.array([numbers[name] for name in told], dtype=np.int16),
    )


def match(layout: Layout, place: str) -> dict[str, str] | None:
    """The parts of a relative path ("class", ...) by the first pattern that fits, None where none does."""
    for pattern in layout.patterns:
        found = _regex(pattern).fullmatch(place)
        if found:
            parts = {name.removeprefix("_"): text for name, text in found.groupdict().items()}
            if layout.file_class is not None:
                name = re.search(layout.file_class, Path(place).stem)
                return {**parts, "class": name.group(1)} if name else parts
            return parts
    return None


def folder(path: str | Path) -> Path:
    """`path` as an existing folder, `~` expanded; UserError where it is none."""
    root = Path(path).expanduser()
    if not str(path) or not root.is_dir():
        raise UserError(f"{path or 'source'}: no such folder; check the path")
    return root


def walk(root: Path) -> Iterator[str]:
    """Relative POSIX paths of the image files under `root`, in an order that does not depend on the disk.

    Hidden files and folders are left out, links are followed. Raises UserError for a link that leads back to
    a folder above it, and for a folder that cannot be listed.
    """
    suffixes = image_suffixes()
    found: list[str] = []
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while waiting:
        prefix, above = waiting.pop()
        here = root / prefix
        try:
            state = here.stat()
            entries = list(os.scandir(here))
        except OSError as error:
            raise UserError(
                f"{here}: cannot be listed ({error.strerror or error}); mend or remove it"
            ) from None
        if (state.st_dev, state.st_ino) in above:
            raise UserError(f"{here}: the link leads back to a folder above it; remove it")
        inside = above | {(state.st_dev, state.st_ino)}
        for entry in entries:
            if entry.name.startswith("."):
                continue
            place = f"{prefix}/{entry.name}" if prefix else entry.name
            if entry.is_dir():
                waiting.append((place, inside))
            elif os.path.splitext(entry.name)[1].lower() in suffixes:
                found.append(place)
    return iter(sorted(found, key=lambda place: (unicodedata.normalize("NFC", place), place)))


def _wanted(layout: Layout, split: str, parts: Mapping[str, str]) -> bool:
    """Whether an image belongs in a synthetic source: of the right split, and not among the real ones."""
    if parts.get("split", split).casefold() != split.casefold():
        return False
    provenance = parts.get("provenance")
    return provenance is None or provenance.casefold() in {name.casefold() for name in layout.synthetic}


def _regex(pattern: str) -> re.Pattern[str]:
    """A path pattern as a regular expression, its named folders as groups with a leading underscore."""
    if pattern not in _COMPILED:
        text = ""
        for piece in re.split(r"(\*\*/|\*|\{\w+\})", pattern):
            if piece == "**/":
                text += r"(?:[^/]+/)*"
            elif piece == "*":
                text += r"[^/]*"
            elif piece.startswith("{"):
                text += rf"(?P<_{piece[1:-1]}>[^/]+)"
            else:
                text += re.escape(piece)
        _COMPILED[pattern] = re.compile(text)
    return _COMPILED[pattern]


_COMPILED: dict[str, re.Pattern[str]] = {}
_PARTS = frozenset({"class", "generator", "split", "provenance", "file"})


def _layout(name: str, row: Any) -> Layout:
    """A row of the config as a Layout, checked."""
    known = [field.name for field in fields(Layout)]
    if not isinstance(row, Mapping) or not row.get("patterns"):
        raise UserError(f'layouts: {name!r} needs `patterns`, such as ["{{class}}/{{file}}"]')
    unknown = [key for key in row if key not in known]
    if unknown:
        raise UserError(f"layouts: {name!r} has an unknown key {unknown[0]!r}; known: {', '.join(known)}")
    lists = {
        key: (value,) if isinstance(value, str) else tuple(map(str, value))
        for key, value in row.items()
        if key in ("patterns", "real", "synthetic")
    }
    for pattern in lists["patterns"]:
        strange = set(re.findall(r"\{(\w*)\}", pattern)) - _PARTS
        if strange or "{file}" not in pattern:
            raise UserError(
                f"layouts: {name!r}, pattern {pattern!r} must hold {{file}} and otherwise only "
                "{class}, {generator}, {split}, {provenance}, * and **"
            )
    try:
        re.compile(row.get("file_class") or "")
    except re.error as error:
        raise UserError(f"layouts: {name!r}, file_class is no regular expression ({error})") from None
    return Layout(**{**row, **lists})


for _name, _row in LAYOUTS.items():
    register_source(_name, partial(open_layout, _row))
