"""Further real data sets, in the layouts that USB reads: TissueMNIST, ImageNet-127, Semi-Aves and Semi-iNat."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from usb_rsmatch.data.sources.class_names import UNKNOWN
from usb_rsmatch.data.sources.dataset_registry import IMAGENET_MEAN, IMAGENET_STD, DataSpec, RealData
from usb_rsmatch.data.sources.imagenet import open_imagenet, read_lines
from usb_rsmatch.data.sources.npz import load_arrays
from usb_rsmatch.data.sources.source import ArraySource, FileSource
from usb_rsmatch.errors import UserError

TISSUES = (
    "Collecting Duct, Connecting Tubule",
    "Distal Convoluted Tubule",
    "Glomerular endothelial cells",
    "Interstitial endothelial cells",
    "Leukocytes",
    "Podocytes",
    "Proximal Tubule Segments",
    "Thick Ascending Limb",
)


def open_tissuemnist(data_dir: Path) -> RealData:
    """TissueMNIST from MedMNIST's `tissuemnist.npz`; its validation part stays unused, as in USB."""
    places = [data_dir / place / "tissuemnist.npz" for place in ("medmnist/tissuemnist", "medmnist", ".")]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise UserError(f"tissuemnist: {places[0]} does not exist; copy it there")
    train, test = (_part(path, part) for part in ("train", "test"))
    return RealData(DataSpec("tissuemnist", (0.5,), (0.5,), flip=True, img_size=28), TISSUES, train, test)


def open_imagenet127(data_dir: Path) -> RealData:
    """ImageNet-127 in ImageNet's layout; as in USB the same share of each class is labelled."""
    real = open_imagenet(data_dir, "imagenet127")
    return replace(real, proportional=True)


def open_semi_fgvc(name: str, outside: bool, data_dir: Path) -> RealData:
    """Semi-Aves or Semi-iNat (Su & Maji 2021): `semi_fgvc/<name>/*.txt`, lines of a file and its class number.

    As in USB, all training and validation images are labelled, and `num_labels` is ignored. The unlabelled images
    belong to the same classes, or with `outside` to other classes.
    """
    places = [data_dir / place / name for place in ("semi_fgvc", ".")]
    root = next((place for place in places if (place / "l_train_val.txt").is_file()), None)
    if root is None:
        raise UserError(f"{name}: no l_train_val.txt in {places[0]} or {places[1]}; unpack it there or set data_dir")
    train, test = _listed(root / "l_train_val.txt"), _listed(root / "test.txt")
    further = _listed(root / ("u_train_out.txt" if outside else "u_train_in.txt"))
    further.labels[:] = UNKNOWN
    n = int(max(train.labels.max(), test.labels.max())) + 1
    spec = DataSpec(name, IMAGENET_MEAN, IMAGENET_STD, flip=True, img_size=224)
    return RealData(spec, tuple(map(str, range(n))), train, test, further, all_labeled=True)


def _listed(table: Path) -> FileSource:
    """The images of a list, whose paths are relative to its folder."""
    try:
        lines = [line.rsplit(None, 1) for line in read_lines(table)]
        labels = np.array([int(line[1]) for line in lines], dtype=np.int64)
    except (ValueError, IndexError):
        raise UserError(f"{table}: must contain a file and a class number per line; unpack it again") from None
    if not len(labels) or labels.min() < 0:
        raise UserError(f"{table}: contains no images, or a negative class number; unpack it again")
    return FileSource(str(table), [table.parent / line[0] for line in lines], labels)


def _part(path: Path, part: str) -> ArraySource:
    images, labels = load_arrays(path, (f"{part}_images",), (f"{part}_labels",))
    if labels is None or labels.max(initial=0) >= len(TISSUES) or labels.min(initial=0) < 0:
        raise UserError(f"{path}: has no labels from 0 to {len(TISSUES) - 1}; download it again")
    return ArraySource("tissuemnist", images, labels)


open_semi_aves = partial(open_semi_fgvc, "semi_aves", False)
open_semi_aves_out = partial(open_semi_fgvc, "semi_aves", True)
open_semi_inat = partial(open_semi_fgvc, "semi_inat", False)
