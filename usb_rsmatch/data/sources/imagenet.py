"""`dataset: imagenet` and `tinyimagenet`, in the layout of their archives."""

from __future__ import annotations

from pathlib import Path

from usb_rsmatch.data.sources.class_folders import class_folders
from usb_rsmatch.data.sources.class_names import ClassIndex
from usb_rsmatch.data.sources.dataset_registry import IMAGENET_MEAN, IMAGENET_STD, DataSpec, RealData
from usb_rsmatch.data.sources.source import FileSource
from usb_rsmatch.errors import UserError


def open_tinyimagenet(data_dir: Path) -> RealData:
    """TinyImageNet as unpacked; its validation images, labelled by `val_annotations.txt`, are the test set."""
    root = _first(data_dir, "tinyimagenet", ("tiny-imagenet-200", "tinyimagenet", "."), "train")
    train, classes = class_folders(root / "train", "{class}/images/{file}")
    table = root / "val" / "val_annotations.txt"
    if table.is_file():
        test = _annotated(table, ClassIndex(classes))
    else:
        test, _ = class_folders(root / "val", "{class}/**/{file}", classes)
    spec = DataSpec("tinyimagenet", IMAGENET_MEAN, IMAGENET_STD, flip=True, img_size=64)
    return RealData(spec, classes, train, test, aliases=_synonyms(root / "words.txt", classes))


def open_imagenet(data_dir: Path, name: str = "imagenet") -> RealData:
    """ImageNet as `train/<wnid>/*` and `val/<wnid>/*`; its validation images are the test set."""
    root = _first(data_dir, name, (name, "."), "train")
    train, classes = class_folders(root / "train", "{class}/{file}")
    test, _ = class_folders(root / "val", "{class}/{file}", classes)
    spec = DataSpec(name, IMAGENET_MEAN, IMAGENET_STD, flip=True, img_size=224)
    aliases = _synonyms(root / "LOC_synset_mapping.txt", classes) or _synonyms(root / "words.txt", classes)
    return RealData(spec, classes, train, test, aliases=aliases)


def _annotated(table: Path, index: ClassIndex) -> FileSource:
    """TinyImageNet's flat validation folder, labelled by its tab-separated table (file, wnid, box)."""
    rows = [line.split("\t") for line in read_lines(table)]
    if not rows or any(len(row) < 2 for row in rows):
        raise UserError(f"{table}: must contain a file name and a class per line, separated by tabs; unpack it again")
    rows.sort()
    labels = index.of_names([row[1] for row in rows], str(table))
    if (labels < 0).any():
        raise UserError(
            f"{table}: {rows[int(labels.argmin())][1]!r} is not among the training classes; unpack it again"
        )
    return FileSource(str(table.parent), [table.parent / "images" / row[0] for row in rows], labels)


def read_lines(table: Path) -> list[str]:
    """The lines of a table that comes with a data set, without empty ones. Raises UserError if it cannot be read."""
    try:
        return [line for line in table.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise UserError(f"{table}: {error.strerror or error}; unpack it again") from None
    except UnicodeDecodeError:
        raise UserError(f"{table}: is not UTF-8 text; unpack it again") from None


def _synonyms(table: Path, classes: tuple[str, ...]) -> dict[str, int]:
    """Plain names of WordNet classes from lines "wnid name, name, ...", if they are unique to one class."""
    if not table.is_file():
        return {}
    numbers = {name: i for i, name in enumerate(classes)}
    owners: dict[str, set[int]] = {}
    for line in read_lines(table):
        wnid, _, names = line.replace("\t", " ", 1).partition(" ")
        if wnid in numbers:
            for name in names.split(","):
                owners.setdefault(name.strip(), set()).add(numbers[wnid])
    return {name: min(owner) for name, owner in owners.items() if name and len(owner) == 1}


def _first(data_dir: Path, name: str, places: tuple[str, ...], inside: str) -> Path:
    """The first of some folders in `data_dir` that has the folder `inside`."""
    for place in places:
        if (data_dir / place / inside).is_dir():
            return data_dir / place
    raise UserError(f"{name}: no {inside}/ in {data_dir} or {data_dir / places[0]}; unpack it there or set data_dir")
