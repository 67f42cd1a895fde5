"""From a configuration to a trained run folder: the stand-in for USB's train.py, which its wheel lacks."""

from __future__ import annotations

import datetime
import json
import logging
import random
import signal
import sys
import threading
import time
import warnings
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from usb_rsmatch.errors import Interrupted, RunFailed, UserError
from usb_rsmatch.io import write_json, write_text
from usb_rsmatch.usb import checkpoint, config
from usb_rsmatch.usb.hooks import CheckpointHook, MetricsHook, ProgressHook, read_metrics, replace_hook
from usb_rsmatch.version import __version__

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import semilearn
    from semilearn.core.utils import ALGORITHMS, IMB_ALGORITHMS, TBLog


def train(
    source: str | Path | Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
    max_minutes: float | None = None,
    note: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
) -> dict[str, Any]:
    """Train a configuration (file, shipped name or mapping) to its end, or go on where its run folder stopped.

    Gives the contents of `result.json`. Errors: UserError before anything is written; RunFailed where training fails;
    Interrupted after a checkpoint where it was asked to stop or `max_minutes` are over.
    """
    args, notes = config.resolve(source, overrides)
    for line in notes:
        note(f"note: {line}")
    args.save_name = args.save_name or config.default_save_name(args)
    args.device = choose_device(args.device)
    folder = Path(args.save_dir) / args.save_name
    done = check_folder(folder, args)
    if done is not None:
        note(f"{folder} is done: {config_line(done)}")
        return done

    algorithm = build(args)
    state, damage = checkpoint.read_latest(folder) if folder.is_dir() else (None, None)
    prepare_folder(folder, args, algorithm)
    if damage:
        note(f"note: {damage}")
    if state is not None:
        algorithm.load_checkpoint(state)
        note(f"going on after step {algorithm.it} of {algorithm.num_train_iter}")
    replace_hook(algorithm, MetricsHook(folder / "metrics.jsonl"), "MetricsHook", "LOWEST")
    replace_hook(algorithm, ProgressHook(), "ProgressHook", "LOWEST")
    replace_hook(algorithm, CheckpointHook(), "CheckpointHook", "LOWEST")  # after the metrics of its step

    with _Stop(max_minutes) as stop:
        algorithm.stop_requested = stop
        try:
            if algorithm.it == 0 and hasattr(algorithm, "warmup"):
                algorithm.warmup()
            algorithm.train()
            if hasattr(algorithm, "finetune"):
                algorithm.finetune()
        except (UserError, RunFailed, Interrupted, KeyboardInterrupt):
            raise
        except Exception as error:
            raise RunFailed(f"{folder.name}: {type(error).__name__}: {error}") from error
        finally:
            algorithm.hooks_dict["ProgressHook"].close()
    result = make_result(algorithm, folder)
    write_json(folder / "result.json", result)
    return result


# set-up -----------------------------------------------------------------------------------------------------------


def choose_device(name: str | None) -> str:
    """`auto` (or nothing) takes the GPU where there is one; UserError where `cuda` is asked for and absent."""
    if name in (None, "auto"):
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise UserError(f"device takes auto, cpu or cuda, not {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device: cuda was asked for, but torch finds no CUDA device; take --device cpu")
    return name


def check_folder(folder: Path, args: Namespace) -> dict[str, Any] | None:
    """The result of a finished run, None for one to start or go on; UserError for a folder of another configuration."""
    path = folder / "config.yaml"
    if not path.exists():
        if folder.is_dir() and any(folder.iterdir()):
            raise UserError(f"{folder} exists and is no run folder: choose another save_name")
        return None
    before, now = config.identity(config.read_yaml(path)), config.identity(args)
    for key in sorted(before.keys() | now.keys()):
        default = config.KEYS[key].default if key in config.KEYS else None  # for a run older than the key
        held, wanted = before.get(key, default), now.get(key)
        if held != wanted:
            raise UserError(f"{folder} holds a run with {key}: {held!r}, not {wanted!r}; choose another save_name")
    return read_result(folder) if (folder / "result.json").exists() else None


