"""Figures of the method: what synthetic images cost and gain, and how well they are detected.

The runs are those of the grids in config/method, for example:

usb-rsmatch compare --c method/ways
python -m benchmarks.method --keep saved_models/ways --out results/method.json

`--keep` copies the finished results of a comparison to results/method, from which all figures are computed.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.method_tables import (
    BASELINES,
    MINED,
    MORE,
    ORACLE,
    POINTS,
    POOL,
    REAL,
    figures_of,
    format_figure,
    tables,
)
from usb_rsmatch.detection.metrics import mining_efficiency
from usb_rsmatch.errors import UserError
from usb_rsmatch.io import write_json, write_text
from usb_rsmatch.report.collection import Collection, Record, collect
from usb_rsmatch.report.grid_record import NAME
from usb_rsmatch.report.result_file import Result
from usb_rsmatch.report.statistics import Estimate, estimate, paired_difference

KEPT = "results/method"
ORACLE_WAY = "main and dummy head, normalised apart"  # what RSMatch's defaults do, in method/ways
BASE_RULES = (
    "FixMatch",
    "FlexMatch",
    "FreeMatch",
    "SoftMatch",
)  # method/benchmark has an arm `RSMatch on ...` for each
HEADLINE = 0.5  # share of synthetic images
BySeed = Mapping[int, float]


@dataclass(frozen=True)
class GridRuns:
    """The results of one grid of config/method."""

    collection: Collection

    def values(self, of: Callable[[Record], float | None], arm: str, **axes: Any) -> dict[int, float]:
        """Return {seed: value} of an arm's runs at these values of the axes, without runs that have no value."""
        found = {}
        for record in self.collection.records:
            if record.arm == arm and all(record.axes.get(name) == value for name, value in axes.items()):
                value = of(record)
                if value is not None:
                    found[record.result.seed] = value
        return found

    def accuracy(self, arm: str, **axes: Any) -> dict[int, float]:
        """Return {seed: test accuracy in %} of the final averaged weights."""
        return self.values(lambda record: 100 * record.result.last, arm, **axes)

    def auroc(self, arm: str, **axes: Any) -> dict[int, float]:
        """Return {seed: the detector's AUROC on the pool}."""
        return self.values(lambda record: record.result.auroc, arm, **axes)

    def axis_values(self, axis: str) -> list[Any]:
        """Return the values of an axis, in the grid's order."""
        return list(dict.fromkeys(record.axes[axis] for record in self.collection.records))

    def arms(self) -> list[str]:
        """Return the arms, in the grid's order."""
        return list(dict.fromkeys(record.arm for record in self.collection.records))


def best_mean(*arms: BySeed) -> BySeed:
    """Return the arm with the highest mean."""
    return max(arms, key=lambda values: estimate(list(values.values())).mean)


def gain_over_better_baseline(runs: GridRuns, arm: str) -> Estimate | None:
    """Return the gain in accuracy over FixMatch on the real part or on the whole pool, whichever mean is higher."""
    real, pool = runs.accuracy(REAL), runs.accuracy(POOL)
    return paired_difference(runs.accuracy(arm), best_mean(real, pool)) if real and pool else None


def mean_over_places(places: Sequence[BySeed]) -> Estimate | None:
    """Average over places of a grid for each seed that all places have, and estimate the mean over seeds.

    Runs with the same seed share split, order and initial weights: they are not independent, so only seeds count as n.
    """
    seeds = set.intersection(*(set(place) for place in places)) if places else set()
    means = [sum(place[seed] for place in places) / len(places) for seed in sorted(seeds)]
    return estimate(means) if means else None


def figure_entry(values: Estimate | None) -> dict[str, Any] | None:
    """Return an estimate as an entry of the result file; None without an interval."""
    if values is None or values.low is None:
        return None
    return {"mean": values.mean, "low": values.low, "high": values.high, "n": values.n}


