"""Titles and Markdown tables, for README and docs, of the figures and grids of `benchmarks.method`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

REAL, MORE, POOL = "FixMatch, real part only", "FixMatch, as many further real images", "FixMatch, whole pool"
MINED, ORACLE = "RSMatch", "RSMatch, oracle"
# Grid -> (the arm with which the others are compared, the axis whose values are compared separately).
BASELINES = {
    "ways": (POOL, None),
    "variants": (ORACLE, None),
    "cutoff": (POOL, None),
    "contamination": (POOL, "synthetic_ratio"),
    "harm": (POOL, None),
    "fashion": (POOL, None),
    "benchmark": ("FixMatch", None),
    "open_set": ("FixMatch", None),
}
TITLES = {
    "ways": "Ways to use synthetic images, with true provenance from an oracle (`method/ways`)",
    "variants": "RSMatch with one change, with true provenance from an oracle (`method/variants`)",
    "cutoff": "All arms with a confidence cutoff of 0.8 instead of 0.95 (`method/cutoff`)",
    "contamination": "RSMatch with its own detector, by share of synthetic images (`method/contamination`)",
    "detection": "Detection without labels, small pixel values cleared except 'as they are' (`method/detection`)",
    "harm": "A harmful pool: the flow's images after one sampler step (`method/harm`)",
    "fashion": "Fashion-MNIST at 8 px (`method/fashion`)",
    "benchmark": "USB's algorithms, UASD, and RSMatch on four base rules (`method/benchmark`)",
    "open_set": "Open-set baselines on the same pool (`method/open_set`)",
}
FIGURES = {
    "ceiling_real": "FixMatch with further real images instead of the synthetic ones, minus the whole pool",
    "oracle_gain": "RSMatch with an oracle, minus the better baseline (whole pool or real part)",
    "gain_over_best_baseline": "RSMatch at 50 % synthetic, minus the better baseline",
    "gain_over_base_rule": "RSMatch in the benchmark, minus its base rule, mean of four rules",
    "gap_to_oracle": "RSMatch with an oracle, minus RSMatch, at 50 % synthetic",
    "clean_pool_gap": "RSMatch minus FixMatch on a pool without synthetic images",
    "harm_ceiling_real": "`ceiling_real` on the harmful pool",
    "harm_oracle_gain": "`oracle_gain` on the harmful pool",
    "harm_gain": "RSMatch with its own detector, minus the better baseline, on the harmful pool",
    "mining_efficiency_mean": "mining efficiency, mean over pools and seeds",
    "mining_efficiency_min": "mining efficiency, minimum over pools and seeds",
    "auroc_mean": "AUROC, unchanged images",
    "auroc_clean_mean": "AUROC, small pixel values cleared",
    "control_auroc": "AUROC of the negative control: real images, half of them JPEG 75, then all JPEG 90",
    "control_auroc_coarser": "the same: half of them JPEG 90, then all JPEG 75",
}
AXIS_HEADS = {"synthetic_ratio": "synthetic share", "synthetic": "generated images"}
# Figures in percentage points of accuracy; the others are between 0 and 1.
POINTS = (
    "ceiling_real",
    "oracle_gain",
    "gain_over_best_baseline",
    "gain_over_base_rule",
    "gap_to_oracle",
    "clean_pool_gap",
    "harm_ceiling_real",
    "harm_oracle_gain",
    "harm_gain",
)


def format_figure(value: Mapping[str, Any] | None, digits: int = 1) -> str:
    """Return a figure with its interval as text: `+2.1 (+1.0 to +3.2)`; a dash for None."""
    if value is None:
        return "–"
    sign = "+" if digits == 1 else ""  # percentage points are differences and have a sign
    mean, low, high = (f"{value[part]:{sign}.{digits}f}" for part in ("mean", "low", "high"))
    return mean if low == high else f"{mean} ({low} to {high})"


def markdown_table(rows: Iterable[Sequence[str]], heads: Sequence[str]) -> str:
    """Return a Markdown table; all columns except the first are aligned right."""
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "--:|" * (len(heads) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def accuracy_markdown(rows: Sequence[Mapping[str, Any]], against: str) -> str:
    """Return the rows of `method.accuracy_table` as a Markdown table."""
    axes = [key for key in rows[0] if key not in ("arm", "accuracy", "difference", "auroc")] if rows else []

    def cells(row: Mapping[str, Any]) -> list[str]:
        mean = row["accuracy"]
        spread = "" if mean["std"] is None else f" ± {mean['std']:.1f}"
        auroc = "–" if row["auroc"] is None else f"{row['auroc']:.2f}"
        place = [f"{row[axis]:.0%}" if axis == "synthetic_ratio" else str(row[axis]) for axis in axes]
        return [
            row["arm"],
            *place,
            f"{mean['mean']:.1f}{spread}",
            format_figure(row["difference"]),
            auroc,
            str(mean["n"]),
        ]

    heads = [
        "arm",
        *(AXIS_HEADS.get(axis, axis) for axis in axes),
        "accuracy (%)",
        f"minus {against}, 95 % interval",
        "AUROC",
        "seeds",
    ]
    return markdown_table(map(cells, rows), heads)


def detection_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows of `method.detection_table` as a Markdown table."""
    arms = [name for name in rows[0] if name not in ("pool", "efficiency")] if rows else []

    def cells(row: Mapping[str, Any]) -> list[str]:
        return [row["pool"], *("–" if row[name] is None else f"{row[name]:.3f}" for name in [*arms, "efficiency"])]

    return markdown_table(map(cells, rows), ["AUROC by pool", *arms, "mining efficiency"])


def tables(summary: Mapping[str, Any]) -> dict[str, str]:
    """Return {grid: its Markdown table} of the grids that have results."""
    return {
        name: detection_markdown(rows) if name == "detection" else accuracy_markdown(rows, BASELINES[name][0])
        for name, rows in summary["tables"].items()
    }


def figures_of(summary: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the entries of a summary that are figures."""
    return {name: summary[name] for name in FIGURES if name in summary}


def measured(summary: Mapping[str, Any]) -> str:
    """Return the measured part of docs/method.md: the figures, then a table per grid."""
    rows = [
        (f"`{name}`: {FIGURES[name]}", format_figure(value, 1 if name in POINTS else 2), str(value["n"]))
        for name, value in figures_of(summary).items()
    ]
    parts = [markdown_table(rows, ["figure (accuracies in points)", "mean, 95 % interval", "n"])]
    grid_tables = tables(summary)
    for name in grid_tables.keys() & {"benchmark", "open_set"}:
        grid_tables[name] = "The table is below, under [The benchmark](#the-benchmark)."
    for name, table in grid_tables.items():
        remarks = summary["grids"][name]["remarks"]
        parts += [f"### {TITLES[name]}", table, *(f"{remark}." for remark in remarks)]
    versions = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    parts.append(f"{summary['date']}, {summary['train_hours']} hours of training in all, one thread a run, {versions}.")
    return "\n\n".join(parts)


def benchmark_table(summary: Mapping[str, Any]) -> str:
    """Return the tables of one pool: USB's algorithms and RSMatch, its gain over its base rules, open-set."""
    gain, found = format_figure(summary.get("gain_over_base_rule")), tables(summary)
    parts = [found["benchmark"], f"RSMatch minus its base rule, mean of four rules: {gain} points."]
    return "\n\n".join([*parts, *([found["open_set"]] if "open_set" in found else [])])
