"""The fault campaign: fault scenarios and kills of real training runs, fuzzing of all file readers, an endurance run.

`python -m benchmarks.faults --out results/faults.json` takes hours and can be stopped at any time: the file contains
the results so far, and the same command resumes. `--minutes` limits the time, `--quick` is a trial run of a minute or
two. A kill or scenario passes if the restarted run ends with the same weights as an undisturbed run, bit for bit.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.faults import scenarios
from benchmarks.faults.endurance import endurance_run
from benchmarks.faults.run_workspace import EVERY, VARIANTS, RunWorkspace
from usb_rsmatch.errors import UserError
from usb_rsmatch.io import write_json
from usb_rsmatch.usb import run_facts

Scenario = Callable[[RunWorkspace], str]

KILLS_A_RUN = 8  # at most
FUZZ_BATCH = 250  # fuzz cases between two checks of the time limit
FUZZ_SHARES = {"config": 3, "checkpoint": 4, "metadata": 4, "pool": 1}  # relative number of cases of each reader
DISK_SHARES = (0.0, 0.001, 0.005, 0.02, 0.05, 0.2, 0.5, 0.9, 0.99)  # of a checkpoint's size that the disk can store
FLUSHES_A_RUN = 16  # file flushes in a run: 3 before its steps, 10 checkpoints and a best one, 2 at its end

# The keys "soak_minutes" (endurance run) and "mishaps" (fault scenarios) keep their names for committed result files.
INITIAL_VALUES: dict[str, Any] = {
    "kills": 0,
    "killed_runs": 0,
    "lost": 0,
    "silent_wrong": 0,
    "resume_bitwise_equal": True,
    "fuzz_cases": 0,
    "tracebacks": 0,
    "hangs": 0,
    "writes_outside": 0,
    "soak_minutes": 0.0,
    "memory_slope_mib_per_hour": None,
    "mishaps": {},
    "fuzzed": {},
    "findings": [],
}


class Campaign:
    """The results of a campaign, in memory and in the result file."""

    def __init__(self, out: Path, command: str, minutes: float) -> None:
        self.out, self.command = out, command
        self.begun, self.seconds = time.monotonic(), 60 * minutes
        self.values: dict[str, Any] = json.loads(json.dumps(INITIAL_VALUES))
        if out.exists():
            try:
                self.values |= json.loads(out.read_text(encoding="utf-8"))
            except ValueError:
                raise UserError(
                    f"{out} is not a result file of this command: move it, or choose another --out"
                ) from None

    def time_over(self, share: float) -> bool:
        """Return whether this share of the time limit is used up; each part of a short campaign has its own share."""
        return time.monotonic() >= self.begun + share * self.seconds

    def record_problem(self, what: str, problem: str) -> None:
        """Store a problem and count it by its first word; an empty `problem` means that the test passed."""
        if not problem:
            return
        kind = problem.split(":")[0].split()[0]
        if kind == "silent":
            self.values["silent_wrong"] += 1
            self.values["resume_bitwise_equal"] = False
        elif kind in ("traceback", "hang"):
            self.values[f"{kind}s"] += 1
        elif kind == "outside":
            self.values["writes_outside"] += 1
        elif kind != "leak":
            self.values["lost"] += 1
        self.values["findings"].append(f"{what}: {problem}"[:600])
        print(f"FOUND {what}: {problem}", flush=True)

    def save(self) -> None:
        """Write the result file."""
        self.values |= {
            "threads": torch.get_num_threads(),
            "versions": run_facts.versions(),
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "command": self.command,
        }
        write_json(self.out, self.values)


def scenario_list(quick: bool) -> dict[str, Scenario]:
    """All fault scenarios except kills, by name; a quick campaign has only a few of each kind.

    The names are keys of committed result files and must not change.
    """
    scenarios_by_name: dict[str, Scenario] = {}
    for share in DISK_SHARES[:: 4 if quick else 1]:
        for number, which in ((0, "a checkpoint"), (2, "the third checkpoint")):
            scenarios_by_name[f"disk full at {share:g} of {which}"] = partial(
                scenarios.full_disk, variant=0, share=share, number=number
            )
    for number in range(1, FLUSHES_A_RUN + 1, 12 if quick else 1):
        scenarios_by_name[f"disk full at flush {number}"] = partial(scenarios.failed_flush, variant=0, number=number)
    for variant in range(1 if quick else len(VARIANTS)):
        for name, number in (("SIGTERM", signal.SIGTERM), ("SIGINT", signal.SIGINT)):
            scenarios_by_name[f"{name}, variant {variant}"] = partial(
                scenarios.stop_signal, variant=variant, number=number
            )
        for name, cut in (("cut off", True), ("flipped", False)):
            scenarios_by_name[f"checkpoint {name}, variant {variant}"] = partial(
                scenarios.damaged_checkpoint, variant=variant, rng=np.random.default_rng(variant), cut=cut
            )
    scenarios_by_name |= {
        "read-only folder": partial(scenarios.read_only_folder, variant=0),
        "data file truncated": partial(scenarios.lost_data_file, variant=0, cut=True),
        "data file deleted": partial(scenarios.lost_data_file, variant=0, cut=False),
        "worker killed": partial(scenarios.killed_worker, number=0),
        "another worker killed": partial(scenarios.killed_worker, number=1),
        "loss is no number": partial(scenarios.diverging_loss, variant=0),
        "weights are no numbers": partial(scenarios.nan_weight, variant=0, step=2 * EVERY + 1),
        "weights are no numbers where a checkpoint is due": partial(scenarios.nan_weight, variant=0, step=2 * EVERY),
        "two runs in one folder": partial(scenarios.two_runs_in_one_folder, variant=0),
    }
    return scenarios_by_name


def run_scenarios_and_kills(campaign: Campaign, workspace: RunWorkspace, kills: int, quick: bool) -> None:
    """Run the remaining fault scenarios once each, then `kill -9` until there are `kills` of them."""
    values = campaign.values
    for name, scenario in scenario_list(quick).items():
        if name in values["mishaps"] or campaign.time_over(0.4):
            continue
        problem = scenario(workspace)
        values["mishaps"][name] = problem or "passed"
        campaign.record_problem(name, problem)
        print(f"{name}: {problem or 'passed'}", flush=True)
        campaign.save()
    while values["kills"] < kills and not campaign.time_over(0.65):
        values["killed_runs"] += 1  # includes runs that ended before their first kill
        rng = np.random.default_rng(values["killed_runs"])
        variant = values["killed_runs"] % len(VARIANTS)
        done, problem = scenarios.kill_until_done(workspace, variant, rng, min(KILLS_A_RUN, kills - values["kills"]))
        values["kills"] += done
        campaign.record_problem(f"kill -9, variant {variant}", problem)
        print(f"{values['kills']} kills", flush=True)
        campaign.save()


def run_fuzzing(campaign: Campaign, cases: int) -> None:
    """Run the remaining fuzz cases up to `cases` in all, distributed over the readers by `FUZZ_SHARES`.

    Raises UserError if hypothesis is not installed.
    """
    try:
        from benchmarks.faults import fuzzing
    except ImportError:
        raise UserError("fuzzing needs the package hypothesis: pip install hypothesis") from None
    values, total = campaign.values, sum(FUZZ_SHARES.values())
    targets = {reader: cases * share // total for reader, share in FUZZ_SHARES.items()}
    targets["config"] += cases - sum(targets.values())
    while not campaign.time_over(0.9):
        left = {name: target - values["fuzzed"].get(name, 0) for name, target in targets.items()}
        reader = max(left, key=lambda name: left[name] / targets[name] if targets[name] else 0)
        if left[reader] <= 0:
            return
        done = values["fuzzed"].get(reader, 0)
        found = fuzzing.fuzz(reader, min(FUZZ_BATCH, left[reader]), done)
        values["fuzzed"][reader] = done + found.cases
        values["fuzz_cases"] += found.cases
        for kind, lines in (("traceback", found.tracebacks), ("hang", found.hangs), ("outside", found.writes_outside)):
            for line in lines:
                campaign.record_problem("fuzz", f"{kind}: {line}")
        campaign.save()
        print(f"{values['fuzz_cases']} fuzz cases", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("--out", required=True, metavar="FILE", help="result file (JSON); an existing one is resumed")
    parser.add_argument("--kills", type=int, default=200, help="number of kills by kill -9 (200)")
    parser.add_argument("--fuzz", type=int, default=100_000, help="number of malformed inputs (100000)")
    parser.add_argument("--soak-minutes", type=float, default=60.0, metavar="M", help="endurance run (60)")
    parser.add_argument("--minutes", type=float, default=float("inf"), metavar="M", help="time limit (none)")
    parser.add_argument("--quick", action="store_true", help="trial run with a few cases of each kind")
    args = parser.parse_args(argv)
    if args.quick:
        args.kills, args.fuzz, args.soak_minutes = min(args.kills, 3), min(args.fuzz, 200), min(args.soak_minutes, 0.2)
    words = ["python", "-m", "benchmarks.faults", *(sys.argv[1:] if argv is None else argv)]
    torch.set_num_threads(1)  # results are bit-identical only for a fixed number of threads
    try:
        campaign = Campaign(Path(args.out), shlex.join(words), args.minutes)
        run_campaign(campaign, args)
    except UserError as error:
        print(f"usb-rsmatch: {error}", file=sys.stderr)
        return 2
    values = campaign.values
    summary = {key: values[key] for key in INITIAL_VALUES if not isinstance(values[key], (dict, list))}
    print(json.dumps(summary, indent=2))
    return 1 if values["findings"] else 0


def run_campaign(campaign: Campaign, args: argparse.Namespace) -> None:
    """Run the remaining parts of the campaign until its time limit."""
    import usb_rsmatch.usb.mixins  # noqa: F401  child processes are forks: imported once here, for all

    with tempfile.TemporaryDirectory() as folder:
        workspace = RunWorkspace(Path(folder) / "workspace")
        run_scenarios_and_kills(campaign, workspace, args.kills, args.quick)
        run_fuzzing(campaign, args.fuzz)
        if campaign.values["soak_minutes"] < args.soak_minutes and not campaign.time_over(1.0):
            left = (campaign.begun + campaign.seconds - time.monotonic()) / 60
            campaign.values |= endurance_run(workspace, min(args.soak_minutes, left))
            campaign.record_problem("endurance run", campaign.values["leak"])
            campaign.save()
