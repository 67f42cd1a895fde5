"""Source `npz:FILE` and `dataset: npz`: arrays of images and labels, such as EDM's samples (Wang et al. 2023)."""

from __future__ import annotations

import math
import os
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from usb_rsmatch.data.images.decode import MIN_SIDE
from usb_rsmatch.data.images.hashes import content_order, image_digests
from usb_rsmatch.data.images.image_file import StoredImages
from usb_rsmatch.data.images.large_npz import array_header, large_order, open_large
from usb_rsmatch.data.sources.asked_difficulty import DifficultyRange, asked_difficulty
from usb_rsmatch.data.sources.class_names import ClassIndex, label_range_problem
from usb_rsmatch.data.sources.dataset_registry import IMAGENET_MEAN, IMAGENET_STD, DataSpec, RealData
from usb_rsmatch.data.sources.registry import SourceRequest
from usb_rsmatch.data.sources.source import ArraySource, Source
from usb_rsmatch.errors import UserError
from usb_rsmatch.io import parse_json

# Our own names, then those of NumPy's unnamed arrays (as ADM saves samples), of Keras and of MedMNIST.
IMAGE_KEYS = ("images", "image", "x", "arr_0", "x_train", "train_images")
LABEL_KEYS = ("labels", "label", "y", "arr_1", "y_train", "train_labels")
PART_KEYS = {
    "train": (("x_train", "train_images"), ("y_train", "train_labels")),
    "test": (("x_test", "test_images"), ("y_test", "test_labels")),
}
LARGE = 256 * 2**20  # bytes


def open_npz(argument: str, request: SourceRequest) -> Source:
    """The images of an npz file, ordered by content so that the order in the file does not matter.

    A folder is one that `usb-rsmatch synthesize --format npz` filled: its files are read together, with classes and
    the generator's name from its `synthesis.json`. Option: `difficulty`, see `asked_difficulty.py`.
    """
    request.reject_options(argument, "difficulty")
    root = Path(os.path.expanduser(argument))
    if argument and os.path.isdir(root):
        return _packed(root, request)
    if asked := DifficultyRange.of_options(request.options, argument):
        asked.select([None], argument)  # an npz file has no metadata
    images, labels = (read_npy(argument), None) if argument.endswith(".npy") else read_npz(argument)
    numbers = np.full(len(images), -1) if labels is None else request.classes.of_numbers(labels, argument)
    named = (request.generator,)
    if isinstance(images, StoredImages):
        order = large_order(images)
        return ArraySource(argument, images.take(order), numbers[order], named, numbers=order)
    return _ordered(argument, images, numbers, named)


def open_npz_dataset(data_dir: Path) -> RealData:
    """Your own images as `data_dir/train.npz` and `data_dir/test.npz`, classes named by their numbers.

    `data_dir` may also be, or contain as its only npz file, one file with the parts in Keras' or MedMNIST's keys.
    """
    parts, whole = {}, _one_file(data_dir)
    for part in ("train", "test"):
        images, labels = read_npz(data_dir / f"{part}.npz") if whole is None else load_arrays(whole, *PART_KEYS[part])
        if labels is not None and (problem := label_range_problem(labels, str(whole or data_dir / f"{part}.npz"))):
            raise UserError(problem)
        if labels is None or not len(labels) or labels.max() < 0:
            raise UserError(f"{data_dir / part}.npz: a real data set needs images with labels")
        if labels.max() >= len(labels):  # there would be fewer images than classes
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
    return RealData(DataSpec("npz", mean, std, flip=True, img_size=min(train.images.shape[1:3])), classes, train, test)


def _one_file(data_dir: Path) -> Path | None:
    """The npz file that contains all parts, None where each part has its own."""
    if data_dir.is_file():
        return data_dir
    files = sorted(data_dir.glob("*.npz"))
    return files[0] if len(files) == 1 and files[0].name not in ("train.npz", "test.npz") else None


def _ordered(argument: str, images: np.ndarray, numbers: np.ndarray, named: tuple[str, ...]) -> Source:
    digests = image_digests(images)
    order = content_order(digests)
    return ArraySource(argument, images[order], numbers[order], named, digests=digests[order], numbers=order)


