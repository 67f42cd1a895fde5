"""Trains a configuration into a run folder: the counterpart of USB's train.py, which its wheel lacks."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import sys
import warnings
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from usb_rsmatch import distributed
from usb_rsmatch.device import choose_device
from usb_rsmatch.errors import Interrupted, RunFailed, UserError
from usb_rsmatch.io import parse_json, write_json, write_text
from usb_rsmatch.usb import checkpoint, config, distributed_training
from usb_rsmatch.usb.hooks import CheckpointHook, MetricsHook, ProgressHook, drop_hook, replace_hook
from usb_rsmatch.usb.network import check_network, find_net, network_notes, required_size
from usb_rsmatch.usb.run_analysis import write_analysis
from usb_rsmatch.usb.run_lock import is_empty, lock_run_folder
from usb_rsmatch.usb.run_result import make_result, read_result, result_line
from usb_rsmatch.usb.start_notes import find_shortcuts, start_notes
from usb_rsmatch.usb.stop_between_steps import StopBetweenSteps
from usb_rsmatch.usb.trackers import require_trackers, trackers
from usb_rsmatch.usb.unlabeled_table import write_unlabeled

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from semilearn.core.utils import ALGORITHMS, IMB_ALGORITHMS


def train(
    source: str | Path | Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
    max_minutes: float | None = None,
    note: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
) -> dict[str, Any]:
    """Train a configuration (file, shipped name or mapping) to its end, or resume where its run folder stopped.

    Returns the contents of `result.json`. Raises UserError before anything is written, RunFailed if training fails, and
    Interrupted, with a checkpoint saved, after a stop request or `max_minutes`.
    """
    if max_minutes is not None and not max_minutes >= 0:
        raise UserError(f"--max-minutes takes a number of at least 0, not {max_minutes:g}")
    args, notes = config.resolve(source, overrides)
    args.save_name = args.save_name or config.default_save_name(args)
    args.device = choose_device(args.device)
    folder = Path(args.save_dir) / args.save_name
    with distributed.process_group(args.device), StopBetweenSteps(max_minutes) as stop, contextlib.ExitStack() as lock:
        note = note if distributed.rank() == 0 else lambda line: None
        for line in notes:
            note(f"note: {line}")
        done = distributed.on_rank_zero(check_folder, folder, args)
        if done is not None:
            note(f"{folder} is done: {result_line(done)}")
            return done
        algorithm = build(args)
        start = None if (folder / "latest_model.pth").exists() else checkpoint.load_start(algorithm)
        distributed.on_rank_zero(lambda: lock.enter_context(lock_run_folder(folder)))
        done = distributed.on_rank_zero(check_folder, folder, algorithm.config)  # another process may have finished it
        return done if done is not None else _train(algorithm, folder, stop, note, start)


def _train(
    algorithm: Any, folder: Path, stop: StopBetweenSteps, note: Callable[[str], None], start: dict[str, Any] | None
) -> dict[str, Any]:
    """Train to the end and write the result, in a run folder that this process (or the first one) has locked.

    `start` is the checkpoint that `algorithm` starts from, used unless the folder has one.
    """
    state, damage = distributed.on_rank_zero(checkpoint.read_latest, folder)
    if state is not None:
        checkpoint.load(algorithm, state, f"the checkpoint in {folder}")
    else:
        state = start
    distributed.on_rank_zero(prepare_folder, folder, algorithm.args, algorithm)
    if damage:
        note(f"note: {damage}")
        distributed.on_rank_zero(checkpoint.rename_damaged, folder)
    if state is not None:
        if (missing := checkpoint.missing_state_note(state)) is not None:
            note(f"note: {missing}")
        note(f"resuming after step {algorithm.it} of {algorithm.num_train_iter}")
    else:
        for line in network_notes(algorithm):
            note(line)
    algorithm.shortcuts = distributed.on_rank_zero(find_shortcuts, algorithm)
    if state is None and getattr(algorithm.args, "pool", None) is not None:
        for line in start_notes(algorithm.args.pool):
            note(line)
        for line in algorithm.shortcuts:
            note(f"warning: {line}; the detector may learn this instead of synthesis: see reencode, clear_below")
    drop_hook(algorithm, "WANDBHook")
    if distributed.rank() == 0:
        metrics = MetricsHook(folder / "metrics.jsonl", trackers(algorithm.config, folder, algorithm.it))
        replace_hook(algorithm, metrics, "MetricsHook", "LOWEST")
        replace_hook(algorithm, ProgressHook(), "ProgressHook", "LOWEST")
    replace_hook(algorithm, CheckpointHook(), "CheckpointHook", "LOWEST")  # after the metrics of its step

    algorithm.stop_requested = stop
    try:
        if algorithm.it == 0 and hasattr(algorithm, "warmup"):
            algorithm.warmup()  # has no checkpoints: a signal stops it immediately
        stop.begin()
        algorithm.train()
        if hasattr(algorithm, "finetune"):
            algorithm.finetune()
        return distributed.on_rank_zero(finish, algorithm, folder)
    except (UserError, RunFailed, Interrupted, KeyboardInterrupt):
        raise
    except Exception as error:
        reason = " ".join(f"{folder.name}: {type(error).__name__}: {error}".split())
        if isinstance(error, (EOFError, ConnectionError)) or "DataLoader worker" in str(error):
            reason += " (a worker process of the loader has ended; the system kills processes when memory is short)"
        if distributed.world_size() > 1:
            who = f"process {distributed.rank()} of {distributed.world_size()}"
            raise RunFailed(f"{who}: {reason}; the last checkpoint is kept (has another process ended?)") from error
        try:
            saved = algorithm.save_between_steps()
        except Exception as again:  # a full disk prevents a checkpoint too
            raise RunFailed(f"{reason}; {again}; the previous checkpoint is kept") from error
        if saved and stop():  # the signal reached the worker processes too
            raise Interrupted(f"stopped after step {algorithm.it} of {algorithm.num_train_iter}; saved") from error
        then = f"; saved after step {algorithm.it}, the same command resumes" if saved else ""
        raise RunFailed(reason + then) from error
    finally:
        if "ProgressHook" in algorithm.hooks_dict:
            algorithm.hooks_dict["ProgressHook"].close()
            algorithm.hooks_dict["MetricsHook"].close()


def finish(algorithm: Any, folder: Path) -> dict[str, Any]:
    """Write the analysis, the table of images of unknown provenance and the result of a finished training; returns the
    result.
    """
    if algorithm.args.analysis:
        write_analysis(algorithm, folder)
    write_unlabeled(algorithm, folder)
    result = make_result(algorithm, folder)
    write_json(folder / "result.json", result)
    return result


# set-up -----------------------------------------------------------------------------------------------------------


def check_folder(folder: Path, args: Namespace) -> dict[str, Any] | None:
    """The result of a finished run, None for a run to start or resume; UserError for another configuration's folder."""
    path = folder / "config.yaml"
    if not path.exists():
        if folder.is_dir() and not is_empty(folder):
            raise UserError(f"{folder} exists and is not a run folder: choose another save_name")
        return None
    before, now = config.identity(config.read_yaml(path)), config.identity(args)
    for key in sorted((before.keys() | now.keys()) - config.MAY_CHANGE):
        default = config.KEYS[key].default if key in config.KEYS else None  # for a run older than the key
        saved, wanted = before.get(key, default), now.get(key)
        longer = key == "num_train_iter" and isinstance(saved, int) and isinstance(wanted, int) and wanted > saved
        advice = f", and go on from this one with start_from: {folder / 'latest_model.pth'}" if longer else ""
        if saved != wanted:
            raise UserError(
                f"{folder} holds a run with {key}: {saved!r}, not {wanted!r}; choose another save_name{advice}"
            )
    return read_result(folder) if (folder / "result.json").exists() else None


