"""`analysis.npz`, a finished run's data for plots: confusion matrix, pool scores, features, small images.

One file of about a megabyte at most, written at the end of a run, so that a report needs neither the data nor the
network. Writing it does not change the run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from usb_rsmatch.counter_rng import generator
from usb_rsmatch.io import atomic_write

NAME = "analysis.npz"
FORMAT = 1
FEATURES = 600  # images whose features are stored, half of them not known to be real if possible
FEATURE_BATCH = 256
EXTREMES = 28  # images with the lowest and with the highest scores
QUEUED = 60  # images of the queue, distributed over its classes
PICTURE = 64  # pixels; larger images are reduced


def write_analysis(algorithm: Any, folder: Path) -> Path:
    """Write the file of a finished run; returns its path. `report/analysis_file.py` reads it."""
    content: dict[str, Any] = {"format": FORMAT, "confusion": confusion(algorithm)}
    pool = getattr(algorithm.args, "pool", None)
    if pool is not None:
        content["classes"] = np.array(pool.classes, dtype=np.str_)
        content["generators"] = np.array(pool.unlabeled.generators, dtype=np.str_)
        content |= features(algorithm, pool.unlabeled)
        content |= scores(algorithm, pool.unlabeled)
    with atomic_write(folder / NAME) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **content)
    return folder / NAME


def confusion(algorithm: Any) -> np.ndarray:
    """Counts int64 [K, K] of the EMA weights on the test set, true class by predicted class."""
    if getattr(algorithm, "_confusion", None) is None:  # in a process that did not train itself
        algorithm.evaluate()
    return algorithm._confusion


@torch.no_grad()
def features(algorithm: Any, pool: Any) -> dict[str, np.ndarray]:
    """The averaged network's features float16 [m, F] of images of the pool, with class and generator of each."""
    unlabeled = np.flatnonzero(~pool.is_labeled)
    real, others = unlabeled[pool.is_real[unlabeled]], unlabeled[~pool.is_real[unlabeled]]
    half = min(FEATURES // 2, len(others))
    draw = generator(algorithm.args.seed, "analysis")
    chosen = np.concatenate([draw.permutation(real)[: FEATURES - half], draw.permutation(others)[:half]])
    parts = []
    with algorithm.averaged_weights():
        for start in range(0, len(chosen), FEATURE_BATCH):
            x = algorithm.dataset_dict["train_ulb"].plain_views(chosen[start : start + FEATURE_BATCH])
            output = algorithm.model(x.to(algorithm.device))
            if not isinstance(output, dict) or "feat" not in output:  # a plugin's network may have none
                return {}
            parts.append(output["feat"].flatten(1).float().cpu().numpy())
    if not parts:
        return {}
    return {
        "features": np.concatenate(parts).astype(np.float16),
        "features_class": pool.labels[chosen],
        "features_generator": pool.generator[chosen],
    }


def scores(algorithm: Any, pool: Any) -> dict[str, np.ndarray]:
    """The detector's scores float32 [n] with each image's generator, and thumbnails; nothing without a detector."""
    if not hasattr(algorithm, "_pool_scores"):  # in a process that did not train itself
        vars(algorithm).setdefault("log_dict", {})
        for hook in algorithm.hooks_dict.values():
            if hasattr(hook, "measure"):
                hook.measure(algorithm)
    indices, score = getattr(algorithm, "_pool_scores", (np.empty(0, np.int64), np.empty(0, np.float32)))
    if not len(indices):
        return {}
    order = indices[np.argsort(score, kind="stable")]
    by_index = np.full(len(pool), np.nan, dtype=np.float32)
    by_index[indices] = score
    content = {"scores": score.astype(np.float32), "scores_generator": pool.generator[indices]}
    most = min(EXTREMES, len(order) // 2)
    shown = {"lowest": order[:most], "highest": order[::-1][:most]}
    queue = getattr(algorithm.hooks_dict.get("SyntheticDetectionHook"), "queue", None)
    if queue is not None and len(queue):
        entries = queue.state_dict()
        queued, content["queue_class"] = entries["indices"].numpy(), entries["classes"].numpy()
        content["queue_generator"] = pool.generator[queued]
        places = spread_over_classes(content["queue_class"], QUEUED)
        shown["queued"] = queued[places]
        content["queued_class"] = content["queue_class"][places]
    for name, index in shown.items():
        content[f"{name}_images"] = thumbnails(pool.images[index])
        content[f"{name}_scores"] = by_index[index]  # NaN for an image that was not evaluated
        content[f"{name}_generator"] = pool.generator[index]
    return content


def spread_over_classes(classes: np.ndarray, count: int) -> np.ndarray:
    """Positions of at most `count` of `classes` int64 [n], equally many of each class, the newest (last) ones."""
    present = np.unique(classes)[:count]
    each = count // max(len(present), 1)
    parts = [np.flatnonzero(classes == label)[::-1][:each] for label in present]
    return np.concatenate([np.empty(0, np.int64), *parts])


def thumbnails(images: np.ndarray) -> np.ndarray:
    """Images uint8 [n, H, W, C], reduced to at most `PICTURE` pixels per side, with their aspect ratio kept."""
    if max(images.shape[1:3]) <= PICTURE:
        return images
    reduced = []
    for image in images:
        thumbnail = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
        thumbnail.thumbnail((PICTURE, PICTURE), Image.Resampling.LANCZOS)
        array = np.asarray(thumbnail)
        reduced.append(array[..., None] if array.ndim == 2 else array)
    return np.stack(reduced)
