"""Real data set `dataset: folder`: your own images, one folder per class; other data sets use the same reader."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np

from usb_rsmatch.data.images.decode import read_image
from usb_rsmatch.data.images.file_index import file_index
from usb_rsmatch.data.sources.dataset_registry import IMAGENET_MEAN, IMAGENET_STD, DataSpec, RealData
from usb_rsmatch.data.sources.folder import Layout, Rows, folder
from usb_rsmatch.data.sources.source import FileSource
from usb_rsmatch.errors import UserError


def open_class_folders(data_dir: Path) -> RealData:
    """Your own images: `train/<class>/*` and `test/<class>/*` (or `val`) in `data_dir`, in any Pillow format.

    The native size is the shorter side of the first training image that can be read.
    """
    train, classes = class_folders(folder(data_dir / "train"), "{class}/**/{file}")
    test_root = data_dir / "test" if (data_dir / "test").is_dir() else data_dir / "val"
    test, _ = class_folders(test_root, "{class}/**/{file}", classes)
    side = _shorter_side(train)
    return RealData(DataSpec("folder", IMAGENET_MEAN, IMAGENET_STD, flip=True, img_size=side), classes, train, test)


def class_folders(
    root: Path, pattern: str, classes: tuple[str, ...] | None = None
) -> tuple[FileSource, tuple[str, ...]]:
    """Images in class folders and the classes: those given, or the folders' names in order.

    Raises UserError for a missing folder, no images, and a folder that is not one of the given classes.
    """
    rows = Rows(file_index(folder(root)), Layout((pattern,)))
    rows = rows.where([parts is not None for parts in rows.parts])
    if not len(rows):
        raise UserError(f"{root}: contains no images with the layout {pattern}; check the path")
    found = rows.named("class")
    names = tuple(sorted({str(found[group]) for group in np.unique(rows.group)}))
    numbers = {name: i for i, name in enumerate(classes or names)}
    strange = [name for name in names if name not in numbers]
    if strange:
        raise UserError(
            f"{root}: the folder {strange[0]!r} is not one of the {len(numbers)} training classes; remove it"
        )
    labels = rows.labels(lambda names: np.array([numbers[str(name)] for name in names], dtype=np.int64))
    return FileSource(str(root), rows.files(), labels), tuple(numbers)


def _shorter_side(source: FileSource) -> int:
    """The shorter side of the first readable image; `on_error` decides later about unreadable ones."""
    for number, file in enumerate(source.files):
        with contextlib.suppress(UserError):
            return min(read_image(file, source.name(number)).size)
    raise UserError(f"{source.origin}: none of its {len(source)} images can be read; restore them")
