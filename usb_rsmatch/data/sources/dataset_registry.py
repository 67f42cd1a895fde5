"""Registry of real data sets: finds the data set named by `dataset: NAME`, imports its module on first use."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from usb_rsmatch.data.sources.registry import imported
from usb_rsmatch.data.sources.source import Source
from usb_rsmatch.errors import UserError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class DataSpec:
    """How the images of a real data set are normalised and augmented.

    `mean` and `std` are those of its channels in [0, 1], `flip` says whether mirroring keeps the class, `img_size` is
    its native size in pixels.
    """

    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool
    img_size: int

    @property
    def channels(self) -> int:
        """1 for grey data sets, 3 for colour."""
        return len(self.mean)


@dataclass(frozen=True)
class RealData:
    """A real data set before it is split.

    `unlabeled` contains further training images without labels (as in STL-10), `aliases` are other names of the
    classes. `collected` contains images of unknown provenance, such as the user's `unlabeled/` folder: they belong to
    no class and to none of the real images. With `proportional` the same share of each class is labelled, with
    `all_labeled` all of `train`.
    """

    spec: DataSpec
    classes: tuple[str, ...]
    train: Source
    test: Source
    unlabeled: Source | None = None
    proportional: bool = False
    all_labeled: bool = False
    aliases: Mapping[str, int] = field(default_factory=dict)
    collected: Source | None = None


RealOpener = Callable[[Path], RealData]

_SOURCES = "usb_rsmatch.data.sources"
# An opener, or "module:function", which is imported when the name is first used.
_DATASETS: dict[str, RealOpener | str] = {
    "digits": f"{_SOURCES}.digits:open_digits",
    "mnist5k": f"{_SOURCES}.mnist5k:open_mnist5k",
    "photos": f"{_SOURCES}.photos:open_photos",
    "fashionmnist": f"{_SOURCES}.fashionmnist:open_fashionmnist",
    "folder": f"{_SOURCES}.class_folders:open_class_folders",
    "npz": f"{_SOURCES}.npz:open_npz_dataset",
    "cifar10": f"{_SOURCES}.torchvision_sets:open_cifar10",
    "cifar100": f"{_SOURCES}.torchvision_sets:open_cifar100",
    "svhn": f"{_SOURCES}.torchvision_sets:open_svhn",
    "stl10": f"{_SOURCES}.torchvision_sets:open_stl10",
    "eurosat": f"{_SOURCES}.torchvision_sets:open_eurosat",
    "tinyimagenet": f"{_SOURCES}.imagenet:open_tinyimagenet",
    "imagenet": f"{_SOURCES}.imagenet:open_imagenet",
    "imagenet127": f"{_SOURCES}.usb_sets:open_imagenet127",
    "tissuemnist": f"{_SOURCES}.usb_sets:open_tissuemnist",
    "semi_aves": f"{_SOURCES}.usb_sets:open_semi_aves",
    "semi_aves_out": f"{_SOURCES}.usb_sets:open_semi_aves_out",
    "semi_inat": f"{_SOURCES}.usb_sets:open_semi_inat",
}


def register_dataset(name: str, opener: RealOpener) -> None:
    """Make `dataset: name` known: `opener(data_dir)` returns it. The same opener may be given again.

    Raises ValueError if the name already belongs to another function.
    """
    if imported(_DATASETS.setdefault(name, opener)) is not opener:
        raise ValueError(f"the data set name {name!r} is taken by {imported(_DATASETS[name]).__qualname__}")


def dataset_names() -> tuple[str, ...]:
    """All names that `dataset:` accepts, sorted."""
    return tuple(sorted(_DATASETS))


def is_known_dataset(name: str) -> bool:
    """Whether `dataset: name` is a real data set that the pool reads."""
    return name in _DATASETS


def open_real(name: str, data_dir: str | Path, labels: str | Mapping[str, Any] | None = None) -> RealData:
    """The real data set `name` from `data_dir`; `labels` are tables of its images, see `label_table.py`.

    Raises UserError for an unknown name, for tables of a data set that has none, and for problems with its files.
    """
    if name not in _DATASETS:
        raise UserError(f"dataset: {name!r} is unknown; known: {', '.join(dataset_names())}")
    place = Path(os.path.expanduser(data_dir))
    if labels is None:
        return imported(_DATASETS[name])(place)
    if name != "folder":
        raise UserError(f"labels: is for dataset: folder, {name} has its own; remove one of them")
    return imported(f"{_SOURCES}.listed_images:open_listed_images")(place, labels)


def open_dataset(
    name: str,
    data_dir: str | Path,
    num_classes: int | None = None,
    skip_limit: float | None = None,
    labels: str | Mapping[str, Any] | None = None,
) -> RealData:
    """The data set, with a check of its number of classes.

    With `skip_limit` unreadable images are left out, up to that share; None means that they are errors.

    Raises UserError for missing or damaged files and another number of classes than `num_classes`.
    """
    data = open_real(name, data_dir, labels)
    if num_classes not in (None, len(data.classes)):
        raise UserError(
            f"num_classes: {num_classes} is given, {name} has {len(data.classes)}; correct num_classes, or leave it out"
        )
    if skip_limit is None:
        return data
    return replace(
        data,
        train=data.train.without_unreadable(skip_limit),
        test=data.test.without_unreadable(skip_limit),
        unlabeled=None if data.unlabeled is None else data.unlabeled.without_unreadable(skip_limit),
        collected=None if data.collected is None else data.collected.without_unreadable(skip_limit),
    )
