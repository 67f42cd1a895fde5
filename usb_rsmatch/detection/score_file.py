"""Scores of any external detector, by index into the pool or by file name: `rs_detector: scores:FILE.csv`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from usb_rsmatch.csv_files import PathEnds, read_score_table
from usb_rsmatch.errors import UserError


def read_scores(path: str, names: Sequence[str]) -> np.ndarray:
    """Probabilities of being synthetic, float32 [N], of a pool's images, from a CSV with a column `score`.

    A column `index` identifies the image in the pool, or a column `file` by its path or a unique end of its path;
    `names` [N] are the pool's. Files outside of the pool are ignored; each image of the pool needs exactly one score.
    Raises UserError for a missing file or column, a score outside [0, 1], an image without a score or
    with two.
    """
    called = Path(path).name
    rows, by_index = read_score_table(path, "rs_detector")
    ends = None if by_index else PathEnds(names)
    scores = np.full(len(names), np.nan, dtype=np.float32)
    for line, row in enumerate(rows, start=2):
        where = f"rs_detector: {called}:{line}"
        try:
            score = float(row["score"] or "")
            index = int(row["index"] or "") if ends is None else ends.find(row["file"] or "", where)
        except (TypeError, ValueError):
            raise UserError(f"{where}: has no {'index' if ends is None else 'file'} and score") from None
        if index is None:
            continue
        if not 0 <= index < len(names) or not 0.0 <= score <= 1.0:
            raise UserError(f"{where}: index {index} is to be under {len(names)}, score {score} in 0..1")
        if not np.isnan(scores[index]):
            raise UserError(f"{where}: {names[index]} has a score already")
        scores[index] = score
    missing = np.flatnonzero(np.isnan(scores))
    if len(missing):
        raise UserError(
            f"rs_detector: {called} has no score for {len(missing)} of the pool's {len(names)} images; "
            f"the first: {names[int(missing[0])]}"
        )
    return scores
