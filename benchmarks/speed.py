"""Speed of views and training steps compared with stock USB in the same process; start-up time and peak memory.

python -m benchmarks.speed --out results/speed.json
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from usb_rsmatch.io import write_json
from usb_rsmatch.usb import registration, run_facts
from usb_rsmatch.usb.hooks import read_metrics

registration.register()  # must run before the imports below: they use semilearn's registries

from benchmarks import speed_workloads  # noqa: E402
from benchmarks.timing import median_min_max, ratios, time_alternately, timed  # noqa: E402
from usb_rsmatch.data.views import augment  # noqa: E402
from usb_rsmatch.data.views.hybrid_dataset import PilViews  # noqa: E402
from usb_rsmatch.device import has_bfloat16  # noqa: E402
from usb_rsmatch.usb.step_timer import time_steps  # noqa: E402

# Name -> (description, goal, whether the goal is a minimum).
GOALS: Mapping[str, tuple[str, float | None, bool]] = {
    "views_ratio": ("weak + strong views, 32 px colour, one core: USB's PIL / batched", 15.0, True),
    "step_ratio_wrn_28_2": ("FixMatch step with data, wrn_28_2, 64 + 7 x 64: stock USB / ours", 2.5, True),
    "step_ratio_small": ("FixMatch step with data, quickstart net, 16 + 7 x 16: stock USB / ours", 5.0, True),
    "rsmatch_over_fixmatch_wrn_28_2": ("RSMatch step / FixMatch step, wrn_28_2", 1.12, False),
    "rsmatch_over_fixmatch_small": ("RSMatch step / FixMatch step, quickstart net", 1.3, False),
    "step_over_floor": ("FixMatch step / forward + backward of wrn_28_2 alone", 1.15, False),
    "pool_size_ratio": ("RSMatch step, largest pool / smallest", 1.1, False),
    "startup_s": ("from command to the end of the first step, s", 8.0, False),
    "help_s": ("usb-rsmatch --help, s", 0.5, False),
    "peak_memory_mib": ("peak memory of training wrn_28_2, 64 + 7 x 64, MiB", None, False),
}


@dataclass(frozen=True)
class Scale:
    """Numbers of repetitions and sizes."""

    rounds: int  # of each comparison, except steps of wrn_28_2
    wrn_rounds: int
    wrn_steps: int  # per round
    small_steps: int  # per round
    images: int  # whose views are timed
    pools: tuple[int, ...]  # images in each pool
    processes: int  # for start-up time and for peak memory
    wrn: Mapping[str, int]  # changes of the batch size of wrn_28_2


FULL = Scale(15, 7, 1, 20, 448, (1_000, 10_000, 100_000, 1_000_000), 3, {})
QUICK = Scale(2, 1, 1, 2, 32, (1_000, 2_000), 1, {"batch_size": 2, "uratio": 1})


def views(scale: Scale) -> dict[str, list[float]]:
    """Time normalised weak and strong views of a batch on one core: USB's PIL transforms, and the batched views."""
    images, _ = speed_workloads.colour_digits(scale.images, 0)
    mean, std = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
    from PIL import Image

    from usb_rsmatch.data.sources.dataset_registry import DataSpec

    pil = PilViews(DataSpec("cifar10", mean, std, flip=True, img_size=32), 32, 0.875)
    batch = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    positions, spec = torch.arange(len(batch)), augment.ViewSpec(padding=4, flip=True)

    def one_by_one() -> None:
        for image in images:
            opened = Image.fromarray(image)
            pil.weak(opened), pil.strong(opened)

    def batched() -> None:
        for number, kind in enumerate((augment.weak, augment.strong)):
            augment.normalise(kind(batch, 0, positions, number, spec), mean, std)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return time_alternately({"pil": timed(one_by_one), "batched": timed(batched)}, scale.rounds)
    finally:
        torch.set_num_threads(threads)


