"""Sources `folder:PATH` and other folder layouts: path patterns that define class, provenance, generator and split."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from usb_rsmatch.data.images.file_index import FileIndex, FileList, file_index
from usb_rsmatch.data.sources.archives import is_archive, read_archive
from usb_rsmatch.data.sources.asked_difficulty import DifficultyRange
from usb_rsmatch.data.sources.metadata import Metadata, has_metadata, read_metadata, refuse_other_class
from usb_rsmatch.data.sources.registry import Opener, SourceRequest
from usb_rsmatch.data.sources.source import FileSource, Source
from usb_rsmatch.errors import UserError


@dataclass(frozen=True)
class Layout:
    """How paths below a folder are read. The first of `patterns` that matches the whole relative path is used.

    In a pattern, `{class}`, `{generator}`, `{split}` and `{provenance}` each name one folder, `{file}` the
    file, `*` is anything within a name and `**` any number of folders. `real` and `synthetic` are the
    provenance folders' names, in any case: a synthetic source only reads the synthetic ones, and if `real` is given, a
    folder that is neither is an error. `split` is the split that is read. `file_class` is a regular
    expression whose first group finds the class in the file name (without its suffix) instead.
    """

    patterns: tuple[str, ...]
    real: tuple[str, ...] = ()
    synthetic: tuple[str, ...] = ()
    split: str = "train"
    file_class: str | None = None


LAYOUTS: dict[str, Layout] = {
    "folder": Layout(("{class}/**/{file}", "{file}")),
    "flat": Layout(("**/{file}",)),  # folders that are not classes, such as DiffusionDB's parts
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


def open_folder(argument: str, request: SourceRequest) -> Source:
    """`folder:PATH`: class folders, or images in no class folder."""
    return open_layout(LAYOUTS["folder"], argument, request)


def open_flat(argument: str, request: SourceRequest) -> Source:
    """`flat:PATH`: all images below a folder, without classes."""
    return open_layout(LAYOUTS["flat"], argument, request)


def open_cifake(argument: str, request: SourceRequest) -> Source:
    """`cifake:PATH`: CIFAKE as unpacked."""
    return open_layout(LAYOUTS["cifake"], argument, request)


def open_genimage(argument: str, request: SourceRequest) -> Source:
    """`genimage:PATH`: GenImage as unpacked."""
    return open_layout(LAYOUTS["genimage"], argument, request)


def open_cnndetection(argument: str, request: SourceRequest) -> Source:
    """`cnndetection:PATH`: the sets of CNNDetection and UnivFD as unpacked."""
    return open_layout(LAYOUTS["cnndetection"], argument, request)


def open_layout(layout: Layout, argument: str, request: SourceRequest) -> Source:
    """The synthetic images under the folder `argument`, by Hugging Face's metadata if there is any.

    With `any_provenance` the names of provenance folders mean nothing, and all images are read.

    Options: `split`, instead of the layout's; `difficulty`, see `asked_difficulty.py`. Raises UserError if nothing
    matches.
    """
    request.reject_options(argument, "split", "difficulty")
    if request.any_provenance:
        layout = replace(layout, patterns=tuple(text.replace("{provenance}", "*") for text in layout.patterns))
    asked = DifficultyRange.of_options(request.options, argument)
    if is_archive(argument):
        if asked:
            asked.select([None], argument)  # an archive has no metadata of difficulty
        return open_archive(layout, argument, request)
    root = folder(argument)
    if (root / "images-00000.npz").is_file():
        raise UserError(f"{root}: contains packed images; read them with the source npz:{argument}")
    split = str(request.options.get("split", layout.split))
    index = file_index(root)
    places = [index.place(i) for i in range(len(index))] if has_metadata(root) else []
    listed = read_metadata(root, places) if "{file}" in layout.patterns else None
    if listed is not None and listed.entries:
        return _by_metadata(layout, split, root, listed, request)
    if asked:
        asked.select([None], str(root))  # without metadata there is no difficulty
    rows = Rows(index, layout)
    if not len(rows):
        raise UserError(f"{root}: contains no images; check the path")
    holds_any = np.bincount(rows.group, minlength=len(rows.parts)) > 0  # the index also lists folders without images
    rows = rows.where(
        [
            used and parts is not None and _wanted(layout, split, parts, root)
            for used, parts in zip(holds_any.tolist(), rows.parts, strict=True)
        ]
    )
    if not len(rows):
        raise UserError(
            f"{root}: none of its {len(rows.index)} images matches the patterns of synthetic images "
            f"{', '.join(layout.patterns)}; check the path, or describe the layout in the config's `layouts:`"
        )
    names = rows.named("generator", request.generator)
    generators = tuple(sorted({str(names[group]) for group in np.unique(rows.group)}))
    numbers = np.array([generators.index(name) if name in generators else -1 for name in names], dtype=np.int16)
    source = FileSource(
        origin=str(root),
        files=rows.files(),
        labels=rows.labels(lambda names: request.classes.of_names(names, str(root))),
        generators=generators,
        generator=numbers[rows.group],
    )
    source.notes += [note for note in (index.unread_note(), *(listed.notes if listed else ())) if note]
    return source


def open_archive(layout: Layout, argument: str, request: SourceRequest) -> Source:
    """The synthetic images of a ZIP or tar file, read like a folder. Raises UserError if nothing matches."""
    split = str(request.options.get("split", layout.split))
    members = read_archive(argument)
    rows = [(place, content, match(layout, place)) for place, content in members]
    root = Path(argument)
    kept = [(content, parts) for _, content, parts in rows if parts is not None and _wanted(layout, split, parts, root)]
    if not kept:
        raise UserError(f"{argument}: none of its {len(members)} images matches {', '.join(layout.patterns)}")
    names = [parts.get("generator", request.generator) for _, parts in kept]
    generators = tuple(sorted(set(names)))
    return FileSource(
        origin=argument,
        files=[content for content, _ in kept],
        labels=request.classes.of_names([parts.get("class") for _, parts in kept], argument),
        generators=generators,
        generator=np.array([generators.index(name) for name in names], dtype=np.int16),
    )


class Rows:
    """Images of an index that match a layout, in groups that share their parsed path: a folder's files, if possible.

    `parts` are the parsed path parts of each group (None: no pattern fits), `group` int [n] is the group of each image.
    """

    def __init__(self, index: FileIndex, layout: Layout) -> None:
        self.index, self.chosen = index, np.arange(len(index))
        if layout.file_class is None and all(pattern.split("/")[-1] == "{file}" for pattern in layout.patterns):
            self.group = index.folder
            self.parts = [match(layout, f"{folder}/file" if folder else "file") for folder in index.folders]
        else:
            self.group = np.arange(len(index))
            self.parts = [match(layout, index.place(i)) for i in range(len(index))]

    def __len__(self) -> int:
        return len(self.chosen)

    def where(self, keep: Sequence[bool]) -> Rows:
        """Only the images of the groups to keep."""
        rest = copy(self)
        here = np.array(keep, dtype=np.bool_)[self.group]
        rest.chosen, rest.group = self.chosen[here], self.group[here]
        return rest

    def named(self, part: str, otherwise: str | None = None) -> list[str | None]:
        """The text of one part of the path for each group."""
        return [otherwise if parts is None else parts.get(part, otherwise) for parts in self.parts]

    def labels(self, number: Callable[[list[str | None]], np.ndarray]) -> np.ndarray:
        """The images' labels int64 [n]; `number` gives those of class names."""
        used, places = np.unique(self.group, return_inverse=True)
        names = self.named("class")
        return number([names[group] for group in used])[places.reshape(-1)]

    def files(self) -> FileList:
        """The images' paths."""
        return FileList(self.index, self.chosen)


