"""A yard of short runs that are disturbed, and what each of them must end as."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from benchmarks.faults.forked_commands import HUNG, Victim
from usb_rsmatch.usb import checkpoint

STEPS, EVERY = 40, 4  # of a run, and between its checkpoints
# What is trained: loaders, fast step, and the algorithms whose state is the most (queues, thresholds, banks).
VARIANTS: tuple[dict[str, Any], ...] = (
    {"algorithm": "rsmatch", "rs_warmup": 0.1},
    {"algorithm": "rsmatch", "rs_warmup": 0.1, "rs_loader": "pil"},
    {"algorithm": "flexmatch", "thresh_warmup": True},
    {"algorithm": "rsmatch", "rs_base": "softmatch", "rs_fast": True},
    {"algorithm": "comatch"},
    {"algorithm": "mixmatch"},  # draws from the global generators
)


@dataclass
class Yard:
    """A folder in which runs of some seconds are disturbed, and how each of them ends when it is not."""

    root: Path
    started: int = 0
    _whole: dict[int, tuple[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from sklearn.datasets import load_digits

        self.root.mkdir(parents=True, exist_ok=True)
        digits = load_digits()
        real = [digits.images[digits.target == label][:31] for label in range(10)]
        blends = [(images[1:] + images[:-1]) / 2 for images in real]
        images = np.round(np.concatenate(blends) * 255 / 16).astype(np.uint8)
        np.savez(self.root / "blends.npz", image=images, label=np.repeat(np.arange(10), 30))

    def config(self, variant: int, name: str, **changes: Any) -> dict[str, Any]:
        return {
            **{"dataset": "digits", "num_labels": 20, "real_count": 200, "synthetic_count": 200, "num_workers": 0},
            "synthetic": [{"source": f"npz:{self.root / 'blends.npz'}", "generator": "blend"}],
            **{"net": "small_wrn_10_1", "batch_size": 4, "uratio": 3, "eval_batch_size": 512, "rs_loader": "batched"},
            **{"epoch": 2, "num_train_iter": STEPS, "num_eval_iter": EVERY, "num_log_iter": 1, "ema_m": 0.9},
            **{"device": "cpu", "save_dir": str(self.root / "runs"), "save_name": name},
            **VARIANTS[variant % len(VARIANTS)],
            **changes,
        }

    def fresh(self) -> str:
        """A name that no run had yet."""
        self.started += 1
        return f"run{self.started}"

    def folder(self, config: dict[str, Any]) -> Path:
        return Path(config["save_dir"]) / config["save_name"]

    def start(self, config: dict[str, Any], prepare: Callable[[], object] = lambda: None) -> Victim:
        """`usb-rsmatch train` with that configuration; its output is beside the run folders."""

        def act() -> None:
            torch.set_num_threads(1)
            os.chdir(self.root)
            prepare()

        path = self.root / f"{config['save_name']}.yaml"
        path.write_text(yaml.safe_dump(config))
        return Victim(["train", "--c", str(path)], path.with_suffix(".log"), act)

    def whole(self, variant: int) -> tuple[str, float]:
        """Digest of all that the undisturbed run ends with, and its seconds."""
        variant %= len(VARIANTS)
        if variant not in self._whole:
            config, begun = self.config(variant, f"whole{variant}"), time.monotonic()
            with self.start(config) as victim:
                if victim.wait() != 0:
                    raise RuntimeError(victim.output())
            self._whole[variant] = self.digest(config), time.monotonic() - begun
        return self._whole[variant]

    def digest(self, config: dict[str, Any]) -> str:
        """Of weights, optimiser, position, best, and the state of hooks and generators: all but the seconds it took."""
        content = checkpoint.read(self.folder(config) / "latest_model.pth")
        del content[checkpoint.KEY]["hooks"]["TimerHook"]
        return checkpoint.digest(content)

    def ends_as_whole(self, variant: int, config: dict[str, Any], told: str = "") -> str:
        """Start the run again and let it end: "" where it ends as the undisturbed one."""
        with self.start(config) as victim:
            code = victim.wait()
            output = victim.output()
        if code != 0:
            return f"lost: exit code {code} when started again: {output[-300:]}"
        if "Traceback" in output:
            return f"traceback: {output[-300:]}"
        if told and told not in output:
            return f"untold: {told!r} is not in {output[-300:]!r}"
        if self.digest(config) != self.whole(variant)[0]:
            return "silent: another state in the end"
        left = [path.name for path in self.folder(config).glob(".*") if path.name != ".lock"]
        shutil.rmtree(self.folder(config))
        return f"left behind: {left}" if left else ""


def refused(victim: Victim, codes: tuple[int, ...], seconds: float = 120.0) -> str:
    """ "" where a victim ends with one of the exit codes and one line that tells why."""
    code = victim.wait(seconds)
    lines = victim.output().splitlines()
    if code == HUNG:
        return "hang"
    if "Traceback" in victim.output():
        return f"traceback: {victim.output()[-500:]}"
    if code not in codes or not lines or not lines[-1].startswith("usb-rsmatch: "):
        return f"exit code {code}: {victim.output()[-300:]}"
    return ""
