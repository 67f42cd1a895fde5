"""Accuracy of the fast path compared with the exact path, from the runs of fashionmnist/same_result.

usb-rsmatch compare --c fashionmnist/same_result
python -m benchmarks.same_result saved_models/same_result --out results/same_result.json
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from usb_rsmatch.errors import UserError
from usb_rsmatch.io import write_json
from usb_rsmatch.report.collection import collect
from usb_rsmatch.report.result_file import Result
from usb_rsmatch.report.statistics import estimate, paired_difference

GRID = "fashionmnist/same_result"
SIDES = ("exact", "fast")  # rs_loader: pil and rs_fast: false, against batched and true


def by_side(folder: str) -> dict[str, dict[str, dict[int, Result]]]:
    """Return {algorithm: {side: {seed: result}}} of the arms `ALGORITHM, SIDE` in a comparison's folder.

    Raises UserError for arms with other names, sides with different seeds, fewer than two seeds, and runs with
    different versions, threads or devices.
    """
    records = collect(folder).records
    sides: dict[str, dict[str, dict[int, Result]]] = {}
    for record in records:
        algorithm, _, side = record.arm.rpartition(", ")
        if not algorithm or side not in SIDES:
            raise UserError(
                f"{folder}: the arm {record.arm!r} is not an arm of {GRID}: its arms are `ALGORITHM, exact|fast`"
            )
        sides.setdefault(algorithm, {}).setdefault(side, {})[record.result.seed] = record.result
    for algorithm, seeds in sides.items():
        if seeds.get("exact", {}).keys() != seeds.get("fast", {}).keys() or len(seeds["fast"]) < 2:
            raise UserError(
                f"{folder}: {algorithm} needs the same seeds on both sides, two or more: finish the comparison"
            )
    first = records[0].result
    for name in ("versions", "threads", "device"):
        if any(getattr(record.result, name) != getattr(first, name) for record in records):
            raise UserError(f"{folder} has runs with different {name}: remove them and compare again")
    return sides


def summarise(folder: str) -> dict[str, Any]:
    """Return the contents of results/same_result.json: accuracies in %, and fast - exact with its interval.

    Differences are paired by seed. Raises UserError as `by_side` does.
    """
    sides = by_side(folder)
    rows = []
    for algorithm, results in sides.items():
        last = {side: {seed: 100 * result.last for seed, result in results[side].items()} for side in SIDES}
        difference = paired_difference(last["fast"], last["exact"])
        assert difference is not None and difference.low is not None  # `by_side` requires two seeds
        row: dict[str, Any] = {"algorithm": algorithm, "seeds": sorted(last["fast"])}
        for side in SIDES:
            mean = estimate(list(last[side].values()))
            row[side] = {"mean": mean.mean, "std": mean.std, "by_seed": [last[side][seed] for seed in row["seeds"]]}
        row["difference"] = {"mean": difference.mean, "low": difference.low, "high": difference.high, "level": 0.95}
        rows.append(row)
    everything = [result for both in sides.values() for seeds in both.values() for result in seeds.values()]
    first = everything[0]
    return {
        "command": f"usb-rsmatch compare --c {GRID}",
        "pool": first.describe_pool(),
        "num_labels": first.num_labels,
        "iterations": first.iterations,
        "versions": first.versions,
        "threads": int(first.threads) if first.threads.isdigit() else first.threads,
        "device": first.device,
        "date": max(result.finished for result in everything)[:10],
        "seconds": round(sum(result.train_seconds for result in everything), 1),
        "rows": rows,
    }


def table(summary: Mapping[str, Any]) -> str:
    """Return the comparison as a Markdown table, followed by a line with the conditions of the measurement."""
    lines = [
        "| accuracy (%) | exact | fast | fast - exact, 95 % interval | seeds |",
        "|---|--:|--:|--:|--:|",
    ]
    for row in summary["rows"]:
        exact, fast = (f"{row[side]['mean']:.1f} ± {row[side]['std']:.1f}" for side in SIDES)
        difference = row["difference"]
        shown = f"{difference['mean']:+.1f} ({difference['low']:+.1f} to {difference['high']:+.1f})"
        lines.append(f"| {row['algorithm']} | {exact} | {fast} | {shown} | {len(row['seeds'])} |")
    versions = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    lines += [
        "",
        f"{summary['num_labels']} labels, a pool of {summary['pool']}, {summary['iterations']} steps; mean and "
        f"deviation over seeds, differences paired by seed; {summary['date']}, {summary['threads']} thread(s) a run, "
        f"{versions}; `{summary['command']}`.",
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.same_result", description=__doc__)
    parser.add_argument("folder", help="the comparison's folder: saved_models/same_result")
    parser.add_argument("--out", required=True, metavar="FILE", help="output file (JSON)")
    args = parser.parse_args(argv)
    try:
        summary = summarise(args.folder)
        words = ["python", "-m", "benchmarks.same_result", *(sys.argv[1:] if argv is None else argv)]
        write_json(args.out, summary | {"summarised_by": shlex.join(words)})
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(table(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