def _by_metadata(layout: Layout, split: str, root: Path, metadata: Metadata, request: SourceRequest) -> Source:
    """The images that Hugging Face's metadata names, with its classes.

    Raises UserError for an image that lies in the folder of another class than its metadata says.
    """
    listed = metadata.entries
    rows = [(place, match(layout, place)) for place in listed]
    kept = [(place, parts) for place, parts in rows if parts is not None and _wanted(layout, split, parts, root)]
    if not kept:
        raise UserError(f"{root}: its metadata lists no synthetic image; fix or remove it")
    if asked := DifficultyRange.of_options(request.options, str(root)):
        inside = asked.select([listed[place].difficulty for place, _ in kept], str(root))
        kept = [pair for pair, wanted in zip(kept, inside.tolist(), strict=True) if wanted]
    names = [listed[place].label for place, _ in kept]
    labels = request.classes.of_names(names, str(root), numeric=True)
    in_folders = [(place, parts.get("class"), listed[place].label) for place, parts in kept]
    refuse_other_class(root, in_folders, labels.tolist(), request.classes)
    generator_names = [listed[place].generator or parts.get("generator", request.generator) for place, parts in kept]
    generators = tuple(sorted(set(generator_names)))
    return FileSource(
        origin=str(root),
        files=[root / place for place, _ in kept],
        labels=labels,
        generators=generators,
        generator=np.array([generators.index(name) for name in generator_names], dtype=np.int16),
    )


def match(layout: Layout, place: str) -> dict[str, str] | None:
    """The parts of a relative path ("class", ...) by the first pattern that fits, None if none does."""
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
    """`path` as an existing folder, `~` expanded; UserError if it does not exist."""
    root = Path(os.path.expanduser(path))  # unlike Path.expanduser, it does not fail for an unknown user
    if not str(path) or not os.path.isdir(root):
        raise UserError(f"{path or 'source'}: no such folder; check the path")
    return root


def _wanted(layout: Layout, split: str, parts: Mapping[str, str], root: Path) -> bool:
    """Whether an image belongs in a synthetic source: of the right split, and not among the real ones.

    Raises UserError for a provenance that the layout does not know, whose images would otherwise be ignored silently.
    """
    if parts.get("split", split).casefold() != split.casefold():
        return False
    provenance = parts.get("provenance")
    if provenance is None or provenance.casefold() in map(str.casefold, layout.synthetic):
        return True
    if layout.real and provenance.casefold() not in map(str.casefold, layout.real):
        raise UserError(
            f"{root}: the folder {provenance!r} is neither one of synthetic images ({', '.join(layout.synthetic)}) nor "
            f"of real ones ({', '.join(layout.real)}); rename or remove it, or describe the layout in `layouts:`"
        )
    return False


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
    given: dict[str, Any] = {}
    for key, value in row.items():
        if value is None:
            continue
        if key in ("split", "file_class"):
            given[key] = str(value)
        else:
            given[key] = tuple(map(str, value)) if isinstance(value, (list, tuple)) else (str(value),)
    for pattern in given["patterns"]:
        parts = re.findall(r"\{(\w*)\}", pattern)
        if set(parts) - _PARTS or "file" not in parts or len(set(parts)) != len(parts):
            raise UserError(
                f"layouts: {name!r}, pattern {pattern!r} must contain {{file}} and otherwise only "
                "{class}, {generator}, {split}, {provenance}, each once, * and **"
            )
    try:
        groups = re.compile(given.get("file_class", "()")).groups
    except re.error as error:
        raise UserError(f"layouts: {name!r}, file_class is not a regular expression ({error})") from None
    if not groups:
        raise UserError(f"layouts: {name!r}, file_class has no group that finds the class, such as _(\\w+)$")
    return Layout(**given)