def figures(grids: Mapping[str, GridRuns]) -> dict[str, Any]:
    """Return the figures of the result file: accuracies in percentage points, with 95 % t intervals over `n` seeds.

    Differences are paired by seed. The minimum of the efficiency over `n` runs has no interval: both ends are the value
    itself. A figure without runs is left out.
    """
    found: dict[str, Estimate | None] = {}
    if ways := grids.get("ways"):
        found["ceiling_real"] = paired_difference(ways.accuracy(MORE), ways.accuracy(POOL))
        found["oracle_gain"] = gain_over_better_baseline(ways, ORACLE_WAY)
    if harm := grids.get("harm"):
        found["harm_ceiling_real"] = paired_difference(harm.accuracy(MORE), harm.accuracy(POOL))
        found["harm_oracle_gain"] = gain_over_better_baseline(harm, ORACLE)
        found["harm_gain"] = gain_over_better_baseline(harm, MINED)
    if curve := grids.get("contamination"):
        real, pool = curve.accuracy(POOL, synthetic_ratio=0.0), curve.accuracy(POOL, synthetic_ratio=HEADLINE)
        mined, oracle = (curve.accuracy(arm, synthetic_ratio=HEADLINE) for arm in (MINED, ORACLE))
        if real and pool:
            found["gain_over_best_baseline"] = paired_difference(mined, best_mean(real, pool))
        found["gap_to_oracle"] = paired_difference(oracle, mined)
        found["clean_pool_gap"] = paired_difference(curve.accuracy(MINED, synthetic_ratio=0.0), real)
    if benchmark := grids.get("benchmark"):
        found["gain_over_base_rule"] = mean_over_places([gains_over_rule(benchmark, rule) for rule in BASE_RULES])
    if detection := grids.get("detection"):
        by_pool = mining_efficiencies(detection)
        found["mining_efficiency_mean"] = mean_over_places(list(by_pool.values()))
        if ratios := [ratio for place in by_pool.values() for ratio in place.values()]:
            found["mining_efficiency_min"] = Estimate(len(ratios), min(ratios), 0.0, min(ratios), min(ratios))
        for name, arm in (("auroc_mean", "mined, as they are"), ("auroc_clean_mean", "mined")):
            found[name] = mean_over_places(
                [detection.auroc(arm, synthetic=p) for p in detection.axis_values("synthetic")]
            )
    if control := grids.get("control"):
        for name, arm in (("control_auroc", MINED), ("control_auroc_coarser", "RSMatch, coarser at last")):
            found[name] = estimate(list(scores.values())) if (scores := control.auroc(arm)) else None
    return {name: made for name, value in found.items() if (made := figure_entry(value))}


def gains_over_rule(benchmark: GridRuns, rule: str) -> dict[int, float]:
    """Return {seed: accuracy of RSMatch on a base rule minus accuracy of the rule alone}."""
    mine, theirs = benchmark.accuracy(f"RSMatch on {rule}"), benchmark.accuracy(rule)
    return {seed: mine[seed] - theirs[seed] for seed in mine.keys() & theirs.keys()}


def mining_efficiencies(detection: GridRuns) -> dict[str, dict[int, float]]:
    """Return {pool: {seed: (mined - 0.5) / (supervised - 0.5)}} of the AUROC, with small pixel values cleared."""
    found: dict[str, dict[int, float]] = {}
    for place in detection.axis_values("synthetic"):
        mined, taught = (detection.auroc(arm, synthetic=place) for arm in ("mined", "supervised"))
        ratios = {seed: mining_efficiency(mined[seed], taught[seed]) for seed in mined.keys() & taught.keys()}
        found[place] = {seed: ratio for seed, ratio in sorted(ratios.items()) if ratio is not None}
    return found


def accuracy_table(runs: GridRuns, baseline: str, axis: str | None = None) -> list[dict[str, Any]]:
    """Return a row per arm (and value of `axis`): mean accuracy, and the difference to the baseline at that value."""
    rows = []
    for place in runs.axis_values(axis) if axis else [None]:
        at = {} if axis is None else {axis: place}
        for arm in runs.arms():
            mine, theirs = runs.accuracy(arm, **at), runs.accuracy(baseline, **at)
            if not mine:
                continue
            row: dict[str, Any] = {"arm": arm, **at, "accuracy": asdict(estimate(list(mine.values())))}
            row["difference"] = figure_entry(paired_difference(mine, theirs)) if arm != baseline else None
            scores = runs.auroc(arm, **at)
            row["auroc"] = estimate(list(scores.values())).mean if scores else None
            rows.append(row)
    return rows


def detection_table(runs: GridRuns) -> list[dict[str, Any]]:
    """Return a row per pool: mean AUROC of each arm, and the mining efficiency."""
    rows = []
    for place, ratios in mining_efficiencies(runs).items():
        row: dict[str, Any] = {"pool": place}
        for arm in runs.arms():
            scores = runs.auroc(arm, synthetic=place)
            row[arm] = estimate(list(scores.values())).mean if scores else None
        row["efficiency"] = estimate(list(ratios.values())).mean if ratios else None
        rows.append(row)
    return rows


