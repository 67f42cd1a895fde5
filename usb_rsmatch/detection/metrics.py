"""Detection metrics: AUROC, AP and FPR at 95 % TPR by generator, and the efficiency of mining."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

Metrics = dict[str, float | None]


def auroc(scores: np.ndarray, is_synthetic: np.ndarray) -> float | None:
    """Area under the ROC curve of `scores` float [N] for `is_synthetic` bool [N]; ties count half.

    None where it is undefined: images of one class only, or a score that is not finite. The next two do the same.
    """
    return float(roc_auc_score(is_synthetic, scores)) if _defined(scores, is_synthetic) else None


def average_precision(scores: np.ndarray, is_synthetic: np.ndarray) -> float | None:
    """Area under the precision-recall curve as a sum of steps, synthetic being the positive class."""
    return float(average_precision_score(is_synthetic, scores)) if _defined(scores, is_synthetic) else None


def fpr_at_tpr(scores: np.ndarray, is_synthetic: np.ndarray, tpr: float = 0.95) -> float | None:
    """The smallest false positive rate at a threshold that finds `tpr` of the synthetic images."""
    if not _defined(scores, is_synthetic):
        return None
    false_positive, true_positive, _ = roc_curve(is_synthetic, scores, drop_intermediate=False)
    return float(false_positive[np.searchsorted(true_positive, tpr, side="left")])


def detection_report(
    scores: np.ndarray, is_synthetic: np.ndarray, generator: np.ndarray, names: Sequence[str]
) -> dict[str, Any]:
    """Metrics of the whole pool, and of all real images against the images of each generator.

    `scores` float [N], `is_synthetic` bool [N], `generator` int [N] an index into `names`. Generators
    without an image here are left out. Returns {"auroc", "ap", "fpr95", "by_generator": {name: {"auroc",
    "ap", "fpr95"}}}.
    """
    by_generator = {}
    for g in np.unique(generator[is_synthetic]):
        chosen = ~is_synthetic | (generator == g)
        by_generator[names[g]] = _metrics(scores[chosen], is_synthetic[chosen])
    return {**_metrics(scores, is_synthetic), "by_generator": by_generator}


def mining_efficiency(mined: float, supervised: float) -> float | None:
    """The mined detector's AUROC above chance, divided by the supervised one's; both AUROCs of the same detector.

    `supervised` was trained with true provenance; None where it is no better than chance. Our choice.
    """
    return (mined - 0.5) / (supervised - 0.5) if supervised > 0.5 else None


def contamination(is_synthetic: np.ndarray) -> float | None:
    """The share of synthetic images in `is_synthetic` bool [N], true or identified; None for no image."""
    return float(np.mean(is_synthetic)) if len(is_synthetic) else None


def _defined(scores: np.ndarray, is_synthetic: np.ndarray) -> bool:
    return bool(is_synthetic.any() and not is_synthetic.all() and np.isfinite(scores).all())


def _metrics(scores: np.ndarray, is_synthetic: np.ndarray) -> Metrics:
    return {
        "auroc": auroc(scores, is_synthetic),
        "ap": average_precision(scores, is_synthetic),
        "fpr95": fpr_at_tpr(scores, is_synthetic),
    }
