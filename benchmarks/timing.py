"""Timing of alternatives ("sides") in one process: they alternate round by round, after a warm-up."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

# Runs one alternative once and returns the seconds it took.
Side = Callable[[], float]


def median_min_max(values: Sequence[float], digits: int = 4) -> dict[str, float]:
    """Return median, minimum and maximum, rounded."""
    centre = statistics.median(values)
    return {"median": round(centre, digits), "min": round(min(values), digits), "max": round(max(values), digits)}


def ratios(upper: Sequence[float], lower: Sequence[float]) -> list[float]:
    """Return upper / lower for each round: a busy machine slows both sides of a round, so the ratio stays fair."""
    return [a / b for a, b in zip(upper, lower, strict=True)]


def time_alternately(sides: Mapping[str, Side], rounds: int, warmup: int = 1) -> dict[str, list[float]]:
    """Return the seconds of each side in each of `rounds` rounds; `warmup` rounds before them do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(warmup + rounds):
        for name, side in sides.items():
            taken = side()
            if number >= warmup:
                seconds[name].append(taken)
    return seconds


def timed(function: Callable[[], Any]) -> Side:
    """Return a side that calls `function`."""

    def side() -> float:
        begin = time.perf_counter()
        function()
        return time.perf_counter() - begin

    return side