def kept_grids(folder: str | Path) -> tuple[dict[str, GridRuns], list[Result]]:
    """Return the comparisons in a folder by name, and all their results.

    Raises UserError if there are no results, if they are of different versions, threads or devices, or as `collect`
    does.
    """
    folders = sorted(path.parent for path in Path(folder).glob(f"*/{NAME}"))
    if not folders:
        raise UserError(f"{folder} has no results: `--keep saved_models/ways` copies those of a comparison to it")
    collections = [collect(path) for path in folders]
    grids = {collection.name: GridRuns(collection) for collection in collections}
    if len(grids) < len(collections):
        raise UserError(f"{folder} has two folders with the same comparison: remove one")
    everything = [record.result for runs in grids.values() for record in runs.collection.records]
    first = everything[0]
    for name in ("versions", "threads", "device"):
        if odd := next((r for r in everything if getattr(r, name) != getattr(first, name)), None):
            raise UserError(f"{odd.path} and {first.path} differ in {name}: keep only results of one machine")
    return grids, everything


def conditions(grids: Mapping[str, GridRuns], everything: Sequence[Result]) -> dict[str, Any]:
    """Return what a result file says of how its results were made."""
    first = everything[0]
    return {
        "seeds": sorted({result.seed for result in everything}),
        "pools": sorted({f"{result.dataset}: {result.describe_pool()}" for result in everything}),
        "grids": {name: _extent(runs.collection) for name, runs in grids.items()},
        "versions": first.versions,
        "threads": int(first.threads) if first.threads.isdigit() else first.threads,
        "device": first.device,
        "train_hours": round(sum(result.train_seconds for result in everything) / 3600, 2),
        "date": max(result.finished for result in everything)[:10],
    }


def summarise(folder: str | Path) -> dict[str, Any]:
    """Return the contents of results/method.json, from the results in a folder. UserError as `kept_grids`."""
    grids, everything = kept_grids(folder)
    rows = {name: accuracy_table(grids[name], *BASELINES[name]) for name in BASELINES if name in grids}
    if detection := grids.get("detection"):
        rows["detection"] = detection_table(detection)
    return {**figures(grids), **conditions(grids, everything), "tables": rows}


def _extent(collection: Collection) -> dict[str, Any]:
    return {"runs": len(collection.records), "remarks": collection.remarks}


def copy_results(comparison: str, folder: str | Path) -> int:
    """Copy a comparison's record and finished results to `folder`; return the number of new results.

    Raises UserError if `comparison` is not the folder of a comparison, and if an existing copy differs.
    """
    source = Path(comparison)
    if not (source / NAME).is_file():
        raise UserError(f"{comparison} is not the folder of a comparison: it has no {NAME}")
    target = Path(folder) / source.name
    copies = {
        target / path.relative_to(source): path.read_text(encoding="utf-8")
        for path in [source / NAME, *sorted(source.glob("*/result.json"))]
    }
    for path, text in copies.items():
        if path.exists() and path.name != NAME and path.read_text(encoding="utf-8") != text:
            raise UserError(f"{path} exists and differs from the result in {source}: remove it first")
    new = {path: text for path, text in copies.items() if not path.exists() or path.name == NAME}
    for path, text in new.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    return len(new) - 1  # without the record, which is always written


def summarise_kept(
    argv: Sequence[str] | None,
    name: str,
    about: str | None,
    kept: str,
    summary_of: Callable[[str], dict[str, Any]],
    tell: Callable[[Mapping[str, Any]], None],
) -> int:
    """Run `python -m benchmarks.NAME`: copy finished comparisons to a folder, write its summary, and print it.

    `kept` is the default folder, `summary_of` computes the summary of a folder, `tell` prints it. Return the exit code.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=about)
    parser.add_argument("--out", required=True, metavar="FILE", help="output file (JSON)")
    parser.add_argument(
        "--keep", nargs="+", default=[], metavar="FOLDER", help="folders of finished comparisons to copy"
    )
    parser.add_argument("--kept", default=kept, metavar="FOLDER", help="folder of the copied results")
    args = parser.parse_args(argv)
    try:
        for comparison in args.keep:
            print(f"{copy_results(comparison, args.kept)} new results of {comparison}")
        summary = summary_of(args.kept)
        words = ["python", "-m", f"benchmarks.{name}", "--out", args.out]
        words += ["--kept", args.kept] if args.kept != kept else []
        write_json(args.out, summary | {"command": shlex.join(words)})
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    tell(summary)
    return 0


def print_summary(summary: Mapping[str, Any]) -> None:
    for name, table in tables(summary).items():
        print(f"\n{name}\n\n{table}")
    print()
    for name, value in figures_of(summary).items():
        print(f"{name:26s} {format_figure(value, 1 if name in POINTS else 3)}, n = {value['n']}")


def main(argv: Sequence[str] | None = None) -> int:
    return summarise_kept(argv, "method", __doc__, KEPT, summarise, print_summary)


if __name__ == "__main__":
    sys.exit(main())
