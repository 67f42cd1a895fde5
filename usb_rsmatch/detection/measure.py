"""Metrics at evaluations: the pool's scores against provenance, the queue, and the base rule's pseudo-labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from usb_rsmatch.counter_rng import generator
from usb_rsmatch.detection.metrics import contamination, detection_report

MEASURED = 20_000  # images of the pool scored at an evaluation
BATCH = 512  # images scored at once


def measured_indices(pool: Any, seed: int) -> np.ndarray:
    """Indices int64 [n] of the pool images that are evaluated: unlabelled, at most `MEASURED`, chosen by the seed."""
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


@dataclass(frozen=True)
class Measured:
    """The results of an evaluation: `scores` float [n] of the images at `indices` int64 [n], and further figures.

    `share` is the estimate of the share of synthetic images, `queued` int64 holds the queue's indices (-1: empty) and
    `pseudo_labels` the report of `PseudoLabelTally`.
    """

    indices: np.ndarray
    scores: np.ndarray
    share: float | None = None
    queued: Tensor | None = None
    pseudo_labels: Mapping[str, Mapping[str, float | None]] | None = None


def publish_report(algorithm: Any, pool: Any, measured: Measured) -> None:
    """Store the detection metrics in `algorithm.detection_report`, and those that are numbers in its log.

    Images of unknown provenance are in no figure that compares with provenance; a share over them has no true value.
    """
    indices, scores = measured.indices, measured.scores
    of_known = ~pool.is_unknown[indices]
    known = indices[of_known]
    report = detection_report(scores[of_known], pool.is_synthetic[known], pool.generator[known], pool.generators)
    log = {f"detection/{name}": report[name] for name in ("auroc", "ap", "fpr95")}
    for generator_name, figures in report["by_generator"].items():
        log |= {f"detection/{generator_name}/{name}": value for name, value in figures.items()}
    if measured.share is not None:
        true = contamination(pool.is_synthetic[indices]) if len(known) == len(indices) else None
        report["share"] = {"estimate": measured.share, "true": true}
        log |= {f"detection/share_{name}": value for name, value in report["share"].items()}
    if measured.queued is not None and (queue := queue_report(measured.queued.cpu().numpy(), pool)):
        report["queue"] = queue
        log |= {f"queue/{name}": value for name, value in queue.items()}
    for part, figures in (measured.pseudo_labels or {}).items():
        report.setdefault("pseudo_labels", {})[part] = dict(figures)
        log |= {f"pseudo_labels/{part}_{name}": value for name, value in figures.items()}
    algorithm.detection_report = report
    algorithm._pool_scores = indices, scores  # of this process, for `usb/analysis.py`
    algorithm.log_dict.update({name: value for name, value in log.items() if value is not None})


def queue_report(queued: np.ndarray, pool: Any) -> dict[str, float | None] | None:
    """Purity and balance of a queue, from pool indices int64 (-1: empty); None for an empty queue.

    `purity` is the share of synthetic images among those of known provenance, `balance` the entropy of the images' true
    classes divided by that of a uniform distribution, 0 to 1 (without unknown classes). Each is None where no image of
    the queue has a known provenance, or class; purity also where the pool has images of unknown provenance and none
    that is known to be synthetic. Our choice.
    """
    queued = queued[queued >= 0]
    if not len(queued):
        return None
    known = queued[~pool.is_unknown[queued]]
    both = pool.is_synthetic.any() or not pool.is_unknown.any()
    purity = float(pool.is_synthetic[known].mean()) if both and len(known) else None
    counts = np.bincount(pool.labels[queued][pool.labels[queued] >= 0], minlength=1)
    if not counts.sum():
        return {"purity": purity, "balance": None}
    p = counts[counts > 0] / counts.sum()
    classes = max(2, len(np.unique(pool.labels[pool.labels >= 0])))
    balance = abs((p * np.log(p)).sum()) / np.log(classes)
    return {"purity": purity, "balance": float(balance)}
