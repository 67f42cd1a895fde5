"""The fault campaign: fault scenarios for real runs, kills, fuzzing of every reader, and an endurance run.

`python -m benchmarks.faults --out results/faults.json` takes hours and can be stopped at any time: the file contains
the results so far, and the same command resumes. `--minutes` limits the time, `--quick` is a trial run of a minute or
two. A kill or scenario passes if the run, started again, ends with the weights of the undisturbed run, bit for bit. The
key "mishaps" of the result file keeps its name for committed files; it contains the fault scenarios.
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
from usb_rsmatch.usb import training

Scenario = Callable[[RunWorkspace], str]

KILLS_A_RUN = 8
BATCH = 250  # fuzz cases between two checks of the time limit
SHARES = {"config": 3, "checkpoint": 4, "metadata": 4, "pool": 1}  # relative numbers of cases
DISK_SHARES = (0.0, 0.001, 0.005, 0.02, 0.05, 0.2, 0.5, 0.9, 0.99)  # of a checkpoint, then it is full
FLUSHES = 16  # file flushes in a run: 3 before its steps, 10 checkpoints and a best one, 2 at its end

START: dict[str, Any] = {
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
    """The state of a campaign, in memory and in its file."""

    def __init__(self, out: Path, command: str, minutes: float) -> None:
        self.out, self.command = out, command
        self.begun, self.seconds = time.monotonic(), 60 * minutes
        self.values: dict[str, Any] = json.loads(json.dumps(START))
        if out.exists():
            try:
                self.values |= json.loads(out.read_text(encoding="utf-8"))
            except ValueError:
                raise UserError(f"{out} is not a result of this command: move it, or choose another --out") from None

    def over(self, share: float) -> bool:
        """Whether that share of the time is over, so that each part of a short campaign gets some."""
        return time.monotonic() >= self.begun + share * self.seconds

    def note(self, what: str, problem: str) -> None:
        """Count a problem by its first word; nothing for "". """
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
        self.values |= {
            "threads": torch.get_num_threads(),
            "versions": training.versions(),
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "command": self.command,
        }
        write_json(self.out, self.values)


def scenario_list(quick: bool) -> dict[str, Scenario]:
    """Every fault scenario except kills, by name; a quick campaign takes only a few of each kind."""
    kinds: dict[str, Scenario] = {}
    for share in DISK_SHARES[:: 4 if quick else 1]:
        for number, which in ((0, "a checkpoint"), (2, "the third checkpoint")):
            kinds[f"disk full at {share:g} of {which}"] = partial(
                scenarios.full_disk, variant=0, share=share, number=number
            )
    for number in range(1, FLUSHES + 1, 12 if quick else 1):
        kinds[f"disk full at flush {number}"] = partial(scenarios.write_fails, variant=0, number=number)
    for variant in range(1 if quick else len(VARIANTS)):
        for name, number in (("SIGTERM", signal.SIGTERM), ("SIGINT", signal.SIGINT)):
            kinds[f"{name}, variant {variant}"] = partial(scenarios.signalled, variant=variant, number=number)
        for name, cut in (("cut off", True), ("flipped", False)):
            kinds[f"checkpoint {name}, variant {variant}"] = partial(
                scenarios.damaged_checkpoint, variant=variant, rng=np.random.default_rng(variant), cut=cut
            )
    kinds |= {
        "read-only folder": partial(scenarios.read_only_folder, variant=0),
        "data file truncated": partial(scenarios.data_lost, variant=0, cut=True),
        "data file deleted": partial(scenarios.data_lost, variant=0, cut=False),
        "worker killed": partial(scenarios.dead_worker, number=0),
        "another worker killed": partial(scenarios.dead_worker, number=1),
        "loss is no number": partial(scenarios.diverged, variant=0),
        "weights are no numbers": partial(scenarios.spoiled, variant=0, step=2 * EVERY + 1),
        "weights are no numbers where a checkpoint is due": partial(scenarios.spoiled, variant=0, step=2 * EVERY),
        "two runs in one folder": partial(scenarios.two_in_one_folder, variant=0),
    }
    return kinds


def disturb(campaign: Campaign, workspace: RunWorkspace, kills: int, quick: bool) -> None:
    """All fault scenarios once, and kills up to their number."""
    values = campaign.values
    for name, scenario in scenario_list(quick).items():
        if name in values["mishaps"] or campaign.over(0.4):
            continue
        problem = scenario(workspace)
        values["mishaps"][name] = problem or "passed"
        campaign.note(name, problem)
        print(f"{name}: {problem or 'passed'}", flush=True)
        campaign.save()
    while values["kills"] < kills and not campaign.over(0.65):
        values["killed_runs"] += 1  # also runs that ended before their first kill
        rng = np.random.default_rng(values["killed_runs"])
        variant = values["killed_runs"] % len(VARIANTS)
        done, problem = scenarios.kill_until_done(workspace, variant, rng, min(KILLS_A_RUN, kills - values["kills"]))
        values["kills"] += done
        campaign.note(f"kill -9, variant {variant}", problem)
        print(f"{values['kills']} kills", flush=True)
        campaign.save()


def feed(campaign: Campaign, cases: int) -> None:
    """Fuzz cases up to their number, distributed over the readers."""
    try:
        from benchmarks.faults import fuzzing
    except ImportError:
        raise UserError("the fuzz cases need the package hypothesis: pip install hypothesis") from None
    values, total = campaign.values, sum(SHARES.values())
    targets = {reader: cases * share // total for reader, share in SHARES.items()}
    targets["config"] += cases - sum(targets.values())
    while not campaign.over(0.9):
        left = {name: target - values["fuzzed"].get(name, 0) for name, target in targets.items()}
        reader = max(left, key=lambda name: left[name] / targets[name] if targets[name] else 0)
        if left[reader] <= 0:
            return
        done = values["fuzzed"].get(reader, 0)
        found = fuzzing.fuzz(reader, min(BATCH, left[reader]), done)
        values["fuzzed"][reader] = done + found.cases
        values["fuzz_cases"] += found.cases
        for kind, lines in (("traceback", found.tracebacks), ("hang", found.hangs), ("outside", found.writes_outside)):
            for line in lines:
                campaign.note("fuzz", f"{kind}: {line}")
        campaign.save()
        print(f"{values['fuzz_cases']} fuzz cases", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("--out", required=True, metavar="FILE", help="the result file, from which a campaign resumes")
    parser.add_argument("--kills", type=int, default=200, help="number of kill -9 (200)")
    parser.add_argument("--fuzz", type=int, default=100_000, help="number of malformed inputs (100000)")
    parser.add_argument("--soak-minutes", type=float, default=60.0, metavar="M", help="endurance run (60)")
    parser.add_argument("--minutes", type=float, default=float("inf"), metavar="M", help="then stop")
    parser.add_argument("--quick", action="store_true", help="a few of everything")
    args = parser.parse_args(argv)
    if args.quick:
        args.kills, args.fuzz, args.soak_minutes = min(args.kills, 3), min(args.fuzz, 200), min(args.soak_minutes, 0.2)
    words = ["python", "-m", "benchmarks.faults", *(sys.argv[1:] if argv is None else argv)]
    torch.set_num_threads(1)  # results are equal bit for bit for a fixed number of threads
    try:
        campaign = Campaign(Path(args.out), shlex.join(words), args.minutes)
        carry_out(campaign, args)
    except UserError as error:
        print(f"usb-rsmatch: {error}", file=sys.stderr)
        return 2
    values = campaign.values
    print(json.dumps({key: values[key] for key in START if not isinstance(values[key], (dict, list))}, indent=2))
    return 1 if values["findings"] else 0


def carry_out(campaign: Campaign, args: argparse.Namespace) -> None:
    """Run the remaining parts of the campaign, until its time is over."""
    import usb_rsmatch.usb.mixins  # noqa: F401  the child processes are forks: what is imported here they have

    with tempfile.TemporaryDirectory() as folder:
        workspace = RunWorkspace(Path(folder) / "workspace")
        disturb(campaign, workspace, args.kills, args.quick)
        feed(campaign, args.fuzz)
        if campaign.values["soak_minutes"] < args.soak_minutes and not campaign.over(1.0):
            left = (campaign.begun + campaign.seconds - time.monotonic()) / 60
            campaign.values |= endurance_run(workspace, min(args.soak_minutes, left))
            campaign.note("soak", campaign.values["leak"])
            campaign.save()
