"""Which images of a batch look synthetic most reliably: those that rank high within their pseudo-class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

WINDOW = 32  # recent scores a class that an image is ranked among
FEWEST = 5  # of them before a class is ranked at all


class ClasswiseRanking:
    """Ranks scores among the recent ones of the same pseudo-class (our choice).

    Classes differ in how synthetic their images look, so a threshold for all would mine a few classes only. The window
    has a fixed size: the cost of a step does not grow with the pool.

    `scores` float32 [W] and `classes` int64 [W] are the window, the newest last; class -1 where nothing came yet.
    """

    def __init__(self, num_classes: int, classwise: bool = True, device: torch.device | str = "cpu") -> None:
        self.classwise, size = classwise, WINDOW * num_classes
        self.scores = torch.full((size,), float("nan"), device=device)
        self.classes = torch.full((size,), -1, dtype=torch.int64, device=device)

    def to(self, device: torch.device | str) -> None:
        """Move the window to a device."""
        self.scores, self.classes = self.scores.to(device), self.classes.to(device)

    def rank(self, scores: Tensor, classes: Tensor) -> Tensor:
        """Share of the recent scores of its class that each image is at or above, float [B]; 0 where too few are known.

        `scores` float [B], `classes` int64 [B]; they join the window first, in the place of the oldest.
        """
        classes = classes if self.classwise else torch.zeros_like(classes)
        scores, size, new = scores.float(), len(self.scores), len(scores)
        self.scores = torch.cat([self.scores[new:], scores[-size:]])
        self.classes = torch.cat([self.classes[new:], classes[-size:]])
        same = self.classes == classes[:, None]
        below = (same & (self.scores <= scores[:, None])).sum(1)
        count = same.sum(1)
        return torch.where(count >= FEWEST, below / count.clamp(min=1), 0.0)

    def state_dict(self) -> dict[str, Any]:
        return {"scores": self.scores.cpu().clone(), "classes": self.classes.cpu().clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a window; one with a `position`, of an older checkpoint, is a ring that starts there."""
        oldest = state.get("position", 0)
        self.scores.copy_(state["scores"].roll(-oldest))
        self.classes.copy_(state["classes"].roll(-oldest))
