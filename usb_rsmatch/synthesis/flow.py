"""The flow generator as a function: real images in, generated images out, cached."""

from __future__ import annotations

import hashlib
import math
import os
import zipfile
from pathlib import Path

import numpy as np

from usb_rsmatch.cache import cache_folder, file_lock
from usb_rsmatch.errors import UserError
from usb_rsmatch.io import atomic_write
from usb_rsmatch.synthesis.sampler import BATCH, sample
from usb_rsmatch.synthesis.settings import FlowSettings
from usb_rsmatch.synthesis.training import FlowModel, Progress, check_images, fingerprint, train_flow

__all__ = ["FlowModel", "FlowSettings", "make_images", "sample", "train_flow"]


def make_images(
    real_images: np.ndarray,
    real_labels: np.ndarray,
    num_classes: int,
    count: int,
    settings: FlowSettings,
    seed: int,
    cache_dir: str | os.PathLike[str] | None = None,
    *,
    device: str = "auto",
    progress: Progress | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """`count` generated images, uint8 [count, H, W, C], and their classes in turn, int64 [count].

    Trains on the real images (uint8 [N, H, W, C], int64 [N]), or loads model and images from the cache; a
    larger count continues a smaller one. Processes that need the same model wait for each other.
    Raises UserError for unsuitable images, and if the cache cannot be written or read.
    """
    check_images(real_images, real_labels, num_classes)
    folder = cache_folder(cache_dir)
    key = fingerprint(real_images, real_labels, num_classes, settings, seed)
    sampling = hashlib.blake2b(repr(settings.stage("sample")).encode(), digest_size=4).hexdigest()
    store = folder / f"flow-{key}-{sampling}.npz"
    labels = np.arange(count, dtype=np.int64) % num_classes
    try:
        with file_lock(folder / f"flow-{key}.lock"):
            images = _cached(store, real_images.shape[1:])
            if len(images) >= count:
                return images[:count], labels
            checkpoint = folder / f"flow-{key}.pt"
            model = train_flow(
                real_images, real_labels, num_classes, settings, seed, progress, checkpoint, device=device
            )
            # Saved eight times, so that a stopped run need not start again.
            for stop in _stations(len(images), count, BATCH * max(8, math.ceil(count / (8 * BATCH)))):
                more = sample(
                    model,
                    labels,
                    settings,
                    seed,
                    start=len(images),
                    stop=stop,
                    device=device,
                    progress=progress,
                )
                images = np.concatenate([images, more])
                with atomic_write(store) as temporary, open(temporary, "wb") as file:
                    np.savez(file, images=images, labels=labels[: len(images)])
    except OSError as error:
        why = error.strerror or error
        raise UserError(f"the cache {folder} cannot be used ({why}): set USB_RSMATCH_CACHE to another") from error
    return images, labels


def _stations(done: int, total: int, stride: int) -> list[int]:
    """The points from `done` to `total` at which to save: multiples of `stride`, and the end."""
    return [*range(done - done % stride + stride, total, stride), total]


def _cached(store: Path, shape: tuple[int, ...]) -> np.ndarray:
    """The images kept in `store`, or none, of `shape`."""
    if not store.exists():
        return np.empty((0, *shape), dtype=np.uint8)
    try:
        with np.load(store) as kept:
            return kept["images"]
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{store} is damaged: remove it to make the images again") from error
