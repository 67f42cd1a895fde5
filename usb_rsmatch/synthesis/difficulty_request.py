"""The difficulty that generated images are asked for: one value, a range, or that of the real images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from usb_rsmatch.counter_rng import generator
from usb_rsmatch.errors import UserError

DECIMALS = 4  # of an image's difficulty, so that its metadata has exactly the value that the network received


@dataclass(frozen=True)
class DifficultyRequest:
    """Difficulties from `low` to `high`, or with `match` the distribution of the real images of the class."""

    text: str
    low: float = 0.0
    high: float = 1.0
    match: bool = False

    @classmethod
    def parse(cls, text: str) -> DifficultyRequest:
        """The request that `--difficulty` names: a number, LOW:HIGH or match. Raises UserError for other texts."""
        if text == "match":
            return cls(text, match=True)
        try:
            ends = [float(part) for part in text.split(":")]
        except ValueError:
            ends = []
        if len(ends) not in (1, 2) or not 0 <= ends[0] <= ends[-1] <= 1:
            raise UserError(f"--difficulty {text}: must be a number from 0 to 1, a range such as 0.3:0.7, or match")
        return cls(text, ends[0], ends[-1])

    def draw(
        self, seed: int, labels: np.ndarray, ordinals: np.ndarray, real_scores: Callable[[int], np.ndarray]
    ) -> np.ndarray:
        """Difficulties float64 [n] of the images with classes `labels` [n] and numbers `ordinals` [n].

        Each depends only on (seed, class, number). `real_scores(class)` are the sorted scores of its real images.
        Source: our choice.
        """
        values = []
        for label, ordinal in zip(labels.tolist(), ordinals.tolist(), strict=True):
            share = generator(seed, "flow", "difficulty", label, ordinal).random()
            if self.match:
                scores = real_scores(label)
                values.append(float(scores[int(share * len(scores))]))
            else:
                values.append(self.low + share * (self.high - self.low))
        return np.array(values).round(DECIMALS)
