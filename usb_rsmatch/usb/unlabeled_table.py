"""`unlabeled.csv` of a finished run: class and probability of synthetic of every image of unknown provenance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from usb_rsmatch.csv_files import Cell, csv_rows
from usb_rsmatch.detection.detector import TRAINED
from usb_rsmatch.detection.unknown_share import unknown_share

NAME = "unlabeled.csv"
COLUMNS = ("file", "class", "confidence", "synthetic")
BATCH = 512  # images at once


def write_unlabeled(algorithm: Any, folder: Path) -> None:
    """Write a row per image, by the averaged weights, as `usb-rsmatch predict` would; nothing for other pools.

    `synthetic` is the probability by the detector, empty without one. The share that is estimated from these
    probabilities becomes `unknown` of the run's detection metrics; only a detector that was trained gives one.
    """
    pool = getattr(algorithm.args, "pool", None)
    if pool is None or not pool.unlabeled.is_unknown.any():
        return
    rows = np.flatnonzero(pool.unlabeled.is_unknown)
    classes = class_probabilities(algorithm, rows)
    hook = algorithm.hooks_dict.get("SyntheticDetectionHook")
    kind = "none" if hook is None else hook.kind
    scores = None if hook is None or kind == "none" else hook.pool_scores(algorithm, rows)
    with csv_rows(folder / NAME, COLUMNS) as write:
        for at, row in enumerate(rows.tolist()):
            score: Cell = "" if scores is None else float(scores[at])
            best = int(classes[at].argmax())
            write([pool.names[row], pool.classes[best], float(classes[at, best]), score])
    if scores is not None and kind in TRAINED:
        if not hasattr(algorithm, "detection_report"):  # in a process that did not train itself
            vars(algorithm).setdefault("log_dict", {})
            hook.measure(algorithm)
        algorithm.detection_report["unknown"] = unknown_share(algorithm, scores, algorithm.args.seed)


@torch.no_grad()
def class_probabilities(algorithm: Any, rows: np.ndarray) -> np.ndarray:
    """The averaged network's class probabilities float32 [n, K] of images of the pool, without augmentation."""
    parts = []
    with algorithm.averaged_weights():
        for start in range(0, len(rows), BATCH):
            x = algorithm.dataset_dict["train_ulb"].plain_views(rows[start : start + BATCH]).to(algorithm.device)
            output = algorithm.model(x)
            logits = output["logits"] if isinstance(output, dict) else output
            parts.append(logits.float().softmax(1).cpu().numpy())
    return np.concatenate(parts)