def prepare_folder(folder: Path, args: Namespace, algorithm: Any) -> None:
    """Write the resolved configuration and the pool's manifest, and open the log."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "config.yaml").exists():  # first: this file makes it a run folder
        saved = {key: value for key, value in vars(algorithm.config).items() if key != "device"}
        write_text(folder / "config.yaml", yaml.safe_dump(saved, sort_keys=True))
    if getattr(args, "pool", None) is not None:
        write_or_compare_manifest(folder / "manifest.json", args.pool.manifest())
    log = RunLog(folder / "log.txt", encoding="utf-8")
    log.setFormatter(logging.Formatter("[%(asctime)s %(levelname)s] %(message)s"))
    algorithm.logger.handlers[:] = [log]


class RunLog(logging.FileHandler):
    """The log of a run; an error while writing it, such as a full disk, stops the run."""

    def handleError(self, record: logging.LogRecord) -> None:
        raise


def write_or_compare_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """Write the pool's manifest, or compare it with the one with which the run started.

    Raises UserError if images, labels or their order differ: the checkpoint's indices would refer to other images.
    """
    if not path.exists():
        write_json(path, manifest)
        return
    try:
        before = parse_json(path.read_text(encoding="utf-8"))["parts"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is incomplete or not a manifest: move it away and run again") from None
    for name in sorted(before.keys() | manifest["parts"].keys()):
        if before.get(name) != manifest["parts"].get(name):
            raise UserError(
                f"{path.parent}: the {name} images are not those with which the run started: restore them, or choose "
                "another save_name"
            )


def build(args: Namespace, pool: Any = None, load_weights: bool = True) -> Any:
    """The algorithm of a resolved configuration, seeded, on its device; nothing is written here.

    `pool` replaces the one that the configuration describes, for example by a placeholder. Without `load_weights`
    pretrained weights are not read: those of a checkpoint replace them anyway.
    """
    from usb_rsmatch.usb.mixins import compose_run_class

    asked = Namespace(**vars(args))
    require_trackers(args)

    complete_args(args, *([] if pool is None else [pool]))
    # After the pool is read: the first run with a built-in generator trains it, which takes global random numbers.
    random.seed(args.seed)
    np.random.seed(args.seed)
    torch.manual_seed(args.seed)
    torch.backends.cudnn.deterministic = True
    logger = logging.getLogger(f"usb_rsmatch.{args.save_name}")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.handlers[:] = [logging.NullHandler()]
    net_builder = find_net(args, load_weights)
    imbalanced = IMB_ALGORITHMS[args.imb_algorithm] if args.imb_algorithm else None
    kind = compose_run_class(ALGORITHMS[args.algorithm], imbalanced, fast=args.rs_fast)
    try:
        with warnings.catch_warnings():  # semilearn's AMP scaler has a deprecated name, and is unused without CUDA
            warnings.filterwarnings("ignore", r"`?torch\.cuda\.amp\.GradScaler")
            algorithm = kind(args, net_builder, logger=logger)
        algorithm.config, algorithm.logger = asked, logger
        for model in (algorithm.model, algorithm.ema_model):
            model.to(args.device)
            model.__dict__.setdefault("module", model)  # USB's imbalanced algorithms use model.module, as with DDP
        check_network(algorithm)
        distributed_training.broadcast_model(algorithm.model)
        distributed_training.gather_in_hooks(algorithm)
        distributed_training.seed_generators(args.seed, 0)
        algorithm.ngpus_per_node = max(args.world_size, 1)  # USB then logs in the first process
    except UserError:
        raise
    except Exception as error:  # USB's constructors raise any exception for incompatible settings
        size = required_size(net_builder)
        if size not in (None, args.img_size):
            raise UserError(
                f"net: {args.net} takes images of {size} px, these have {args.img_size}; set img_size: {size}, or "
                "choose another net"
            ) from None
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{args.algorithm} with {args.net} on {args.dataset} cannot be set up: {reason}") from error
    return algorithm


def complete_args(args: Namespace, pool: Any = None) -> None:
    """Add what USB's code also reads (pool, its sizes, process, device); UserError for values that contradict it."""
    from usb_rsmatch.data.pool.pool import HybridPool
    from usb_rsmatch.data.sources.dataset_registry import dataset_names
    from usb_rsmatch.data.views.settings import describes_pool
    from usb_rsmatch.usb.start_notes import refuse_unlearnable

    if describes_pool(args):
        args.pool = HybridPool.from_config(args) if pool is None else pool
        classes = len(args.pool.classes)
        if args.num_classes not in (None, classes):
            raise UserError(f"num_classes is {args.num_classes}, but {args.dataset} has {classes} classes")
        args.num_classes = classes
        refuse_unlearnable(args, args.pool)
        args.img_size = args.pool.unlabeled.images.shape[1]
    if args.num_classes is None:
        near = config.nearest(args.dataset, dataset_names())
        raise UserError(f"unknown dataset {args.dataset!r}{near} (a data set that only USB reads needs num_classes)")
    args.img_size = args.img_size or 32  # USB's default, for the data sets that it reads itself
    args.rank, args.world_size = distributed.rank(), distributed.world_size()
    args.gpu = int(os.environ.get("LOCAL_RANK", "0")) * (args.world_size > 1) if args.device == "cuda" else None
    args.distributed = args.multiprocessing_distributed = args.world_size > 1
    if args.distributed and getattr(args, "pool", None) is None:
        raise UserError(f"several processes need a pool of this package, not USB's own loaders of {args.dataset!r}")
    if args.distributed and args.algorithm in ("scomatch", "uasd"):
        raise UserError(f"{args.algorithm} keeps its memory of the pool in a single process: start it without torchrun")
    if args.batch_size % args.world_size:
        raise UserError(f"batch_size {args.batch_size} is not divisible by the number of processes, {args.world_size}")
    if args.rank > 0:
        args.use_tensorboard = args.use_wandb = args.use_aim = False
    args.resume, args.load_path = False, None
    if not hasattr(args, "use_epass"):
        args.use_epass = False  # simmatch and comatch read it, no parser of USB's HEAD sets it