def steps(size: str, folder: Path, scale: Scale) -> dict[str, list[float]]:
    """Time training steps with data: stock USB's FixMatch, ours, RSMatch; for wrn_28_2 also the network alone."""
    large = size == "wrn_28_2"
    config = speed_workloads.configuration(size, folder, **(scale.wrn if large else {}))
    count = scale.wrn_steps if large else scale.small_steps
    fixmatch = speed_workloads.build_ours(config)
    sides = {
        "stock": time_steps(speed_workloads.build_stock_usb(config), count),
        "fixmatch": time_steps(fixmatch, count),
        "rsmatch": time_steps(speed_workloads.build_ours({**config, "algorithm": "rsmatch"}), count),
    }
    if large:
        network = speed_workloads.build_ours(config).model.train()
        loaders = fixmatch.loader_dict
        labeled, unlabeled = (next(iter(loaders[name])) for name in ("train_lb", "train_ulb"))
        batch = torch.cat([labeled["x_lb"], unlabeled["x_ulb_w"], unlabeled["x_ulb_s"]])
        targets = torch.arange(len(batch)) % fixmatch.num_classes

        def network_only() -> None:
            for _ in range(count):
                torch.nn.functional.cross_entropy(network(batch)["logits"], targets).backward()
                network.zero_grad()

        floor = timed(network_only)
        sides["floor"] = lambda: floor() / count
    return time_alternately(sides, scale.wrn_rounds if large else scale.rounds)


def pool_sizes(folder: Path, scale: Scale) -> dict[str, list[float]]:
    """Time RSMatch's step on the small network by pool size; the synthetic images are random pixels."""
    sides = {}
    for size in scale.pools:
        path, rng = folder / f"random{size}.npz", np.random.default_rng(0)
        count = size - 500
        np.savez(path, image=rng.integers(0, 256, (count, 8, 8), dtype=np.uint8), label=rng.integers(10, size=count))
        config = speed_workloads.configuration(
            "small",
            folder,
            algorithm="rsmatch",
            real_count=500,
            synthetic_count=count,
            synthetic=[{"source": f"npz:{path}", "generator": "random"}],
        )
        sides[str(size)] = time_steps(speed_workloads.build_ours(config), scale.small_steps)
    return time_alternately(sides, scale.rounds)


def command(*words: str) -> list[str]:
    """Return the command line of `usb-rsmatch` with these words."""
    return [sys.executable, "-m", "usb_rsmatch", *words]


def help_seconds(scale: Scale) -> list[float]:
    """Time `usb-rsmatch --help` in a new process."""
    shown = timed(lambda: subprocess.run(command("--help"), check=True, capture_output=True))
    return time_alternately({"help": shown}, max(3, scale.processes))["help"]


