"""Speed and image quality of the flow engine, the small generator of `usb-rsmatch synthesize --engine flow`.

python -m benchmarks.synthesis --out results/synthesis.json
"""

from __future__ import annotations

import argparse
import datetime
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from usb_rsmatch.data.sources.dataset_registry import open_real
from usb_rsmatch.device import has_bfloat16
from usb_rsmatch.io import write_json
from usb_rsmatch.synthesis.flow_engine import FlowEngine
from usb_rsmatch.synthesis.flow_sampler import BATCH
from usb_rsmatch.synthesis.flow_settings import FlowSettings
from usb_rsmatch.synthesis.plan import Plan
from usb_rsmatch.synthesis.quality import measure
from usb_rsmatch.synthesis.training_images import load_training_images

# Name -> (description, goal, whether the goal is a minimum).
GOALS: Mapping[str, tuple[str, float | None, bool]] = {
    "images_per_s": ("images per second of sampling", 20.0, True),
    "class_accuracy": ("share of images that a classifier of real images assigns to their class", 0.9, True),
    "train_minutes": ("minutes of training", 15.0, False),
    "peak_memory_mib": ("peak memory of training and sampling, MiB", None, False),
}


@dataclass(frozen=True)
class Scale:
    """What is measured: a data set at `size` pixels, `count` generated images, training steps (None: recommended)."""

    dataset: str
    size: int
    count: int
    steps: int | None = None
    judge_steps: int = 800  # training of the classifier that measures quality; the key of committed result files


FULL = Scale("fashionmnist", 32, 2048)
QUICK = Scale("digits", 8, 256, steps=20, judge_steps=20)


def flow(scale: Scale, data_dir: str, threads: int, log: Any = print) -> dict[str, Any]:
    """Train a generator from scratch, sample it as `usb-rsmatch synthesize --engine flow` does, and measure quality.

    `train_cpu_minutes` and `sample_cpu_s` are CPU time over all threads, which other processes on the machine change
    little.
    """
    torch.set_num_threads(threads)
    real = open_real(scale.dataset, data_dir)
    images, labels = load_training_images(real, "train", 0, scale.size)
    classes = real.classes
    changes = {} if scale.steps is None else {"steps": scale.steps}
    settings = FlowSettings.recommended(scale.size, **changes)
    plan = Plan(classes, tuple(range(len(classes))), scale.count, BATCH)
    with tempfile.TemporaryDirectory() as cache:
        engine = FlowEngine(images, labels, len(classes), settings, 0, BATCH, "train", "cpu", cache)
        log(f"training for {settings.steps} steps on {len(images)} images ...")
        begin, cpu = time.perf_counter(), time.process_time()
        engine.train()
        train_s, train_cpu_s = time.perf_counter() - begin, time.process_time() - cpu
        engine.make(plan.items(0))  # the first batch also builds the network
        log(f"{train_s / 60:.1f} minutes; sampling {scale.count} images ...")
        begin, cpu = time.perf_counter(), time.process_time()
        made = [image for batch in range(len(plan)) for image in engine.make(plan.items(batch))]
        sample_s, sample_cpu_s = time.perf_counter() - begin, time.process_time() - cpu
    peak = peak_memory_mib()
    log("measuring quality ...")
    pixels = np.stack([image.image for image in made])
    quality = measure(images, labels, pixels, plan.labels(), len(classes), steps=scale.judge_steps, device="cpu")
    return {
        "images_per_s": round(scale.count / sample_s, 2),
        "class_accuracy": round(quality.class_accuracy, 4),
        "train_minutes": round(train_s / 60, 2),
        "peak_memory_mib": peak,
        "train_cpu_minutes": round(train_cpu_s / 60, 2),
        "sample_cpu_s": round(sample_cpu_s, 2),
        "quality": {k: v if isinstance(v, str) else round(v, 4) for k, v in asdict(quality).items()},
        "setting": {**asdict(scale), **{k: v for k, v in engine.settings.items() if k != "model"}},
    }


def peak_memory_mib() -> float | None:
    """Return this process's peak memory, without importing semilearn; None on systems that do not report it."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)


def table(result: Mapping[str, Any]) -> str:
    """Return the values as lines of text, each with its goal."""
    lines = []
    for key, (what, goal, at_least) in GOALS.items():
        value = result["flow"][key]
        met = ""
        if goal is not None:
            met = f"{'>=' if at_least else '<='} {goal:g}  "
            met += "met" if value == goal or (value > goal) == at_least else "missed"
        shown = "-" if value is None else f"{value:.2f}"
        lines.append(f"{what:70} {shown:>10}   {met}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.synthesis", description=__doc__)
    parser.add_argument("--out", required=True, metavar="FILE", help="output file (JSON)")
    parser.add_argument("--data-dir", default="./data", metavar="DIR", help="folder of Fashion-MNIST")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="CPU threads (two)")
    parser.add_argument("--quick", action="store_true", help="trial run on digits: its numbers are meaningless")
    args = parser.parse_args(argv)
    load = [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None
    result: dict[str, Any] = {"flow": flow(QUICK if args.quick else FULL, args.data_dir, args.threads)}
    from benchmarks.speed import processor  # imported late: semilearn would add to the peak memory
    from usb_rsmatch.usb.run_facts import versions

    words = ["python", "-m", "benchmarks.synthesis", *(sys.argv[1:] if argv is None else argv)]
    result |= {
        "goals": {key: goal for key, (_, goal, _) in GOALS.items() if goal is not None},
        "load": {"before": load, "after": [round(value, 2) for value in os.getloadavg()] if load else None},
        "bfloat16": has_bfloat16(torch.device("cpu")),
        "threads": args.threads,
        "processor": processor(),
        "versions": versions(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(words),
        "quick": args.quick,
    }
    write_json(Path(args.out), result)
    print(table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
