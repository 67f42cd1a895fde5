"""How well RSMatch detects generated photographs without labels of provenance, against detectors that have them.

python -m benchmarks.detection --photos DIR --out results/detection.json

DIR holds `matched/train` and `matched/test` (real photographs with the file history of the generated ones) and a folder
for each generator, all with class folders. The mining efficiency is (mined - 0.5) / (taught - 0.5) of the AUROC, where
`taught` is the larger of `rs_detector: supervised` and a small CNN (`taught_detector.py`), both with true provenance.
Each finished run is written to the output file, and an interrupted benchmark resumes there.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import taught_detector
from usb_rsmatch.detection.metrics import mining_efficiency
from usb_rsmatch.errors import UserError
from usb_rsmatch.io import write_json
from usb_rsmatch.usb import run_facts, training
from usb_rsmatch.usb.config import resolve

POOL = 4000  # images
STEPS = 1500
SEEDS = (100, 101, 102, 103, 104)
GENERATORS = ("latent_flow", "latent_flow_guided", "latent_flow_8steps")


@dataclass(frozen=True)
class Cell:
    """A pool of `POOL` images, of which the generators make `share`, and a number of labelled images."""

    generators: tuple[str, ...]
    share: float = 0.5
    labels: int = 100

    @property
    def name(self) -> str:
        return f"{' + '.join(self.generators)}, {self.share:.0%} synthetic, {self.labels} labels"


CELLS = (
    *(Cell((name,)) for name in GENERATORS),
    Cell(GENERATORS),
    *(Cell(GENERATORS[:1], share) for share in (0.2, 0.8, 0.0)),
    *(Cell(GENERATORS[:1], labels=labels) for labels in (40, 400)),
)


def configuration(cell: Cell, photos: Path, seed: int, pool: int, steps: int, **changes: Any) -> dict[str, Any]:
    """Return the configuration of a run with RSMatch on FixMatch."""
    synthetic = round(cell.share * pool)
    return {
        "algorithm": "rsmatch",
        "dataset": "folder",
        "data_dir": str(photos / "matched"),
        "img_size": 32,
        "num_labels": cell.labels,
        "seed": seed,
        "synthetic": [{"source": f"folder:{photos / name}", "generator": name} for name in cell.generators],
        "real_count": pool - synthetic,
        "synthetic_count": synthetic,
        "net": "small_wrn_10_1",
        "batch_size": 16,
        "uratio": 7,
        "num_train_iter": steps,
        "num_eval_iter": steps,
        "num_log_iter": steps,
        "ema_m": 0.99,
        "num_workers": 0,
        "rs_loader": "batched",
        "rs_fast": True,
        "device": "cpu",
    } | changes


def trained(config: Mapping[str, Any]) -> Any:
    """Return the trained algorithm of a configuration; no file is kept."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "run").mkdir()  # USB writes a checkpoint at the end
        algorithm = training.build(resolve({**config, "save_dir": folder, "save_name": "run"})[0])
        algorithm.train()
    return algorithm


def measure(cell: Cell, photos: Path, seed: int, pool: int, steps: int) -> dict[str, Any]:
    """Return the AUROC of the mined and of the taught detectors, or, without synthetic images, the share identified."""
    started = time.process_time()
    mined = trained(configuration(cell, photos, seed, pool, steps))
    row: dict[str, Any] = {"cell": cell.name, "seed": seed, "synthetic": cell.share, "labels": cell.labels}
    threshold = mined.hooks_dict["SyntheticDetectionHook"].threshold
    indices, scores = mined._pool_scores
    images = mined.dataset_dict["train_ulb"].set.take(indices)
    row["real_identified"] = float((scores[images.is_real] > threshold).mean())
    if cell.share:
        supervised = trained(configuration(cell, photos, seed, pool, steps, rs_detector="supervised"))
        row |= {"mined": mined.detection_report["auroc"], "supervised": supervised.detection_report["auroc"]}
        taught_steps = min(taught_detector.STEPS, steps)
        pixels = np.asarray(images.images)
        row["small_cnn"] = taught_detector.taught_auroc(pixels, images.is_synthetic, seed, taught_steps)
        row["efficiency"] = mining_efficiency(row["mined"], max(row["supervised"], row["small_cnn"]))
    return row | {"cpu_seconds": round(time.process_time() - started)}


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the least and the mean efficiency over cells, of means over seeds, and the share identified as synthetic
    where nothing is.
    """
    cells: dict[str, list[float]] = {}
    for row in rows:
        if row.get("efficiency") is not None:
            cells.setdefault(row["cell"], []).append(row["efficiency"])
    means = {cell: float(np.mean(values)) for cell, values in cells.items()}
    clean = [row["real_identified"] for row in rows if row["synthetic"] == 0]
    return {
        "mining_efficiency_min": min(means.values(), default=None),
        "mining_efficiency_mean": float(np.mean(list(means.values()))) if means else None,
        "clean_identified": float(np.mean(clean)) if clean else None,
        "cells": means,
    }


def read_rows(path: Path, conditions: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the finished runs of an output file. UserError if it is of other conditions."""
    if not path.exists():
        return []
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for name, value in conditions.items():
        if content.get(name) != value:
            raise UserError(f"{path}: its runs have {name} {content.get(name)}, not {value}: choose another file")
    return list(content["runs"])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.detection", description=__doc__)
    parser.add_argument("--out", required=True, metavar="FILE", help="output file (JSON)")
    parser.add_argument("--photos", required=True, type=Path, metavar="DIR", help="folder of the photographs")
    parser.add_argument("--only", default="", metavar="TEXT", help="only cells whose name contains TEXT")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS, metavar="N", help="seeds of the runs")
    parser.add_argument("--steps", type=int, default=STEPS, metavar="N", help=f"training steps (default: {STEPS})")
    parser.add_argument("--pool", type=int, default=POOL, metavar="N", help=f"images of a pool (default: {POOL})")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    conditions = {"steps": args.steps, "pool": args.pool, "versions": run_facts.versions()}
    words = ["python", "-m", "benchmarks.detection", *(sys.argv[1:] if argv is None else argv)]
    try:
        rows = read_rows(Path(args.out), conditions)
        done = {(row["cell"], row["seed"]) for row in rows}
        for seed in args.seeds:
            for cell in CELLS:
                if args.only not in cell.name or (cell.name, seed) in done:
                    continue
                rows.append(measure(cell, args.photos, seed, args.pool, args.steps))
                print(json.dumps(rows[-1]), flush=True)
                write_json(args.out, {**summarise(rows), **conditions, "command": shlex.join(words), "runs": rows})
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(json.dumps(summarise(rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