def prepare_folder(folder: Path, args: Namespace, algorithm: Any) -> None:
    """Write the resolved configuration and the pool's manifest, and open the log."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "config.yaml").exists():  # first of all: what makes this a run folder
        saved = {key: value for key, value in vars(algorithm.config).items() if key != "device"}
        write_text(folder / "config.yaml", yaml.safe_dump(saved, sort_keys=True))
    if getattr(args, "pool", None) is not None and not (folder / "manifest.json").exists():
        write_json(folder / "manifest.json", args.pool.manifest())
    if args.use_tensorboard:
        algorithm.tb_log = TBLog(str(folder), "tensorboard", use_tensorboard=True)
    log = logging.FileHandler(folder / "log.txt", encoding="utf-8")
    log.setFormatter(logging.Formatter("[%(asctime)s %(levelname)s] %(message)s"))
    algorithm.logger.handlers[:] = [log]


def build(args: Namespace, pool: Any = None) -> Any:
    """The algorithm of a resolved configuration, seeded, on its device; nothing is written here.

    `pool` stands in for the one that the configuration describes: an outline of it, say.
    """
    from usb_rsmatch.usb.mixins import lay_over

    random.seed(args.seed)
    np.random.seed(args.seed)
    torch.manual_seed(args.seed)
    torch.backends.cudnn.deterministic = True
    asked = Namespace(**vars(args))

    complete(args, *([] if pool is None else [pool]))
    logger = logging.getLogger(f"usb_rsmatch.{args.save_name}")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.handlers[:] = [logging.NullHandler()]
    try:
        net_builder = semilearn.get_net_builder(args.net, args.net_from_name)
    except AttributeError:
        names = [name for name in dir(semilearn.nets) if "_" in name and name[0].islower()]
        raise UserError(f"unknown net {args.net!r}{config.nearest(args.net, names)}") from None
    imbalanced = IMB_ALGORITHMS[args.imb_algorithm] if args.imb_algorithm else None
    kind = lay_over(ALGORITHMS[args.algorithm], imbalanced, fast=args.rs_fast)
    try:
        algorithm = kind(args, net_builder, logger=logger)
    except (UserError, OSError):
        raise
    except Exception as error:  # USB's constructors say by any exception what does not go together
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{args.algorithm} with {args.net} on {args.dataset} cannot be set up: {reason}") from error
    algorithm.config, algorithm.logger = asked, logger
    for model in (algorithm.model, algorithm.ema_model):
        model.to(args.device)
        model.__dict__.setdefault("module", model)  # USB's imbalanced algorithms say model.module, as under DDP
    return algorithm


def complete(args: Namespace, pool: Any = None) -> None:
    """What USB's code reads beside the configuration: the pool and its sizes, and one process on one device."""
    from usb_rsmatch.data.loader import describes_pool
    from usb_rsmatch.data.pool import build_pool

    if describes_pool(args):
        args.pool = build_pool(args) if pool is None else pool
        classes = len(args.pool.classes)
        if args.num_classes not in (None, classes):
            raise UserError(f"num_classes is {args.num_classes}, but {args.dataset} has {classes} classes")
        args.num_classes = classes
        args.img_size = args.pool.unlabeled.images.shape[1]
    if args.num_classes is None:
        raise UserError(f"dataset {args.dataset!r} needs num_classes")
    args.gpu = 0 if args.device == "cuda" else None
    args.rank, args.world_size, args.distributed, args.multiprocessing_distributed = 0, 1, False, False
    args.resume, args.load_path = False, None
    if not hasattr(args, "use_epass"):
        args.use_epass = False  # simmatch and comatch read it, no parser of USB's head sets it


# result -----------------------------------------------------------------------------------------------------------


def make_result(algorithm: Any, folder: Path) -> dict[str, Any]:
    """The contents of `result.json`, from the metrics of the whole run."""
    args, lines = algorithm.args, read_metrics(folder / "metrics.jsonl")
    last = next((line for line in reversed(lines) if "eval/top-1-acc" in line), None)
    if last is None:  # the file was removed after the last step
        last = algorithm.evaluate()
    pool = getattr(args, "pool", None)
    seconds = algorithm.hooks_dict["TimerHook"].seconds
    images = args.num_train_iter * args.batch_size * (1 + args.uratio)
    return {
        "algorithm": args.algorithm,
        "dataset": args.dataset,
        "seed": args.seed,
        "num_labels": args.num_labels,
        "iterations": args.num_train_iter,
        "pool": pool.provenance if pool is not None else None,
        "accuracy": {
            "last": last["eval/top-1-acc"],
            "best": algorithm.best_eval_acc,
            "best_iteration": algorithm.best_it + 1,
            "validation": last.get("validation/top-1-acc"),
        },
        "detection": getattr(algorithm, "detection_report", None),
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
    """The result of a finished run; UserError for a file that is cut off."""
    try:
        return json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except json.JSONDecodeError:
        raise UserError(f"{folder / 'result.json'} is cut off or not JSON: move it away and run again") from None


def config_line(result: Mapping[str, Any]) -> str:
    """One line that tells a result."""
    detection = result.get("detection")
    auroc = f", AUROC {detection['auroc']:.3f}" if detection and detection.get("auroc") is not None else ""
    return f"accuracy {100 * result['accuracy']['last']:.2f} %{auroc}, {result['time']['train_seconds']:.0f} s"


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    from importlib import metadata

    packages = ("semilearn", "torch", "torchvision", "numpy")
    return {"usb_rsmatch": __version__, **{name: metadata.version(name) for name in packages}}


def peak_memory_mib(device: str) -> float | None:
    """Peak memory of the GPU, or of this process where there is none; None where the system does not tell."""
    if device == "cuda":
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    status = Path("/proc/self/status")
    if status.exists():  # Linux's getrusage also counts what the parent held before this process was started
        peaks = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        if peaks:
            return round(int(peaks[0]) / 2**10, 1)
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


# stopping ---------------------------------------------------------------------------------------------------------


class _Stop:
    """Whether the run shall stop after this step: a signal came (a second one stops at once), or the time is over."""

    def __init__(self, max_minutes: float | None) -> None:
        self.deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes
        self.signalled = False
        self.previous: dict[int, Any] = {}

    def __call__(self) -> bool:
        return self.signalled or (self.deadline is not None and time.monotonic() >= self.deadline)

    def _handle(self, number: int, frame: Any) -> None:
        if self.signalled:
            raise KeyboardInterrupt
        self.signalled = True

    def __enter__(self) -> _Stop:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                self.previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
