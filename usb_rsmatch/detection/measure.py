"""Measuring a score on the pool against provenance: the only place where the flags of a run are looked at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from usb_rsmatch.data.keyed import generator
from usb_rsmatch.detection.metrics import detection_report

MEASURED = 20_000  # images of the pool scored at an evaluation
BATCH = 512  # images scored at once


def measured_indices(pool: Any, seed: int) -> np.ndarray:
    """Indices int64 [n] of the pool's images that are measured: not labelled ones, at most `MEASURED`, by the seed."""
    unseen = np.flatnonzero(~pool.is_labeled)
    if len(unseen) > MEASURED:
        unseen = np.sort(generator(seed, "measured").choice(unseen, MEASURED, replace=False))
    return unseen


@torch.no_grad()
def score_images(algorithm: Any, dataset: Any, indices: np.ndarray, score: Callable[[Tensor], Tensor]) -> np.ndarray:
    """Scores float32 [n] of images of the pool, by the averaged weights on unaugmented images [b, 3, H, W]."""
    parts = [torch.empty(0, device=algorithm.device)]
    with algorithm.averaged_weights():
        for start in range(0, len(indices), BATCH):
            x = dataset.plain_views(indices[start : start + BATCH]).to(algorithm.device)
            parts.append(score(x).float())
    return torch.cat(parts).cpu().numpy()


def publish_report(algorithm: Any, pool: Any, indices: np.ndarray, scores: np.ndarray) -> None:
    """Put the detection metrics of `scores` float [n] into `algorithm.detection_report` and its log line."""
    report = detection_report(scores, pool.is_synthetic[indices], pool.generator[indices], pool.generators)
    algorithm.detection_report = report
    algorithm._pool_scores = indices, scores  # of this process, for `usb/analysis.py`
    for name in ("auroc", "ap", "fpr95"):
        if report[name] is not None:
            algorithm.log_dict[f"detection/{name}"] = report[name]
