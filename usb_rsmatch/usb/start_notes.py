"""What a training says of its pool before the first step: how images become views, problems, and shortcuts."""

from __future__ import annotations

from typing import Any

from usb_rsmatch.data.pool.notes import empty_classes
from usb_rsmatch.data.pool.pool import HybridPool
from usb_rsmatch.data.pool.shortcuts import (
    QUICK_SAMPLE,
    shortcut_cues,
    shortcut_warnings,
    unknown_cues,
    unknown_warnings,
)
from usb_rsmatch.errors import UserError

# USB's imbalanced algorithms that divide by the number of labelled images of each class, or sample by it.
NEED_EVERY_CLASS = ("abc", "cossl", "crest", "saw")


def start_notes(pool: HybridPool) -> list[str]:
    """The lines on a pool at the start of a run."""
    height, width, channels = pool.unlabeled.images.shape[1:] if len(pool.unlabeled) else pool.test.images.shape[1:]
    mirrored = "mirrored at random" if pool.spec.flip else "not mirrored"
    views = f"images: {width} x {height} px, {'grey' if channels == 1 else 'colour'}, {mirrored} (key flip)"
    return [views, *(f"note: {line}" for line in pool.notes)]


def find_shortcuts(algorithm: Any) -> list[str]:
    """One line for each trivial cue that reveals provenance, or in which images of unknown provenance differ from real
    ones, if the algorithm trains a detector; else none.
    """
    pool = getattr(algorithm.args, "pool", None)
    if pool is None or not hasattr(algorithm, "detector_cost"):
        return []
    known = shortcut_warnings(shortcut_cues(pool, QUICK_SAMPLE))
    return known + unknown_warnings(unknown_cues(pool, QUICK_SAMPLE), len(pool.labeled))


def refuse_unlearnable(args: Any, pool: HybridPool) -> None:
    """Raise UserError for a pool without unlabelled images, and where the imbalanced algorithm needs labelled images of
    every class and some have none.
    """
    if not len(pool.unlabeled):
        raise UserError(
            "the pool has no unlabelled image: set include_lb_to_ulb: true, raise real_count, or add a source under "
            "`synthetic:` or `unlabeled:`"
        )
    empty = empty_classes(pool.classes, pool.labeled) if args.imb_algorithm in NEED_EVERY_CLASS else []
    if empty:
        raise UserError(
            f"imb_algorithm: {args.imb_algorithm} needs labelled images of every class, {len(empty)} have none, the "
            f"first: {empty[0]}; raise num_labels, lower lb_imb_ratio, or leave imb_algorithm out"
        )
