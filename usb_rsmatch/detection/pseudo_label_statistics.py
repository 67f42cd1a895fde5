"""Statistics of the base rule's pseudo-labels by provenance of the images, for metrics only."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

PARTS = ("real", "synthetic", "unknown")  # in the order of `Provenance`


class PseudoLabelTally:
    """Counts pseudo-labels since the last evaluation, by provenance of the images; no step waits for the device.

    `sums` float64 [3, 4] has a row for real, one for synthetic and one for images of unknown provenance: the number of
    images, the sum of their mask, and, of images with a known class, the sum of the mask and the sum of the mask over
    correct pseudo-labels. Counting restarts with the first batch after a report, so that a run resumed after an
    evaluation can report it again.
    """

    def __init__(self) -> None:
        self.sums = torch.zeros(len(PARTS), 4, dtype=torch.float64)
        self.reported = False

    def add(self, provenance: Tensor, labels: Tensor, pseudo_label: Tensor, mask: Tensor) -> None:
        """Add one batch: `provenance` int64 [B], true `labels` int64 [B] (-1: unknown), `pseudo_label` int64 [B] or
        float [B, K], and the base rule's `mask` float [B] before RSMatch changes it."""
        if self.reported:
            self.sums, self.reported = torch.zeros_like(self.sums), False
        classes = pseudo_label.argmax(1) if pseudo_label.ndim == 2 else pseudo_label
        mask, known = mask.double(), (labels >= 0).double()
        values = torch.stack([torch.ones_like(mask), mask, mask * known, mask * (classes == labels)], dim=1)
        self.sums = self.sums.to(mask.device).index_add(0, provenance.long(), values)

    def report(self) -> dict[str, dict[str, float | None]]:
        """{"real" or "synthetic": {"utilisation", "accuracy"}}, each 0 to 1, None if nothing was counted.

        Also {"unknown": {"utilisation"}} where such images were counted: their classes are unknown too.
        """
        rows, self.reported = self.sums.tolist(), True
        report: dict[str, dict[str, float | None]] = {
            part: {"utilisation": used / seen if seen else None, "accuracy": right / known if known else None}
            for part, (seen, used, known, right) in zip(PARTS[:2], rows, strict=False)
        }
        seen, used = rows[2][:2]
        return {**report, PARTS[2]: {"utilisation": used / seen}} if seen else report

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self.sums.cpu().clone(), "reported": self.reported}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sums, self.reported = torch.zeros_like(self.sums), state["reported"]
        self.sums[: len(state["sums"])] = state["sums"]  # older checkpoints have no row of unknown provenance
