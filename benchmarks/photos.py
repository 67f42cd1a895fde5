"""Figures on photographs: what generated images cost and gain, with an oracle and with RSMatch's own detector.

The runs are those of the grids in config/photos, on photographs that come with the package:

usb-rsmatch compare --c photos/ceiling
usb-rsmatch compare --c photos/detector
python -m benchmarks.photos --keep saved_models/ceiling saved_models/detector --out results/photos.json

`--keep` copies the finished results of a comparison to results/photos, from which all figures are computed.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.method import (
    GridRuns,
    accuracy_table,
    best_mean,
    conditions,
    figure_entry,
    kept_grids,
    summarise_kept,
)
from benchmarks.method_tables import accuracy_markdown, format_figure, markdown_table
from usb_rsmatch.data.sources.photos import ARCHIVE
from usb_rsmatch.report.statistics import Estimate, paired_difference

KEPT = "results/photos"
REAL, POOL, MORE = "FixMatch, real part only", "FixMatch, whole pool", "FixMatch, as many further real images"
MINED, ORACLE = "RSMatch, whole pool", "RSMatch, oracle"
FIGURES = {
    "ceiling_real": "FixMatch with further real images instead of the generated ones, minus the whole pool",
    "oracle_gain": "RSMatch with an oracle, minus the better of FixMatch on the whole pool and on its real part",
    "gain_over_best_baseline": "RSMatch, minus the better of FixMatch on the whole pool and on its real part",
    "gap_to_oracle": "RSMatch with an oracle, minus RSMatch",
    "clean_pool_gap": "RSMatch minus FixMatch where nothing is generated",
    "harm_gap_to_real": "RSMatch minus FixMatch on the real part, where the generated images do harm",
}
MAIN = ("ceiling", "detector")  # two grids on one pool
AXES = {"ceiling": None, "detector": None, "generators": "synthetic", "clean": None, "harm": None}
BASELINES = {"ceiling": POOL, "detector": MINED, "generators": POOL, "clean": "FixMatch", "harm": POOL}


def figures(grids: Mapping[str, GridRuns]) -> dict[str, Any]:
    """Return each figure as {mean, low, high, n}: points of accuracy, paired by seed; None if it was not measured."""
    found: dict[str, Estimate | None] = dict.fromkeys(FIGURES)
    if parts := [grids[name] for name in MAIN if name in grids]:
        found |= of_pool(parts)
    if clean := grids.get("clean"):
        found["clean_pool_gap"] = paired_difference(clean.accuracy("RSMatch"), clean.accuracy("FixMatch"))
    if harm := grids.get("harm"):
        found["harm_gap_to_real"] = paired_difference(harm.accuracy(MINED), harm.accuracy(REAL))
    return {name: figure_entry(value) for name, value in found.items()}


def of_pool(parts: Sequence[GridRuns], **at: Any) -> dict[str, Estimate | None]:
    """Return the figures of one pool: of the runs of its grids at these values of their axes."""
    real, pool, more, mined, oracle = (
        {seed: value for runs in parts for seed, value in runs.accuracy(arm, **at).items()}
        for arm in (REAL, POOL, MORE, MINED, ORACLE)
    )
    better = best_mean(real, pool) if real and pool else {}
    return {
        "ceiling_real": paired_difference(more, pool),
        "oracle_gain": paired_difference(oracle, better),
        "gain_over_best_baseline": paired_difference(mined, better),
        "gap_to_oracle": paired_difference(oracle, mined),
    }


def by_generator(grids: Mapping[str, GridRuns]) -> dict[str, Any]:
    """Return the figures of each pool of the grid `generators`."""
    runs = grids.get("generators")
    places = runs.axis_values("synthetic") if runs else []
    return {
        place: {name: figure_entry(value) for name, value in of_pool([runs], synthetic=place).items()}
        for place in places
        if runs is not None
    }


def summarise(folder: str | Path) -> dict[str, Any]:
    """Return the contents of results/photos.json from the results in a folder. UserError as `kept_grids`."""
    grids, everything = kept_grids(folder)
    tables = {name: accuracy_table(grids[name], BASELINES[name], axis) for name, axis in AXES.items() if name in grids}
    return {
        **figures(grids),
        "by_generator": by_generator(grids),
        **conditions(grids, everything),
        "images_sha256": hashlib.sha256(ARCHIVE.read_bytes()).hexdigest(),
        "tables": tables,
    }


TITLES = {
    "ceiling": "What generated photographs can be worth (`photos/ceiling`)",
    "detector": "RSMatch with its own detector on the same pool (`photos/detector`)",
    "generators": "By generator (`photos/generators`)",
    "clean": "Where nothing is generated (`photos/clean`)",
    "harm": "Where the generated images do harm (`photos/harm`)",
}


def measured(results: Mapping[str, Any]) -> str:
    """Return the figures and tables for docs/photographs.md."""
    rows = [
        (f"`{name}`: {what}", format_figure(value), str(value["n"]))
        for name, what in FIGURES.items()
        if (value := results[name]) is not None
    ]
    parts = [markdown_table(rows, ["figure (points)", "mean, 95 % interval", "n"])]
    for name, table in results["tables"].items():
        parts += [f"### {TITLES[name]}", accuracy_markdown(table, BASELINES[name])]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    parts.append(
        f"{results['date']}, {results['train_hours']} hours of training in all, {results['threads']} thread(s) a run, "
        f"{versions}."
    )
    return "\n\n".join(parts)


def print_summary(summary: Mapping[str, Any]) -> None:
    for name, rows in summary["tables"].items():
        print(f"\n{name}\n\n{accuracy_markdown(rows, BASELINES[name])}")
    for name in FIGURES:
        print(f"{name:26s} {format_figure(summary[name])}")


def main(argv: Sequence[str] | None = None) -> int:
    return summarise_kept(argv, "photos", __doc__, KEPT, summarise, print_summary)


if __name__ == "__main__":
    sys.exit(main())
