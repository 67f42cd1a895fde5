"""The real data sets by name: their classes, statistics, training and test images."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from usb_rsmatch.data import keyed
from usb_rsmatch.data.classes import ClassIndex
from usb_rsmatch.data.decode import read_image
from usb_rsmatch.data.idx import find_idx, read_idx
from usb_rsmatch.data.index import file_index
from usb_rsmatch.data.layouts import Layout, Rows, folder
from usb_rsmatch.data.npz import read_npz
from usb_rsmatch.data.records import DataSpec
from usb_rsmatch.data.sources import ArraySource, FileSource, Source
from usb_rsmatch.errors import UserError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GARMENTS = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


@dataclass(frozen=True)
class RealData:
    """A real data set before it is split.

    `unlabeled` holds further training images that may never be labelled (STL-10's), `aliases` other names of
    the classes. With `proportional` the same share of each class is labelled, with `all_labeled` all of `train`.
    """

    spec: DataSpec
    classes: tuple[str, ...]
    train: Source
    test: Source
    unlabeled: Source | None = None
    proportional: bool = False
    all_labeled: bool = False
    aliases: Mapping[str, int] = field(default_factory=dict)


RealOpener = Callable[[Path], RealData]
_DATASETS: dict[str, RealOpener] = {}


def register_dataset(name: str, opener: RealOpener) -> None:
    """Make `dataset: name` known: `opener(data_dir)` gives it. The same function may come again.

    Raises ValueError where the name already belongs to another function.
    """
    if _DATASETS.setdefault(name, opener) is not opener:
        raise ValueError(f"the data set name {name!r} is taken by {_DATASETS[name].__qualname__}")


def dataset_names() -> tuple[str, ...]:
    """Every name that `dataset:` takes."""
    from usb_rsmatch.data import mnist5k, torchvision_sets, usb_sets  # noqa: F401  they register theirs above

    return tuple(sorted(_DATASETS))


def open_real(name: str, data_dir: str | Path) -> RealData:
    """The real data set `name` from `data_dir`.

    Raises UserError for an unknown name, and whatever is wrong with its files.
    """
    if name not in dataset_names():
        raise UserError(f"dataset: {name!r} is unknown; known: {', '.join(dataset_names())}")
    return _DATASETS[name](Path(os.path.expanduser(data_dir)))


def open_digits(data_dir: Path) -> RealData:
    """scikit-learn's 1,797 digits of 8 x 8 pixels, which need no files: grey levels 0..16 as 0..255.

    A fifth of each class, fixed once for all seeds, is the test set.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = digits.target.astype(np.int64)
    is_test = np.zeros(len(labels), dtype=np.bool_)
    for c in range(10):
        members = keyed.generator(0, "digits", "test", c).permutation(np.flatnonzero(labels == c))
        is_test[members[: round(len(members) / 5)]] = True
    return RealData(
        DataSpec("digits", mean=(0.3054,), std=(0.3760,), flip=False, img_size=8),
        tuple(map(str, range(10))),
        ArraySource("digits", images[~is_test], labels[~is_test]),
        ArraySource("digits", images[is_test], labels[is_test]),
    )


def open_fashionmnist(data_dir: Path) -> RealData:
    """Fashion-MNIST from its IDX files: torchvision's folders, plain in `data_dir`, or Debian's package."""
    folders = [
        *(data_dir / place / "FashionMNIST" / "raw" for place in (".", "fashionmnist")),
        data_dir / "fashionmnist",
        data_dir,
        Path("/usr/share/datasets/fashion-mnist"),
    ]
    stems = {part: (f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte") for part in ("train", "t10k")}
    if not all(find_idx(folders, stem) for pair in stems.values() for stem in pair):
        from usb_rsmatch.data.torchvision_sets import download

        download("FashionMNIST", data_dir / "fashionmnist", [{"train": True}])
    sources = {}
    for part, pair in stems.items():
        images, labels = (read_idx(_found(find_idx(folders, stem), stem, data_dir)) for stem in pair)
        if images.ndim != 3 or labels.shape != images.shape[:1] or labels.max(initial=0) > 9:
            raise UserError(f"fashionmnist: {pair[0]} and {pair[1]} do not belong together; copy them again")
        sources[part] = ArraySource("fashionmnist", images[..., None], labels)
    spec = DataSpec("fashionmnist", mean=(0.2860,), std=(0.3530,), flip=True, img_size=28)
    return RealData(spec, GARMENTS, sources["train"], sources["t10k"])


def open_tinyimagenet(data_dir: Path) -> RealData:
    """TinyImageNet as unpacked; the test set are its validation images, labelled by `val_annotations.txt`."""
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


def open_folder(data_dir: Path) -> RealData:
    """Your own images: `train/<class>/*` and `test/<class>/*` (or `val`) in `data_dir`, in any Pillow format.

    The native size is the shorter side of the first training image that can be read.
    """
    train, classes = class_folders(folder(data_dir / "train"), "{class}/**/{file}")
    test_root = data_dir / "test" if (data_dir / "test").is_dir() else data_dir / "val"
    test, _ = class_folders(test_root, "{class}/**/{file}", classes)
    side = _shorter_side(train)
    return RealData(
        DataSpec("folder", IMAGENET_MEAN, IMAGENET_STD, flip=True, img_size=side), classes, train, test
    )


def open_npz(data_dir: Path) -> RealData:
    """Your own images as `data_dir/train.npz` and `data_dir/test.npz`, classes named by their numbers."""
    parts = {}
    for part in ("train", "test"):
        images, labels = read_npz(data_dir / f"{part}.npz")
        if labels is None or not len(labels) or labels.max() < 0:
            raise UserError(f"{data_dir / part}.npz: a real data set needs images with labels")
        if labels.max() >= len(labels):  # fewer than one image a class, if it were right
            raise UserError(f"{data_dir / part}.npz: label {labels.max()} is out of range; number the classes from 0")
        parts[part] = (images, labels.astype(np.int64))
    least = parts["test"][1].min()
    if least < 0:
        raise UserError(f"{data_dir / 'test'}.npz: a test image has the label {least}; label or remove it")
    classes = tuple(map(str, range(int(parts["train"][1].max()) + 1)))
    index = ClassIndex(classes)
    train, test = (
        ArraySource(f"{part}.npz", images, index.of_numbers(labels, f"{data_dir / part}.npz"))
        for part, (images, labels) in parts.items()
    )
    depth = train.images.shape[-1]
    mean, std = ((0.5,), (0.5,)) if depth == 1 else (IMAGENET_MEAN, IMAGENET_STD)
    return RealData(
        DataSpec("npz", mean, std, flip=True, img_size=min(train.images.shape[1:3])), classes, train, test
    )


def class_folders(
    root: Path, pattern: str, classes: tuple[str, ...] | None = None
) -> tuple[FileSource, tuple[str, ...]]:
    """Images in class folders and the classes: those given, or the folders' names in order.

    Raises UserError for a missing folder, no images, and a folder that is none of the given classes.
    """
    rows = Rows(file_index(folder(root)), Layout((pattern,)))
    rows = rows.where([parts is not None for parts in rows.parts])
    if not len(rows):
        raise UserError(f"{root}: holds no images laid out as {pattern}; check the path")
    found = rows.named("class")
    names = tuple(sorted({str(found[group]) for group in np.unique(rows.group)}))
    numbers = {name: i for i, name in enumerate(classes or names)}
    strange = [name for name in names if name not in numbers]
    if strange:
        raise UserError(
            f"{root}: the folder {strange[0]!r} is none of the {len(numbers)} training classes; remove it"
        )
    labels = rows.labels(lambda names: np.array([numbers[str(name)] for name in names], dtype=np.int64))
    return FileSource(str(root), rows.files(), labels), tuple(numbers)


def _shorter_side(source: FileSource) -> int:
    """That of the first image that can be read; one that cannot be read is for `on_error` to judge later."""
    for number, file in enumerate(source.files):
        with contextlib.suppress(UserError):
            return min(read_image(file, source.name(number)).size)
    raise UserError(f"{source.origin}: none of its {len(source)} images can be read; restore them")


def _annotated(table: Path, index: ClassIndex) -> FileSource:
    """TinyImageNet's flat validation folder, labelled by its tab-separated table (file, wnid, box)."""
    rows = [line.split("\t") for line in read_lines(table)]
    if not rows or any(len(row) < 2 for row in rows):
        raise UserError(
            f"{table}: must hold a file name and a class a line, separated by tabs; unpack it again"
        )
    rows.sort()
    labels = index.of_names([row[1] for row in rows], str(table))
    if (labels < 0).any():
        raise UserError(
            f"{table}: {rows[int(labels.argmin())][1]!r} is not among the training classes; unpack it again"
        )
    return FileSource(str(table.parent), [table.parent / "images" / row[0] for row in rows], labels)


def read_lines(table: Path) -> list[str]:
    """The lines of a table that comes with a data set, less empty ones. Raises UserError where it cannot be read."""
    try:
        return [line for line in table.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise UserError(f"{table}: {error.strerror or error}; unpack it again") from None
    except UnicodeDecodeError:
        raise UserError(f"{table}: is no text in UTF-8; unpack it again") from None


def _synonyms(table: Path, classes: tuple[str, ...]) -> dict[str, int]:
    """Plain names of WordNet classes from lines "wnid name, name, ...", those that mean one class only."""
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
    raise UserError(
        f"{name}: no {inside}/ in {data_dir} or {data_dir / places[0]}; unpack it there or set data_dir"
    )


def _found(path: Path | None, stem: str, data_dir: Path) -> Path:
    if path is None:
        raise UserError(
            f"fashionmnist: {stem}[.gz] is in neither {data_dir} nor its FashionMNIST/raw; copy it there"
        )
    return path


for _name, _opener in {
    "digits": open_digits,
    "fashionmnist": open_fashionmnist,
    "tinyimagenet": open_tinyimagenet,
    "imagenet": open_imagenet,
    "folder": open_folder,
    "npz": open_npz,
}.items():
    register_dataset(_name, _opener)
