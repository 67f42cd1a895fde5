"""Learning curves, read from the `metrics.jsonl` next to a result."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from usb_rsmatch.io import parse_json

LONGEST = 200  # points of a curve; a plot shows no more

Curve = dict[int, float]


def read_curve(path: Path, key: str) -> Curve:
    """{step: value} of one measure, in order of steps, reduced to a few hundred points; empty if there are none.

    An incomplete line after a crash is ignored.
    """
    curve: Curve = {}
    if not path.is_file():
        return curve
    quoted = f'"{key}"'
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            if quoted not in line:  # most lines contain only losses
                continue
            try:
                content = parse_json(line)
                step, value = content["it"], content[key]
            except (ValueError, KeyError, TypeError):
                continue
            if isinstance(step, int) and isinstance(value, (int, float)) and math.isfinite(value):
                curve[step] = float(value)
    steps = sorted(curve)
    stride = max(-(-len(steps) // LONGEST), 1)
    return {step: curve[step] for step in [*steps[:-1:stride], *steps[-1:]]}


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """The mean over runs at the steps that all runs have."""
    shared = sorted(set.intersection(*map(set, curves)))
    return {step: math.fsum(curve[step] for curve in curves) / len(curves) for step in shared}
