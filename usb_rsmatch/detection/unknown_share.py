"""The share of synthetic images among those of unknown provenance, estimated from a run's own detector."""

from __future__ import annotations

from typing import Any

import numpy as np

from usb_rsmatch.counter_rng import generator
from usb_rsmatch.detection.audit_verdict import REASONS, SHARE, verdict
from usb_rsmatch.detection.measure import MEASURED, score_images
from usb_rsmatch.detection.share_estimation import Scored, log_odds

FEWEST = 40  # real images, and images of unknown provenance, with fewer of which no share is stated (ours)


def unknown_share(algorithm: Any, scores: np.ndarray, seed: int) -> dict[str, Any]:
    """The estimate from the probabilities float [n] of all images of unknown provenance, as plain values for JSON.

    {"images", "estimate", "low", "high", "real_images", "real_part"}: shares are 0 to 1, and None, with a "reason",
    where there are too few images, or where an audit by this detector would state none. Labelled images cannot be the
    real side, because the detector was trained on them.
    """
    part = next(name for name in ("validation", "eval") if _size(algorithm, name) >= FEWEST or name == "eval")
    real = algorithm.dataset_dict[part]
    report: dict[str, Any] = {
        "images": len(scores),
        "real_images": min(len(real), MEASURED),
        "real_part": "test" if part == "eval" else part,
    }
    if min(len(scores), len(real)) < FEWEST:
        reason = f"fewer than {FEWEST} images of unknown provenance, or {report['real_part']} images"
        return {**report, "estimate": None, "low": None, "high": None, "reason": reason}
    chosen = _sample(len(real), seed, "real side of the share")
    of_real = score_images(algorithm, real, chosen, algorithm.synthetic_probability)
    rows = _sample(len(scores), seed, "unknown side of the share")
    found = verdict([[Scored(log_odds(of_real), log_odds(scores[rows]), rows)]], algorithm.args.img_size, seed)
    if found.said != SHARE:
        return {**report, "estimate": None, "low": None, "high": None, "reason": REASONS[found.said]}
    return {**report, "estimate": found.share.estimate, "low": found.share.low, "high": found.share.high}


def _size(algorithm: Any, part: str) -> int:
    return len(algorithm.dataset_dict.get(part) or ())


def _sample(size: int, seed: int, name: str) -> np.ndarray:
    """All rows int64, or `MEASURED` of them, chosen by the seed."""
    if size <= MEASURED:
        return np.arange(size)
    return np.sort(generator(seed, name).choice(size, MEASURED, replace=False))
