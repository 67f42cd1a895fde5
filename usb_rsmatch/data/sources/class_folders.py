"""Real data set `dataset: folder`: your own images, one folder per class; other data sets use the same reader."""

from __future__ import annotations

import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np

from usb_rsmatch.data.images.file_index import FileIndex, file_index
from usb_rsmatch.data.sources.class_names import UNKNOWN, ClassIndex
from usb_rsmatch.data.sources.dataset_registry import IMAGENET_MEAN, IMAGENET_STD, DataSpec, RealData
from usb_rsmatch.data.sources.folder import Layout, Rows, folder
from usb_rsmatch.data.sources.metadata import has_metadata, read_metadata, refuse_other_class
from usb_rsmatch.data.sources.source import FileSource
from usb_rsmatch.errors import UserError

TRAIN = ("train", "training")
TEST = ("test", "testing", "val", "valid", "validation")
UNLABELED = ("unlabeled", "unlabelled")
CLASSES = "{class}/**/{file}"
SIZE_SAMPLE = 1000  # images whose size is read


def open_class_folders(data_dir: Path) -> RealData:
    """Your own images: `train/<class>/*` and `test/<class>/*` (or `val`) in `data_dir`, in any Pillow format.

    Instead of class folders, a part may have Hugging Face's metadata. `unlabeled/**` contains collected images
    of unknown class and provenance. The native size is the shorter side of the commonest size of training images.
    """
    found, notes = _parts(folder(data_dir))
    train, classes = _read_part(found.get("train", data_dir / "train"), None)
    test, _ = _read_part(found.get("test", data_dir / "val"), classes)
    collected = None
    if "unlabeled" in found:
        index = file_index(found["unlabeled"])
        rows = Rows(index, Layout(("**/{file}",)))
        collected = FileSource(str(found["unlabeled"]), rows.files(), np.full(len(rows), UNKNOWN))
        collected.notes += [note for note in (index.unread_note(),) if note]
        if not len(collected):
            raise UserError(f"{found['unlabeled']}: contains no images; remove it or add some")
    side, size_note = native_size(train)
    train.notes += notes + ([size_note] if size_note else [])
    spec = DataSpec("folder", IMAGENET_MEAN, IMAGENET_STD, flip=True, img_size=side)
    return RealData(spec, classes, train, test, collected=collected)


def class_folders(
    root: Path, pattern: str, classes: tuple[str, ...] | None = None
) -> tuple[FileSource, tuple[str, ...]]:
    """Images in class folders and the classes: those given, or the folders' names in order.

    Raises UserError for a missing folder, no images, class folders whose names look identical or whose images are of
    formats that are not read, and a folder that is not one of the given classes.
    """
    index = file_index(folder(root))
    rows = Rows(index, Layout((pattern,)))
    rows = rows.where([parts is not None for parts in rows.parts])
    if not len(rows):
        raise UserError(f"{root}: contains no images with the layout {pattern}; check the path")
    found = rows.named("class")
    names = tuple(sorted({str(found[group]) for group in np.unique(rows.group)}))
    _refuse_unread_classes(root, index, names)
    numbers = {_composed(name): i for i, name in enumerate(classes or names)}
    twins = [name for name, count in Counter(map(_composed, names)).items() if count > 1]
    if twins:
        raise UserError(
            f"{root}: two class folders are both displayed as {twins[0]!r}, with different Unicode forms; merge them"
        )
    strange = [name for name in names if _composed(name) not in numbers]
    if strange:
        raise UserError(
            f"{root}: the folder {strange[0]!r} is not one of the {len(numbers)} training classes; remove it"
        )
    labels = rows.labels(lambda names: np.array([numbers[_composed(str(name))] for name in names], dtype=np.int64))
    source = FileSource(str(root), rows.files(), labels)
    source.notes += [note for note in (index.unread_note(),) if note]
    return source, classes or names


