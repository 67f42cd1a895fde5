"""Generates images with the flow model: trains it on real images and caches the model and the images."""

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
from usb_rsmatch.synthesis.flow_sampler import BATCH, sample
from usb_rsmatch.synthesis.flow_settings import FlowSettings
from usb_rsmatch.synthesis.flow_training import FlowModel, Progress, check_images, model_fingerprint, train_flow

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
    """`count` generated images, uint8 [count, H, W, C], and their classes, which alternate, int64 [count].

    Trains on the real images (uint8 [N, H, W, C], int64 [N]), or loads the model and images from the cache. If
    the cache has fewer images, only the others are generated. Processes that need the same model wait for each other.
    Raises UserError for unsuitable images, and if the cache cannot be written or read.
    """
    check_images(real_images, real_labels, num_classes)
    folder = cache_folder(cache_dir)
    key = model_fingerprint(real_images, real_labels, num_classes, settings, seed)
    sampling_key = hashlib.blake2b(repr(settings.stage("sample")).encode(), digest_size=4).hexdigest()
    cache_file = folder / f"flow-{key}-{sampling_key}.npz"
    labels = np.arange(count, dtype=np.int64) % num_classes
    try:
        with file_lock(folder / f"flow-{key}.lock"):
            images = _read_cache(cache_file, real_images.shape[1:])
            if len(images) >= count:
                return images[:count], labels
            checkpoint = folder / f"flow-{key}.pt"
            model = train_flow(
                real_images, real_labels, num_classes, settings, seed, progress, checkpoint, device=device
            )
            # Saved up to eight times, so that a stopped run does not start again.
            for stop in _save_points(len(images), count, BATCH * max(8, math.ceil(count / (8 * BATCH)))):
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
                with atomic_write(cache_file) as temporary, open(temporary, "wb") as file:
                    np.savez(file, images=images, labels=labels[: len(images)])
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"the cache {folder} cannot be used ({reason}): set USB_RSMATCH_CACHE to another") from error
    return images, labels


def _save_points(done: int, total: int, stride: int) -> list[int]:
    """The numbers of images between `done` and `total` at which to save: multiples of `stride`, and `total`."""
    return [*range(done - done % stride + stride, total, stride), total]


def _read_cache(cache_file: Path, shape: tuple[int, ...]) -> np.ndarray:
    """The cached images; an empty array of images of `shape` if there are none."""
    if not cache_file.exists():
        return np.empty((0, *shape), dtype=np.uint8)
    try:
        with np.load(cache_file, allow_pickle=False) as arrays:
            return arrays["images"]
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{cache_file} is damaged: remove it to make the images again") from error
