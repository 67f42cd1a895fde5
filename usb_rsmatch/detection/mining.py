"""Mining: selects the images of a batch that rank highest within their pseudo-class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

WINDOW = 32  # recent scores per class among which an image is ranked
FEWEST = 5  # scores that a class needs before its images are ranked


class ClasswiseRanking:
    """Ranks scores among the recent ones of the same pseudo-class (our choice).

    Classes differ in how synthetic their images look, so one threshold for all would mine only a few classes. The
    window has a fixed size: the cost of a step does not grow with the pool.

    `scores` float32 [W] and `classes` int64 [W] are the window, the newest last; class -1 marks an empty place.
    """

    def __init__(self, num_classes: int, classwise: bool = True, device: torch.device | str = "cpu") -> None:
        self.classwise, size = classwise, WINDOW * num_classes
        self.scores = torch.full((size,), float("nan"), device=device)
        self.classes = torch.full((size,), -1, dtype=torch.int64, device=device)

    def to(self, device: torch.device | str) -> None:
        """Move the window to a device."""
        self.scores, self.classes = self.scores.to(device), self.classes.to(device)

    def rank(self, scores: Tensor, classes: Tensor) -> Tensor:
        """The share of its class's recent scores that each image reaches, float [B]; 0 where too few scores are known.

        `scores` float [B] and `classes` int64 [B] first replace the oldest entries of the window.
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
        """Load a window; one with a `position`, from an older checkpoint, is a ring buffer that starts there."""
        oldest = state.get("position", 0)
        self.scores.copy_(state["scores"].roll(-oldest))
        self.classes.copy_(state["classes"].roll(-oldest))
