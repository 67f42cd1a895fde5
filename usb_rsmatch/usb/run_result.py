"""`result.json` of a run folder: made from the metrics of the whole run, read again, and told in one line."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from usb_rsmatch.data.pool.settings import ALL
from usb_rsmatch.detection.share_text import share_text
from usb_rsmatch.errors import UserError
from usb_rsmatch.io import parse_json
from usb_rsmatch.usb import config
from usb_rsmatch.usb.hooks import read_metrics
from usb_rsmatch.usb.run_facts import peak_memory_mib, versions


def make_result(algorithm: Any, folder: Path) -> dict[str, Any]:
    """The contents of `result.json`, from the metrics of the whole run."""
    args, lines = algorithm.args, read_metrics(folder / "metrics.jsonl")
    last = lines[-1] if lines else {}
    if last.get("it") != args.num_train_iter or "eval/top-1-acc" not in last:  # a lost file
        last = algorithm.evaluate()
    pool = getattr(args, "pool", None)
    seconds = algorithm.hooks_dict["TimerHook"].seconds
    images = args.num_train_iter * args.batch_size * (1 + args.uratio)
    return {
        "algorithm": args.algorithm,
        "dataset": args.dataset,
        "seed": args.seed,
        "num_labels": len(args.pool.labeled) if args.num_labels == ALL else args.num_labels,
        "iterations": args.num_train_iter,
        "pool": pool.provenance if pool is not None else None,
        "accuracy": {
            "last": last["eval/top-1-acc"],
            "best": algorithm.best_eval_acc,
            "best_iteration": algorithm.best_it + 1,
            "validation": last.get("validation/top-1-acc"),
        },
        "detection": getattr(algorithm, "detection_report", None),
        "shortcuts": list(getattr(algorithm, "shortcuts", [])),
        "time": {
            "train_seconds": round(seconds, 3),
            "images_per_second": round(images / max(seconds, 1e-9), 1),
        },
        "peak_memory_mib": peak_memory_mib(args.device),
        "versions": versions(),
        "config_sha256": config.config_hash(algorithm.config),
        "finished": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "threads": torch.get_num_threads(),
        "device": args.device,
    }


def read_result(folder: Path) -> dict[str, Any]:
    """The result of a finished run; UserError for an incomplete file."""
    try:
        return parse_json((folder / "result.json").read_text(encoding="utf-8"))
    except ValueError:
        raise UserError(f"{folder / 'result.json'} is incomplete or not JSON: move it away and run again") from None


def result_line(result: Mapping[str, Any]) -> str:
    """Accuracy, AUROC if measured, share if estimated, and training time of a result, in one line."""
    detection = result.get("detection")
    auroc = f", AUROC {detection['auroc']:.3f}" if detection and detection.get("auroc") is not None else ""
    unknown = (detection or {}).get("unknown")
    share = f", synthetic share of unknown provenance: {share_text(unknown)}" if unknown else ""
    return f"accuracy {100 * result['accuracy']['last']:.2f} %{auroc}{share}, {result['time']['train_seconds']:.0f} s"