def _packed(root: Path, request: SourceRequest) -> Source:
    """A folder of packed synthetic images, with their classes and their generator's name."""
    files = sorted(root.glob("images-*.npz"))
    try:
        run = parse_json((root / "synthesis.json").read_text(encoding="utf-8"))
        names, generator = run["label_names"], str(run["generator"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{root}: has no usable synthesis.json ({error}); name one of its npz files instead") from None
    if not files:
        raise UserError(f"{root}: contains no images-*.npz yet; let `usb-rsmatch synthesize` finish")
    parts = [read_npz(file) for file in files]
    images = np.concatenate([images[np.arange(len(images))] for images, _ in parts])
    labels = np.concatenate([np.empty(0, np.int64) if labels is None else labels for _, labels in parts])
    if len(labels) != len(images) or (len(labels) and not 0 <= labels.min() <= labels.max() < len(names)):
        raise UserError(f"{root}: labels do not belong to the classes of its synthesis.json; make the images again")
    numbers = request.classes.of_names([names[label] for label in labels], str(root))
    if asked := DifficultyRange.of_options(request.options, str(root)):
        inside = asked.select(_difficulties(root, files, [len(part) for part, _ in parts]), str(root))
        images, numbers = images[inside], numbers[inside]
    return _ordered(str(root), images, numbers, (generator,))


def read_npy(path: str | Path) -> np.ndarray:
    """The images of an npy file, uint8 [N, H, W, C], without labels. Raises UserError as `load_arrays` does."""
    try:
        images = np.load(os.path.expanduser(path), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: cannot be read as npy ({error}); check the path, or save a uint8 array") from None
    return _pixels(path, images)


def _difficulties(root: Path, files: Sequence[Path], counts: Sequence[int]) -> list[float | None]:
    """The difficulty that each image of packed files was asked for, None if `metadata.jsonl` does not have it."""
    starts = dict(zip([file.name for file in files], np.cumsum([0, *counts]).tolist(), strict=False))
    found: list[float | None] = [None] * sum(counts)
    try:
        for line in (root / "metadata.jsonl").read_text(encoding="utf-8").splitlines():
            row = parse_json(line)
            found[starts[row["shard"]] + int(row["index"])] = asked_difficulty(row.get("difficulty"))
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise UserError(f"{root}: difficulty needs its metadata.jsonl, which is not usable ({error})") from None
    return found


def read_npz(path: str | Path) -> tuple[np.ndarray | StoredImages, np.ndarray | None]:
    """uint8 [N, H, W, C] and integer labels [N], None if the file has none; see `load_arrays`."""
    return load_arrays(path, IMAGE_KEYS, LABEL_KEYS)


def load_arrays(
    path: str | Path, image_keys: Sequence[str], label_keys: Sequence[str]
) -> tuple[np.ndarray | StoredImages, np.ndarray | None]:
    """The first of the named arrays that an npz file has, as uint8 [N, H, W, C], and its integer labels [N].

    The images may be stored as N x H x W x C, N x C x H x W or N x H x W. Over `LARGE` bytes they stay on disk: an npz
    file is a zip file, in which NumPy cannot map memory. Raises UserError for a missing or
    damaged file, pickled objects, a wrong dtype or shape.
    """
    file = Path(os.path.expanduser(path))
    if not os.path.isfile(file):
        raise UserError(f"{path or 'npz'}: no such file; check the path")
    try:
        with open(file, "rb") as stream:
            whole = zipfile.is_zipfile(stream)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); fix that") from None
    if not whole:
        raise UserError(f"{path}: not an npz file, or incomplete; copy or download it again")
    try:
        with np.load(file, allow_pickle=False) as archive:
            images = _images(path, file, archive, image_keys)
            labels = _entry(archive, label_keys)
            keys = ", ".join(archive.files)
    except (OSError, ValueError, EOFError, KeyError, TypeError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        if "pickle" in str(error).lower():
            reason = "holds pickled objects, which are refused; save plain uint8 arrays"
        else:
            reason = f"cannot be read as npz ({error}); copy or download it again"
        raise UserError(f"{path}: {reason}") from None
    if images is None:
        raise UserError(f"{path}: has no array named {' or '.join(image_keys[:3])}, only {keys or 'nothing'}")
    return images, None if labels is None else _labels(path, labels, len(images))


def _images(
    path: str | Path, file: Path, archive: np.lib.npyio.NpzFile, keys: Sequence[str]
) -> np.ndarray | StoredImages | None:
    """The images of the first of the keys that there is, in memory or, if they are large, on disk."""
    key = next((key for key in keys if key in archive.files), None)
    if key is None:
        return None
    shape, fortran, dtype = array_header(file, key)
    if fortran or dtype.hasobject or math.prod(shape) * dtype.itemsize <= LARGE:
        return _pixels(path, archive[key])
    shown = _pixels(path, np.broadcast_to(np.zeros((), dtype), shape))  # checks shape and type without reading
    channels_first = len(shape) == 4 and shown.shape != shape
    return open_large(file, key, shape[1:] if len(shape) == 4 else (*shape[1:], 1), channels_first)


def _entry(archive: np.lib.npyio.NpzFile, keys: Sequence[str]) -> np.ndarray | None:
    return next((archive[key] for key in keys if key in archive.files), None)


def _pixels(path: str | Path, images: np.ndarray) -> np.ndarray:
    if images.dtype != np.uint8:
        raise UserError(f"{path}: images are {images.dtype}, must be uint8 (0 to 255); convert and save them again")
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim == 4 and images.shape[-1] not in (1, 3) and images.shape[1] in (1, 3):
        images = images.transpose(0, 2, 3, 1)
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise UserError(f"{path}: images have shape {images.shape}, must be N x H x W, N x H x W x 3 or N x 3 x H x W")
    if min(images.shape[1:3]) < MIN_SIDE:
        height, width = images.shape[1:3]
        raise UserError(f"{path}: images of {height} x {width} are too small, under {MIN_SIDE} pixels per side")
    return images


def _labels(path: str | Path, labels: np.ndarray, n: int) -> np.ndarray:
    if labels.ndim == 2 and len(labels) == n and labels.shape[1] > 1 and _one_hot(labels):
        labels = labels.argmax(axis=1)
    if labels.dtype.kind == "f" and np.isfinite(labels).all() and (labels == np.rint(labels)).all():
        labels = labels.astype(np.int64)
    if labels.shape not in ((n,), (n, 1)):
        raise UserError(f"{path}: labels have shape {labels.shape}, must have one value for each of the {n} images")
    if labels.dtype.kind not in "iu":
        raise UserError(f"{path}: labels are {labels.dtype}, must be integers")
    return labels.reshape(n)


def _one_hot(labels: np.ndarray) -> bool:
    return bool(np.isin(labels, (0, 1)).all() and (labels.sum(axis=1) == 1).all())
