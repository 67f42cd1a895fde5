"""Titles of config/method's grids and figures, and their tables for README and docs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

REAL, MORE, POOL = "FixMatch, real part only", "FixMatch, as many further real images", "FixMatch, whole pool"
MINED, ORACLE = "RSMatch", "RSMatch, oracle"
# Which arm a grid's others are compared with, and the axis along which it is.
BASELINES = {
    "ways": (POOL, None),
    "variants": (ORACLE, None),
    "cutoff": (POOL, None),
    "contamination": (POOL, "synthetic_ratio"),
    "harm": (POOL, None),
    "fashion": (POOL, None),
    "benchmark": ("FixMatch", None),
}
TITLES = {
    "ways": "Ways of use, provenance known to an oracle (`method/ways`)",
    "variants": "One change to RSMatch's way of use, provenance known to an oracle (`method/variants`)",
    "cutoff": "All with a cut-off of 0.8 in place of 0.95 (`method/cutoff`)",
    "contamination": "With what it mined itself, over the share of synthetic images (`method/contamination`)",
    "detection": "Detection without labels, small values cleared unless said otherwise (`method/detection`)",
    "harm": "A pool that does harm: the flow's images after one step (`method/harm`)",
    "fashion": "Fashion-MNIST at 8 px (`method/fashion`)",
    "benchmark": "USB's, open-set and RSMatch on four base rules (`method/benchmark`)",
}
FIGURES = {
    "ceiling_real": "further real images in place of the synthetic ones, over the pool",
    "oracle_gain": "RSMatch with an oracle over the better of pool and real part",
    "gain_over_best_baseline": "RSMatch at 50 % synthetic over the better baseline",
    "gain_over_base_rule": "RSMatch over its base rule in the benchmark, mean of four rules",
    "gap_to_oracle": "oracle over RSMatch at 50 % synthetic",
    "clean_pool_gap": "RSMatch over FixMatch where nothing is synthetic",
    "harm_ceiling_real": "`ceiling_real` where the synthetic images do harm",
    "harm_oracle_gain": "`oracle_gain` there",
    "harm_gain": "RSMatch, with what it mined, over the better baseline there",
    "mining_efficiency_mean": "mining efficiency, mean over pools and seeds",
    "mining_efficiency_min": "the least of them",
    "auroc_mean": "AUROC, images as they are",
    "auroc_clean_mean": "AUROC, small values cleared",
    "control_auroc": "AUROC of the negative control: JPEG 75 against other real images, 90 for all at last",
    "control_auroc_coarser": "the same, JPEG 90 and 75 for all at last",
}
# Of the figures those in points of accuracy; the others are shares.
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


def shown(value: Mapping[str, Any] | None, digits: int = 1) -> str:
    """A figure with its interval: `+2.1 (+1.0 to +3.2)`; a dash where there is none."""
    if value is None:
        return "–"
    sign = "+" if digits == 1 else ""  # points are differences, the others shares
    mean, low, high = (f"{value[part]:{sign}.{digits}f}" for part in ("mean", "low", "high"))
    return mean if low == high else f"{mean} ({low} to {high})"


def markdown(rows: Iterable[Sequence[str]], heads: Sequence[str]) -> str:
    """A Markdown table, all columns but the first aligned right."""
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "--:|" * (len(heads) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def accuracies(rows: Sequence[Mapping[str, Any]], against: str) -> str:
    """The table of `accuracy_table` as Markdown."""

    def cells(row: Mapping[str, Any]) -> list[str]:
        mean = row["accuracy"]
        spread = "" if mean["std"] is None else f" ± {mean['std']:.1f}"
        auroc = "–" if row["auroc"] is None else f"{row['auroc']:.2f}"
        place = [f"{row['synthetic_ratio']:.0%}"] if "synthetic_ratio" in row else []
        return [row["arm"], *place, f"{mean['mean']:.1f}{spread}", shown(row["difference"]), auroc, str(mean["n"])]

    place = ["share synthetic"] if rows and "synthetic_ratio" in rows[0] else []
    heads = ["arm", *place, "accuracy (%)", f"less that of {against}, 95 % interval", "AUROC", "seeds"]
    return markdown(map(cells, rows), heads)


def detections(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table of `detection_table` as Markdown."""
    arms = [name for name in rows[0] if name not in ("pool", "efficiency")] if rows else []

    def cells(row: Mapping[str, Any]) -> list[str]:
        return [row["pool"], *("–" if row[name] is None else f"{row[name]:.3f}" for name in [*arms, "efficiency"])]

    return markdown(map(cells, rows), ["AUROC by pool", *arms, "mining efficiency"])


def tables(summary: Mapping[str, Any]) -> dict[str, str]:
    """{grid: its Markdown table} of what is measured."""
    return {
        name: detections(rows) if name == "detection" else accuracies(rows, BASELINES[name][0])
        for name, rows in summary["tables"].items()
    }


def figures_of(summary: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Those entries of a summary that are figures."""
    return {name: summary[name] for name in FIGURES if name in summary}


def measured(summary: Mapping[str, Any]) -> str:
    """What docs/method.md shows of results/method.json: the figures, then a table a grid."""
    rows = [
        (f"`{name}`: {FIGURES[name]}", shown(value, 1 if name in POINTS else 2), str(value["n"]))
        for name, value in figures_of(summary).items()
    ]
    parts = [markdown(rows, ["figure (accuracies in points)", "mean, 95 % interval", "n"])]
    shown_here = tables(summary)
    if "benchmark" in shown_here:
        shown_here["benchmark"] = "Its table is the [README's](../README.md#the-rs-ssl-benchmark)."
    for name, table in shown_here.items():
        remarks = summary["grids"][name]["remarks"]
        parts += [f"### {TITLES[name]}", table, *(f"{remark}." for remark in remarks)]
    versions = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    parts.append(f"{summary['date']}, {summary['train_hours']} hours of training in all, one thread a run, {versions}.")
    return "\n\n".join(parts)


def benchmark_table(summary: Mapping[str, Any]) -> str:
    """The README's table of results/method.json: every algorithm on one pool, and RSMatch over its base rules."""
    gain = shown(summary.get("gain_over_base_rule"))
    return f"{tables(summary)['benchmark']}\n\nRSMatch over its base rule, mean of four rules: {gain} points."
