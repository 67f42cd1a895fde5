"""TensorBoard and Weights & Biases, switched on by USB's own keys; both receive every line of `metrics.jsonl`.

USB's own hooks write at evaluations only (TensorBoard, HEAD) or only eleven values (Weights & Biases). A resumed run
continues the same curves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from usb_rsmatch.errors import UserError
from usb_rsmatch.usb import config
from usb_rsmatch.usb.lazy_import import HOOKS, require_tracker


class Tracker(Protocol):
    """Logs the numbers of a step; steps count from 1, as in `metrics.jsonl`."""

    def log(self, values: Mapping[str, float], step: int) -> None: ...
    def close(self) -> None: ...


class TensorBoard:
    """Event files in `<run folder>/tensorboard`; events that an interrupted process wrote after step `done` are
    hidden.
    """

    def __init__(self, folder: Path, done: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError("use_tensorboard needs the package tensorboard: pip install tensorboard") from None
        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1 if done else None)

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A W&B run with USB's project, name and tags; its files are in `<run folder>/wandb`."""

    def __init__(self, folder: Path, args: Any) -> None:
        require_tracker("wandb")
        import wandb

        settings = {key: value for key, value in vars(args).items() if key != "device"}
        name = hashlib.sha256(f"{folder.resolve()} {config.config_hash(args)}".encode()).hexdigest()[:16]
        try:
            self.run = wandb.init(
                project=folder.resolve().parent.name,
                name=folder.name,
                id=name,  # the same id after a resume
                resume="allow",
                dir=str(folder),
                config=settings,
                tags=[
                    f"benchmark: {folder.resolve().parent.name}"[:64],
                    f"dataset: {args.dataset}"[:64],
                    f"setting: {args.dataset}_lb{args.num_labels}"[:64],
                    f"alg: {args.algorithm}"[:64],
                    f"imb_alg: {args.imb_algorithm}"[:64],
                ],
            )
        except wandb.Error as error:  # not logged in, no network
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"use_wandb: {reason}; run `wandb login`, or set WANDB_MODE=offline") from None

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        self.run.finish()


def require_trackers(args: Any) -> None:
    """UserError if a configuration switches on Aim or W&B and the package is missing."""
    for name in HOOKS:
        if getattr(args, f"use_{name}"):
            require_tracker(name)


def trackers(args: Any, folder: Path, done: int) -> list[Tracker]:
    """The trackers of a configuration, for a run with `done` completed steps; UserError if one cannot start."""
    found: list[Tracker] = []
    if args.use_tensorboard:
        found.append(TensorBoard(folder, done))
    if args.use_wandb:
        found.append(WeightsAndBiases(folder, args))
    return found
