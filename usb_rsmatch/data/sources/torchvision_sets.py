"""Real data sets that torchvision reads from files on disk, downloaded only if they are missing."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from usb_rsmatch.data.sources.class_folders import class_folders
from usb_rsmatch.data.sources.dataset_registry import IMAGENET_MEAN, IMAGENET_STD, DataSpec, RealData
from usb_rsmatch.data.sources.source import ArraySource
from usb_rsmatch.errors import UserError

NETWORK_TIMEOUT = 20.0  # seconds without an answer before a download fails

Options = Mapping[str, Any]


@dataclass(frozen=True)
class TorchvisionSet:
    """A data set class of torchvision, with the options that open its parts, as USB combines them."""

    kind: str
    spec: DataSpec
    train: tuple[Options, ...]
    test: Options
    unlabeled: Options | None = None


def _over_255(*values: float) -> tuple[float, ...]:
    return tuple(value / 255 for value in values)


SETS = (
    TorchvisionSet(
        "CIFAR10",
        DataSpec("cifar10", IMAGENET_MEAN, IMAGENET_STD, flip=True, img_size=32),
        ({"train": True},),
        {"train": False},
    ),
    TorchvisionSet(
        "CIFAR100",
        DataSpec("cifar100", _over_255(129.3, 124.1, 112.4), _over_255(68.2, 65.4, 70.4), flip=True, img_size=32),
        ({"train": True},),
        {"train": False},
    ),
    TorchvisionSet(
        "SVHN",
        DataSpec("svhn", (0.4380, 0.4440, 0.4730), (0.1751, 0.1771, 0.1744), flip=True, img_size=32),
        ({"split": "train"}, {"split": "extra"}),
        {"split": "test"},
    ),
    TorchvisionSet(
        "STL10",
        DataSpec("stl10", _over_255(112.4, 109.1, 98.6), _over_255(68.4, 66.6, 68.5), flip=True, img_size=96),
        ({"split": "train"},),
        {"split": "test"},
        {"split": "unlabeled"},
    ),
)


def open_torchvision(row: TorchvisionSet, data_dir: Path) -> RealData:
    """A data set of the table, from `data_dir/<name>` (USB's place) or `data_dir`."""
    parts = [*row.train, row.test, *([row.unlabeled] if row.unlabeled else [])]
    opened = _open_all(row.kind, (data_dir / row.spec.name, data_dir), parts)
    arrays = [_arrays(part) for part in opened]
    name, n = row.spec.name, len(row.train)
    images, labels = (np.concatenate(column) for column in zip(*arrays[:n], strict=True))
    classes = tuple(getattr(opened[0], "classes", None) or map(str, range(int(labels.max()) + 1)))
    return RealData(
        row.spec,
        classes,
        ArraySource(name, images, labels),
        ArraySource(name, *arrays[n]),
        ArraySource(f"{name} unlabeled", *arrays[n + 1]) if row.unlabeled else None,
    )


def open_eurosat(data_dir: Path) -> RealData:
    """EuroSAT (RGB) from class folders: as in USB the last fifth of each class, by name, is the test set."""
    places = [data_dir / place for place in ("eurosat/eurosat/2750", "eurosat/2750", "eurosat", "2750")]
    if not any(place.is_dir() for place in places):
        download("EuroSAT", data_dir / "eurosat", [{}])
    root = next(place for place in places if place.is_dir())
    everything, classes = class_folders(root, "{class}/{file}")
    is_test = np.zeros(len(everything), dtype=np.bool_)
    for c in range(len(classes)):
        members = np.flatnonzero(everything.labels == c)
        is_test[members[int(0.8 * len(members)) :]] = True
    train, test = (everything.take(np.flatnonzero(rows)) for rows in (~is_test, is_test))
    return RealData(DataSpec("eurosat", (0.5,) * 3, (0.5,) * 3, flip=True, img_size=64), classes, train, test)


def download(kind: str, target: Path, parts: Sequence[Options]) -> None:
    """Fetch a data set of torchvision into `target`.

    It is downloaded to a temporary folder first, so that a failed download leaves nothing. Raises UserError if the
    download fails.
    """
    from torchvision import datasets

    timeout = socket.getdefaulttimeout()
    temporary: Path | None = None
    made = not target.parent.exists()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        socket.setdefaulttimeout(NETWORK_TIMEOUT)
        for options in parts:
            getattr(datasets, kind)(str(temporary), download=True, **options)
        target.mkdir(exist_ok=True)
        for item in temporary.iterdir():
            if not (target / item.name).exists():
                os.replace(item, target / item.name)
    except (OSError, RuntimeError, EOFError) as error:  # URLError is an OSError
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{kind} is not in {target} and cannot be downloaded ({reason}); copy it there or set data_dir"
        ) from None
    finally:
        socket.setdefaulttimeout(timeout)
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        if made:
            with contextlib.suppress(OSError):
                target.parent.rmdir()  # succeeds only if it is empty


def _open_all(kind: str, roots: Sequence[Path], parts: Sequence[Options]) -> list[Any]:
    """The parts of a data set from the first root that has them all, or downloaded into the first root."""
    for root in roots:
        opened = _try_open(kind, root, parts)
        if opened is not None:
            return opened
    download(kind, roots[0], parts)
    opened = _try_open(kind, roots[0], parts)
    if opened is None:
        raise UserError(f"{kind}: the files in {roots[0]} are incomplete or damaged; remove them and start again")
    return opened


def _try_open(kind: str, root: Path, parts: Sequence[Options]) -> list[Any] | None:
    from torchvision import datasets

    if not root.is_dir():
        return None
    try:
        return [getattr(datasets, kind)(str(root), download=False, **options) for options in parts]
    except (RuntimeError, FileNotFoundError):  # torchvision's errors for missing or damaged files
        return None


def _arrays(part: Any) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [N, H, W, 3] and int64 [N] of an opened part; SVHN and STL-10 keep their channels first."""
    images = np.asarray(part.data)
    if images.shape[-1] != 3:
        images = images.transpose(0, 2, 3, 1)
    labels = part.targets if hasattr(part, "targets") else part.labels
    return images, np.asarray(labels, dtype=np.int64)


open_cifar10, open_cifar100, open_svhn, open_stl10 = (partial(open_torchvision, row) for row in SETS)