def _parts(data_dir: Path) -> tuple[dict[str, Path], list[str]]:
    """The folders of the parts, whose names may have any case, and a note on similar folders that are not read."""
    here = sorted(entry for entry in data_dir.iterdir() if entry.is_dir())
    found, notes = {}, []
    for part, names in (("train", TRAIN), ("test", TEST), ("unlabeled", UNLABELED)):
        candidates = sorted(
            (entry for entry in here if entry.name.casefold() in names),
            key=lambda entry: (names.index(entry.name.casefold()), entry.name not in names),
        )
        if candidates:
            found[part] = candidates[0]
        for other in candidates[1:]:
            if other.name.casefold() == candidates[0].name.casefold():
                raise UserError(f"{data_dir}: has {candidates[0].name}/ and {other.name}/; merge or rename one")
            notes.append(f"{other}: is not read, {candidates[0].name}/ is the {part} part")
    return found, notes


def _read_part(root: Path, classes: tuple[str, ...] | None) -> tuple[FileSource, tuple[str, ...]]:
    """A part in class folders or with metadata; UserError for images that lie in no class folder."""
    index = file_index(folder(root))
    places = [index.place(i) for i in range(len(index))]
    listed = read_metadata(root, places) if has_metadata(root) else None
    if listed is not None and listed.entries:
        texts = [listed.entries[place].label for place in places]
        without = next((place for place, text in zip(places, texts, strict=True) if text is None), None)
        if without is not None:
            raise UserError(f"{root}: {without} has no class in the metadata; give it one, or move it to unlabeled/")
        names = classes or tuple(sorted({str(text) for text in texts}))
        known = ClassIndex(names)
        labels = known.of_names(texts, str(root), numeric=classes is not None)
        if (labels < 0).any():
            strange = texts[int(labels.argmin())]
            raise UserError(f"{root}: the class {strange!r} of the metadata is not one of the {len(names)} classes")
        folders = [place.partition("/")[0] if "/" in place else None for place in places]
        refuse_other_class(root, list(zip(places, folders, texts, strict=True)), labels.tolist(), known)
        source = FileSource(str(root), Rows(index, Layout(("**/{file}",))).files(), labels)
        source.notes += known.notes + [note for note in (index.unread_note(),) if note]
        return source, names
    loose = [place for place in places if "/" not in place]
    if loose and len(loose) < len(places):
        raise UserError(
            f"{root}: {len(loose)} images lie in no class folder, the first: {loose[0]}; move them into one, or to "
            "unlabeled/ beside it"
        )
    source, names = class_folders(root, CLASSES, classes)
    source.notes += listed.notes if listed is not None else []
    return source, names


def _refuse_unread_classes(root: Path, index: FileIndex, names: tuple[str, ...]) -> None:
    """Refuse a class folder that has only files of formats that are not read: its class would be missing."""
    for place, count in index.unread.items():
        name = place.partition("/")[0]  # empty for files beside the class folders
        if name and name not in names:
            suffix = place.rpartition("/")[2] or "files without suffix"
            raise UserError(f"{root}: the class folder {name!r} has only {count} {suffix}, not read; convert or remove")


def native_size(source: FileSource) -> tuple[int, str | None]:
    """The shorter side of the commonest size of the images, by their headers, and a note if that changes images."""
    sizes = Counter(source.some_sizes(SIZE_SAMPLE))
    if not sizes:
        raise UserError(f"{source.origin}: none of its {len(source)} images can be read; restore them")
    (width, height), count = sizes.most_common(1)[0]
    side = min(width, height)
    if len(sizes) == 1:
        return side, None
    least = min(sizes, key=lambda size: (min(size), size))
    share = f"{100 * count / sum(sizes.values()):.0f} % of the images are {width} x {height} px"
    more = f"the smallest {least[0]} x {least[1]}; all are resized to {side} px unless img_size says otherwise"
    return side, f"{source.origin}: {share}, {more}"


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)
