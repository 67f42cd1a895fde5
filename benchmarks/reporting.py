"""Time and memory of a report over many runs; the goal for 1,000 runs is 30 seconds and one GiB.

Two short runs (FixMatch and RSMatch) are trained on scikit-learn's digits. Copies of their files with other accuracies
form the run folders of a grid of 4 arms, 10 numbers of labels and 25 seeds. New processes make the report.

    python -m benchmarks.reporting --out results/reporting.json
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits

from benchmarks.speed import processor
from benchmarks.timing import median_min_max
from usb_rsmatch.compare.grid import Run, parse_grid, plan
from usb_rsmatch.counter_rng import generator
from usb_rsmatch.io import write_json
from usb_rsmatch.report.grid_record import write_record
from usb_rsmatch.usb import run_facts, training

GOALS = {"seconds": 30.0, "cpu_seconds": 30.0, "peak_memory_mib": 1024.0}
ARMS = {"FixMatch": "fixmatch", "RSMatch": "rsmatch", "RSMatch, second": "rsmatch", "FixMatch, second": "fixmatch"}
LABELS, SEEDS = 10, 25
LINES = 200  # in each run's metrics.jsonl
REPORT = """
import sys, time
from pathlib import Path
from usb_rsmatch.report.command import report
written = report(sys.argv[1], sys.argv[2])
status = Path("/proc/self/status").read_text() if Path("/proc/self/status").exists() else ""
peak = [int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM")]
print(len(written.table.records), time.process_time(), *peak)
"""


def train_both(folder: Path) -> dict[str, Path]:
    """Train both algorithms for a few steps; return {algorithm: run folder}.

    The synthetic images are means of two digits of one class.
    """
    digits, draw = load_digits(), generator(0, "blends")
    images, labels = [], np.repeat(np.arange(10), 60)
    for label in labels:
        pair = draw.choice(np.flatnonzero(digits.target == label), 2)
        images.append(np.round(digits.images[pair].mean(0) * 255 / 16).astype(np.uint8))
    np.savez(folder / "blends.npz", image=np.stack(images), label=labels)
    config: dict[str, Any] = {
        "dataset": "digits", "num_labels": 20, "real_count": 600, "net": "small_wrn_10_1", "batch_size": 16,
        "synthetic": [{"source": f"npz:{folder / 'blends.npz'}", "generator": "blend"}], "uratio": 3, "num_workers": 0,
        "num_train_iter": 40, "num_eval_iter": 20, "num_log_iter": 1, "eval_batch_size": 512, "rs_loader": "batched",
        "save_dir": str(folder), "device": "cpu",
    }  # fmt: skip
    for algorithm in ("fixmatch", "rsmatch"):
        training.train({**config, "algorithm": algorithm, "save_name": algorithm}, note=lambda line: None)
    return {algorithm: folder / algorithm for algorithm in ("fixmatch", "rsmatch")}


def make_grid_folder(folder: Path, trained: dict[str, Path], labels: int, seeds: int) -> Path:
    """Make the folder of a finished grid from copies of trained runs, with random accuracies, and return its path."""
    content = {
        "config": {"algorithm": "fixmatch"},
        "axes": {"num_labels": [20 * (1 + number) for number in range(labels)], "seed": list(range(seeds))},
        "arms": {arm: {"algorithm": ARMS[arm], "lr": 0.01 * (1 + at)} for at, arm in enumerate(ARMS)},
        "baseline": "FixMatch",
        "name": "many",
        "save_dir": str(folder),
    }
    known = ("algorithm", "num_labels", "seed", "lr")
    grid = parse_grid(content, "grid", "many", known, lambda name: {})
    runs = plan(grid)
    write_record(grid.record(runs, {run.name: f"{at:064x}" for at, run in enumerate(runs)}), grid.folder)
    draw = generator(0, "accuracies")
    for at, run in enumerate(runs):
        _copy_run(run, trained[run.config["algorithm"]], f"{at:064x}", float(draw.uniform(0.7, 0.95)))
    return grid.folder


def _copy_run(run: Run, source: Path, sha256: str, accuracy: float) -> None:
    run.folder.mkdir(parents=True)
    result = json.loads((source / "result.json").read_text(encoding="utf-8"))
    result |= {"seed": run.config["seed"], "num_labels": run.config["num_labels"], "config_sha256": sha256}
    result["accuracy"] |= {"last": accuracy, "best": accuracy}
    (run.folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    lines = (source / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    many = [{**json.loads(lines[at % len(lines)]), "it": at + 1} for at in range(LINES)]
    (run.folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in many), encoding="utf-8")
    shutil.copy(source / "analysis.npz", run.folder)


def report_once(folder: Path, out: Path) -> tuple[int, dict[str, float]]:
    """Make one report in a new process; return the number of runs, and {name: seconds, CPU seconds, peak MiB}.

    The peak memory is only included on systems with /proc.
    """
    begin = time.perf_counter()
    words = [sys.executable, "-c", REPORT, str(folder), str(out)]
    output = subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()
    values = {"seconds": time.perf_counter() - begin, "cpu_seconds": float(output[1])}
    return int(output[0]), values | ({"peak_memory_mib": float(output[2])} if len(output) > 2 else {})


def measure(labels: int, seeds: int, rounds: int) -> dict[str, Any]:
    """Make the report of one grid `rounds` times; return the spread of each value, and the conditions."""
    load = [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        grid = make_grid_folder(folder / "grids", train_both(folder), labels, seeds)
        output = [report_once(grid, folder / f"report{number}") for number in range(rounds)]
        size = sum(path.stat().st_size for path in (folder / "report0").iterdir())
    values: dict[str, Any] = {key: median_min_max([each[key] for _, each in output], 2) for key in output[0][1]}
    return values | {
        "runs": output[0][0],
        "rounds": rounds,
        "report_mib": round(size / 2**20, 2),
        "goals": GOALS,
        "load_before": load,
        "threads": torch.get_num_threads(),
        "processor": processor(),
        "versions": run_facts.versions(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reporting", description=__doc__)
    parser.add_argument("--out", required=True, metavar="FILE", help="output file (JSON)")
    parser.add_argument("--quick", action="store_true", help="trial run with 24 runs: its numbers are meaningless")
    args = parser.parse_args(argv)
    result = measure(2, 3, 1) if args.quick else measure(LABELS, SEEDS, 3)
    words = ["python", "-m", "benchmarks.reporting", *(sys.argv[1:] if argv is None else argv)]
    write_json(args.out, result | {"command": shlex.join(words), "quick": args.quick})
    for key, goal in GOALS.items():
        if key in result:
            print(f"{result['runs']} runs reported: {key} {result[key]['median']:.1f} (goal: under {goal:g})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