def write_config(size: str, folder: Path, name: str, **changes: Any) -> Path:
    """Write the configuration file of a short run and return its path."""
    config = speed_workloads.configuration(size, folder, num_log_iter=1, eval_batch_size=256, save_name=name, **changes)
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def startup_seconds(folder: Path, number: int) -> float:
    """Time from the command to the first step's line in `metrics.jsonl`, with the small network."""
    path = write_config("small", folder, f"startup{number}")
    lines = folder / "runs" / f"startup{number}" / "metrics.jsonl"
    begin = time.perf_counter()
    with subprocess.Popen(
        command("train", "--c", str(path)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            while not read_metrics(lines):
                if process.poll() is not None:
                    raise RuntimeError(f"training ended with code {process.returncode} before its first step")
                time.sleep(0.005)
            return time.perf_counter() - begin
        finally:
            process.terminate()


def peak_memory(folder: Path, scale: Scale, number: int) -> float:
    """Return the peak memory (MiB) of a process that trains RSMatch on wrn_28_2 for two steps and evaluates."""
    changes = {**scale.wrn, "algorithm": "rsmatch", "num_train_iter": 2, "num_eval_iter": 2}
    path = write_config("wrn_28_2", folder, f"memory{number}", **changes)
    subprocess.run(command("train", "--c", str(path)), check=True, capture_output=True)
    return json.loads((folder / "runs" / f"memory{number}" / "result.json").read_text())["peak_memory_mib"]


def processor() -> str:
    """Return the processor's name, or its architecture on systems that do not report the name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def measure(scale: Scale, threads: int, log: Any = print) -> dict[str, Any]:
    """Measure all values of `GOALS`: each as median, minimum and maximum, and the seconds from which it is computed."""
    warnings.simplefilter("ignore")  # semilearn uses names that torch has deprecated
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # for child processes
    load = [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None
    log(f"{threads} threads, {processor()}, load before {load}")
    values: dict[str, Sequence[float]] = {}
    seconds: dict[str, Mapping[str, Sequence[float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        speed_workloads.write_images(folder)
        log("processes ...")  # first, while this process is small: Linux counts a parent's memory for its child too
        values["startup_s"] = [startup_seconds(folder, number) for number in range(scale.processes)]
        values["help_s"] = help_seconds(scale)
        values["peak_memory_mib"] = [peak_memory(folder, scale, number) for number in range(scale.processes)]
        log("views ...")
        seconds["views"] = views(scale)
        values["views_ratio"] = ratios(seconds["views"]["pil"], seconds["views"]["batched"])
        for size in speed_workloads.NETWORKS:
            log(f"steps of {size} ...")
            taken = seconds[f"step_{size}"] = steps(size, folder, scale)
            values[f"step_ratio_{size}"] = ratios(taken["stock"], taken["fixmatch"])
            values[f"rsmatch_over_fixmatch_{size}"] = ratios(taken["rsmatch"], taken["fixmatch"])
            if "floor" in taken:
                values["step_over_floor"] = ratios(taken["fixmatch"], taken["floor"])
        log("pool sizes ...")
        pools = seconds["step_by_pool_size"] = pool_sizes(folder, scale)
        values["pool_size_ratio"] = ratios(pools[str(scale.pools[-1])], pools[str(scale.pools[0])])
    result: dict[str, Any] = {key: median_min_max(values[key]) for key in GOALS}
    result["goals"] = {key: goal for key, (_, goal, _) in GOALS.items() if goal is not None}
    result["seconds"] = {
        name: {side: median_min_max(taken, 6) for side, taken in sides.items()} for name, sides in seconds.items()
    }
    return result | {
        "load_before": load,
        "bfloat16": has_bfloat16(torch.device("cpu")),
        "threads": threads,
        "processor": processor(),
        "versions": run_facts.versions(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def table(result: Mapping[str, Any]) -> str:
    """Return the values as lines of text, each with its goal."""
    lines = [f"{'':68} {'median':>8} {'min':>8} {'max':>8}   goal"]
    for key, (what, goal, at_least) in GOALS.items():
        value = result[key]
        met = "" if goal is None else f"{'>=' if at_least else '<='} {goal:g}"
        if goal is not None:
            met += "  met" if (value["median"] >= goal) == at_least or value["median"] == goal else "  missed"
        lines.append(f"{what:68} {value['median']:8.2f} {value['min']:8.2f} {value['max']:8.2f}   {met}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("--out", required=True, metavar="FILE", help="output file (JSON)")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="CPU threads (two)")
    parser.add_argument("--quick", action="store_true", help="trial run with tiny batches: its numbers are meaningless")
    args = parser.parse_args(argv)
    result = measure(QUICK if args.quick else FULL, args.threads)
    words = ["python", "-m", "benchmarks.speed", *(sys.argv[1:] if argv is None else argv)]
    write_json(args.out, result | {"command": shlex.join(words), "quick": args.quick})
    print(table(result))
    if args.quick:
        print("trial run with tiny batches: its numbers are meaningless")
    return 0


if __name__ == "__main__":
    sys.exit(main())
