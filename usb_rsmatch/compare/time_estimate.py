"""The dry run of a grid: lists the runs and estimates the remaining time from a few measured steps."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from usb_rsmatch.compare.grid import Run
from usb_rsmatch.compare.runner import cores, finished, threads_of
from usb_rsmatch.errors import UserError
from usb_rsmatch.progress import duration

SAME_TIME = frozenset({"seed", "num_labels", "save_dir", "save_name"})  # keys that do not change a run's time
MEASURED_STEPS = 3  # a round
ROUNDS = 3
LONG = 100_000  # steps of the measured run, which starts in its middle, after every warm-up


@dataclass(frozen=True)
class Pace:
    """Seconds of one configuration: for set-up, for a step with its data, and for an evaluation."""

    set_up: float
    step: float
    evaluation: float

    def of_run(self, config: Mapping[str, Any]) -> float:
        """Seconds of a run with the `num_train_iter` and `num_eval_iter` of a resolved configuration."""
        steps = config["num_train_iter"]
        return self.set_up + steps * self.step + math.ceil(steps / config["num_eval_iter"]) * self.evaluation


Measure = Callable[[Mapping[str, Any], int], float]


def dry_run(
    runs: Sequence[Run], hashes: Mapping[str, str], out: TextIO, jobs: int | None = None, measure: Measure | None = None
) -> None:
    """Print the runs to do and done, then the estimated time of the rest with `jobs` parallel runs.

    Runs that differ only in seed and labels take the same time: that of finished ones, else the result in seconds of
    `measure` (configuration, threads). Runs that cannot be measured are reported, and the rest is estimated.
    """
    if jobs is not None and jobs < 1:
        raise UserError(f"--jobs takes a number of processes from 1, not {jobs}")
    results = {run.name: finished(run, hashes[run.name]) for run in runs}
    for run in runs:
        print(f"{'done ' if results[run.name] else 'to do'}  {run.label}  {run.folder}", file=out)
    left = [run for run in runs if not results[run.name]]
    print(f"{len(runs)} runs, {len(runs) - len(left)} done", file=out, flush=True)
    kinds: dict[str, list[Run]] = {}
    for run in runs:
        kinds.setdefault(_kind(run), []).append(run)
    at_a_time = min(jobs or cores(), max(len(left), 1))
    total, unknown = 0.0, 0
    for alike in kinds.values():
        waiting = [run for run in alike if not results[run.name]]
        if not waiting:
            continue
        times = [result.train_seconds for run in alike if (result := results[run.name])]
        if times:
            seconds, source = sum(times) / len(times), f"as {len(times)} done"
        elif measure is None:
            unknown += len(waiting)
            continue
        else:
            try:
                seconds, source = measure(waiting[0].config, threads_of(at_a_time)), "from measured steps"
            except UserError as error:
                print(f"{_place(waiting[0])}: no estimate: {error}", file=out, flush=True)
                unknown += len(waiting)
                continue
        total += seconds * len(waiting)
        print(f"{_place(waiting[0])}: {len(waiting)} x {duration(seconds)}, {source}", file=out, flush=True)
    if total:
        at_best = duration(total / at_a_time)
        others = f", {unknown} more of unknown length" if unknown else ""
        print(f"estimate: {duration(total)} of training in all, {at_a_time} at a time {at_best}{others}", file=out)


def measured(config: Mapping[str, Any], threads: int) -> float:
    """Seconds that a run of a configuration takes with `threads` threads; nothing is written.

    The pool is built as for training, so a source that trains a generator does so (and caches it) here.
    """
    import torch

    from usb_rsmatch.usb.config import resolve

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return pace(config).of_run(vars(resolve(config)[0]))
    finally:
        torch.set_num_threads(before)


def pace(config: Mapping[str, Any]) -> Pace:
    """The pace of a configuration: medians over a few rounds of its own training loop, starting half-way."""
    import statistics
    import time

    from usb_rsmatch.usb import training
    from usb_rsmatch.usb.config import resolve
    from usb_rsmatch.usb.step_timer import time_steps

    far = {"num_train_iter": LONG, "num_eval_iter": LONG, "num_log_iter": LONG, "epoch": 1}
    args, _ = resolve({**config, **far, "use_wandb": False, "use_aim": False, "use_tensorboard": False})
    args.device = training.choose_device(args.device)
    begin = time.perf_counter()
    algorithm = training.build(args)
    set_up = time.perf_counter() - begin
    algorithm.it = LONG // 2
    side = time_steps(algorithm, MEASURED_STEPS)
    side()  # warms up
    step = statistics.median(side() for _ in range(ROUNDS))
    begin = time.perf_counter()
    algorithm.evaluate()
    for hook in list(algorithm.hooks_dict.values()):
        if hasattr(hook, "measure"):
            hook.measure(algorithm)
    return Pace(set_up, step, time.perf_counter() - begin)


def _kind(run: Run) -> str:
    content = {key: value for key, value in run.config.items() if key not in SAME_TIME}
    return json.dumps(content, sort_keys=True, default=str)


def _place(run: Run) -> str:
    axes = " ".join(f"{key}={value}" for key, value in run.axes.items() if key not in SAME_TIME)
    return f"{run.arm} {axes}".strip()
