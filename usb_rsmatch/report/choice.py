"""Which arm to choose by validation accuracy, and whether the runs show a difference at all."""

from __future__ import annotations

import json

from usb_rsmatch.report.comparison import Table
from usb_rsmatch.report.statistics import estimate, paired_difference

Pair = tuple[str, int]


def choice(table: Table) -> list[str]:
    """Lines that name the arm with the highest validation accuracy and compare each other arm with it.

    Accuracies are paired by seed and axes, such as the fold of `validation_fold`; the intervals are 95 % t intervals.
    No line if an arm has no validation accuracy, or if there is only one arm. The best of several arms was selected on
    the same images, so its lead is a little too large (our choice: stated, not corrected).
    """
    accuracies = {arm: _by_pair(table, arm) for arm in table.arms}
    if len(accuracies) < 2 or not all(accuracies.values()):
        return []
    means = {arm: estimate(list(values.values())) for arm, values in accuracies.items()}
    best = max(means, key=lambda arm: means[arm].mean)
    lines, undecided = [], []
    for arm, values in accuracies.items():
        if arm == best:
            continue
        difference = paired_difference(accuracies[best], values)
        if difference is None or difference.low is None or difference.high is None:
            undecided.append(arm)
            continue
        lines.append(
            f"{best} minus {arm}, by validation: {difference.mean:+.1f} points "
            f"({difference.low:+.1f} to {difference.high:+.1f}, {difference.n} pairs)"
        )
        if difference.low <= 0:
            undecided.append(arm)
    verdict = f"Highest validation accuracy: {best}, {means[best].mean:.1f} % ({means[best].n} runs)."
    if undecided:
        verdict += f" No difference can be shown between it and {', '.join(undecided)}."
    return [verdict, *lines]


def _by_pair(table: Table, arm: str) -> dict[Pair, float]:
    """{(axes, seed): validation accuracy in percent} of an arm; empty if a run has none."""
    found: dict[Pair, float] = {}
    for record in table.records:
        if record.arm == arm:
            if record.result.validation is None:
                return {}
            found[json.dumps(record.axes, sort_keys=True), record.result.seed] = 100 * record.result.validation
    return found
