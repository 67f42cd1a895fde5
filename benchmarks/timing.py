"""Timing of alternatives in one process, alternating after a warm-up, with median, minimum and maximum."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

# Runs a side once and gives seconds, by its own clock.
Side = Callable[[], float]


def spread(values: Sequence[float], digits: int = 4) -> dict[str, float]:
    """Median, minimum and maximum."""
    centre = statistics.median(values)
    return {"median": round(centre, digits), "min": round(min(values), digits), "max": round(max(values), digits)}


def ratios(upper: Sequence[float], lower: Sequence[float]) -> list[float]:
    """Round by round: what slows the machine down for a while slows both sides of a round."""
    return [a / b for a, b in zip(upper, lower, strict=True)]


def take_turns(sides: Mapping[str, Side], rounds: int, warmup: int = 1) -> dict[str, list[float]]:
    """Seconds of each side in each of `rounds`, after `warmup` rounds that do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(warmup + rounds):
        for name, side in sides.items():
            taken = side()
            if number >= warmup:
                seconds[name].append(taken)
    return seconds


def timed(function: Callable[[], Any]) -> Side:
    """The side that calls `function`."""

    def side() -> float:
        begin = time.perf_counter()
        function()
        return time.perf_counter() - begin

    return side
