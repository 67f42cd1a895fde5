"""Statistics of a comparison over seeds: standard deviation, t interval, paired difference, average ranks."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)
Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Estimate:
    """A mean of `n` values with their sample standard deviation and the confidence interval of the mean.

    `std`, `low` and `high` are None for a single value.
    """

    n: int
    mean: float
    std: float | None
    low: float | None
    high: float | None


def estimate(values: Sequence[float], level: float = 0.95) -> Estimate:
    """Mean, deviation (n - 1 in the denominator) and two-sided Student t interval of the mean.

    Raises ValueError for no values.
    Source: Student, "The probable error of a mean" (Biometrika 1908).
    """
    n = len(values)
    if n == 0:
        raise ValueError("no values to take the mean of")
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(1, mean, None, None, None)
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = _t_quantile(n - 1, 0.5 + level / 2) * std / math.sqrt(n)
    return Estimate(n, mean, std, mean - half, mean + half)


def paired_difference(arm: Mapping[Key, float], baseline: Mapping[Key, float], level: float = 0.95) -> Estimate | None:
    """The estimate of `arm - baseline` over the seeds that both have; None if they share none.

    Pairing removes the effect that a seed has on both (its split, its order).
    """
    shared = [key for key in arm if key in baseline]
    return estimate([arm[key] - baseline[key] for key in shared], level) if shared else None


def average_ranks(blocks: Sequence[Mapping[Name, float]]) -> dict[Name, float]:
    """Each arm's rank (1 is the largest value, ties share the mean rank), averaged over complete blocks.

    A block is one seed of one setting; a block that lacks an arm is not used, as it would favour the others.
    Source: Friedman, "The use of ranks to avoid the assumption of normality" (JASA 1937).
    """
    names = {name for block in blocks for name in block}
    complete = [block for block in blocks if len(block) == len(names)]
    totals: dict[Name, float] = {}
    for block in complete:
        for name, value in block.items():
            above = sum(other > value for other in block.values())
            equal = sum(other == value for other in block.values())
            totals[name] = totals.get(name, 0.0) + above + (equal + 1) / 2
    return {name: total / len(complete) for name, total in totals.items()}


def _t_quantile(degrees: int, probability: float) -> float:
    from scipy.special import stdtrit  # late: SciPy is slow to import, and often no interval is needed

    return float(stdtrit(degrees, probability))
