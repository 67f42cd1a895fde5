"""The option `difficulty` of a synthetic source: only images that were asked for at these difficulties."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from usb_rsmatch.errors import UserError
from usb_rsmatch.keys import short_repr


@dataclass(frozen=True)
class DifficultyRange:
    """Difficulties from `low` to `high`, both included, of the metadata that `usb-rsmatch synthesize` writes."""

    low: float
    high: float

    @classmethod
    def of_options(cls, options: Any, origin: str) -> DifficultyRange | None:
        """The range in a source's options: a number, or [low, high]; None without one. Raises UserError otherwise."""
        if options.get("difficulty") is None:
            return None
        value = options["difficulty"]
        ends = value if isinstance(value, (list, tuple)) else [value]
        numbers = all(isinstance(end, (int, float)) and not isinstance(end, bool) for end in ends)
        if len(ends) not in (1, 2) or not numbers or not 0 <= ends[0] <= ends[-1] <= 1:
            allowed = "a number from 0 to 1 or a range such as [0.3, 0.7]"
            raise UserError(f"{origin}: difficulty takes {allowed}, not {short_repr(value)}")
        return cls(float(ends[0]), float(ends[-1]))

    def select(self, asked: Sequence[float | None], origin: str) -> np.ndarray:
        """Which images bool [N] are in the range, by the difficulty that each was asked for.

        Raises UserError if an image has no difficulty, or if no image is in the range.
        """
        if any(value is None for value in asked):
            raise UserError(
                f"{origin}: difficulty is given, but its metadata has none; make images with --difficulty, or remove it"
            )
        values = np.array(asked, dtype=np.float64)
        inside = (self.low <= values) & (values <= self.high)
        if not inside.any():
            found = f"{values.min():g} to {values.max():g}" if len(values) else "none"
            raise UserError(f"{origin}: no image has a difficulty from {self.low:g} to {self.high:g}, only {found}")
        return inside


def asked_difficulty(value: Any) -> float | None:
    """A metadata value as a difficulty; None if it is not a number from 0 to 1."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if 0 <= number <= 1 else None
