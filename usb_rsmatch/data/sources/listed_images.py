"""Real data set `dataset: folder` with `labels:`: images in any folders, their classes and splits in tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from usb_rsmatch.csv_files import PathEnds
from usb_rsmatch.data.images.file_index import FileIndex, FileList, file_index
from usb_rsmatch.data.sources.class_folders import native_size
from usb_rsmatch.data.sources.class_names import UNKNOWN, ClassIndex
from usb_rsmatch.data.sources.dataset_registry import IMAGENET_MEAN, IMAGENET_STD, DataSpec, RealData
from usb_rsmatch.data.sources.folder import folder
from usb_rsmatch.data.sources.label_table import LabelRow, counted, read_label_rows
from usb_rsmatch.data.sources.source import FileSource
from usb_rsmatch.errors import UserError


def open_listed_images(data_dir: Path, labels: str | Mapping[str, Any]) -> RealData:
    """Your own images below `data_dir`, with the tables that `labels` names.

    A row's file is a path relative to `data_dir`, or a unique end of a path, with or without its suffix. Training
    images without a class are unlabelled and of unknown provenance. The test set is the rows of the split test, or of
    val if there are none.

    Raises UserError, one line with counts, for rows whose image is missing or repeated, and for test rows without a
    class of the training rows; also if there are no training or no test images.
    """
    rows, notes = read_label_rows(labels, data_dir)
    tables = ", ".join(dict.fromkeys(row.where.rpartition(",")[0] for row in rows)) or "labels"
    train = [row for row in rows if row.part == "train" and row.label is not None]
    test = [row for row in rows if row.part == "test"]
    val = [row for row in rows if row.part == "val"]
    if not train or not (test or val):
        missing = "test" if train else "training"
        raise UserError(
            f"{tables}: no row is a {missing} image with a class; mark such rows in a column `split`, or give a table "
            "of their own: labels: {train: FILE, test: FILE}"
        )
    if test and val:
        notes.append(
            f"{tables}: rows of val that are not read: {len(val)}; validation_count is cut from the training images"
        )
    classes = tuple(sorted({str(row.label) for row in train}, key=_in_order))
    known = ClassIndex(classes)
    index = file_index(folder(data_dir))
    found, problems = _find_images(rows, index)
    for row in test or val:
        if row.label is None or known.number(row.label) == UNKNOWN:
            of = "no class" if row.label is None else "a class of no training row"
            problems.setdefault(f"of the test set with {of}", []).append(_shown(row, row.label))
    if problems:
        raise UserError(f"{tables}: {counted(problems)}; correct the table or restore the images in {data_dir}")

    def source(part: Sequence[LabelRow], labelled: bool = True) -> FileSource:
        """The images of these rows, in an order that does not depend on that of the rows."""
        part = sorted(part, key=found.__getitem__)
        files = FileList(index, np.array([found[row] for row in part], dtype=np.int64))
        return FileSource(
            str(data_dir), files, known.of_names([row.label if labelled else None for row in part], tables)
        )

    unlabelled = [row for row in rows if row.part == "unlabeled" or (row.part == "train" and row.label is None)]
    sources = source(train), source(test or val)
    collected = source(unlabelled, labelled=False) if unlabelled else None  # nobody says that they are real
    side, size_note = native_size(sources[0])
    without = np.setdiff1d(np.arange(len(index)), list(found.values()))
    if len(without):
        notes.append(
            f"{tables}: {len(without)} of {len(index)} images in {data_dir} have no row, the first: "
            f"{index.place(int(without[0]))}; they are not used (a row without a class makes an image unlabelled)"
        )
    notes += known.notes + [note for note in (index.unread_note(), size_note) if note]
    sources[0].notes += notes
    spec = DataSpec("folder", IMAGENET_MEAN, IMAGENET_STD, flip=True, img_size=side)
    return RealData(spec, classes, *sources, collected=collected)


def _find_images(rows: Sequence[LabelRow], index: FileIndex) -> tuple[dict[LabelRow, int], dict[str, list[str]]]:
    """The number of each row's image in the index, and the rows whose image is missing or that repeat one.

    Raises UserError for a file that could be several images.
    """
    places = [index.place(i) for i in range(len(index))]
    exact = {place: i for i, place in enumerate(places)}
    root = index.root.absolute()
    names = cache(lambda: PathEnds([f"{root}/{place}" for place in places]))
    stems = cache(lambda: PathEnds([f"{root}/{PurePosixPath(place).with_suffix('')}" for place in places]))
    found: dict[LabelRow, int] = {}
    seen: dict[int, LabelRow] = {}
    problems: dict[str, list[str]] = {}
    for row in rows:
        file = row.file if row.file in exact else row.file.replace("\\", "/").removeprefix("./")
        number = exact.get(file)
        for ends in (names, stems):
            number = ends().find(file, row.where) if number is None else number
        if number is None:
            problems.setdefault("that name a missing image", []).append(_shown(row, row.file))
        elif number in seen:
            problems.setdefault("that name an image again", []).append(_shown(row, row.file))
        else:
            seen[number] = row
            found[row] = number
    return found, problems


def _shown(row: LabelRow, what: str | None) -> str:
    number = row.where.rpartition(", ")[2]
    return f"{number} ({what!r})" if what else number


def _in_order(name: str) -> tuple[int, str]:
    """Numbers by their value, other names as text."""
    return (int(name), name) if name.isascii() and name.isdigit() else (0, name)
