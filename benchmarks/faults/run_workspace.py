"""A folder of short training runs: starts them and compares a disturbed run with the undisturbed reference run."""

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

from benchmarks.faults.forked_commands import HUNG, ForkedCommand
from usb_rsmatch.usb import checkpoint

STEPS, EVERY = 40, 4  # steps of a run, and between its checkpoints
# Configurations of the runs: both loaders, the fast step, and the algorithms with the most state (queues, thresholds,
# memory banks).
VARIANTS: tuple[dict[str, Any], ...] = (
    {"algorithm": "rsmatch", "rs_warmup": 0.1},
    {"algorithm": "rsmatch", "rs_warmup": 0.1, "rs_loader": "pil"},
    {"algorithm": "flexmatch", "thresh_warmup": True},
    {"algorithm": "rsmatch", "rs_base": "softmatch", "rs_fast": True},
    {"algorithm": "comatch"},
    {"algorithm": "mixmatch"},  # uses the global random generators
)


@dataclass
class RunWorkspace:
    """A folder for runs of a few seconds, and the results of the undisturbed reference run of each variant."""

    root: Path
    started: int = 0
    _reference: dict[int, tuple[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from sklearn.datasets import load_digits

        self.root.mkdir(parents=True, exist_ok=True)
        digits = load_digits()
        real = [digits.images[digits.target == label][:31] for label in range(10)]
        blends = [(images[1:] + images[:-1]) / 2 for images in real]
        images = np.round(np.concatenate(blends) * 255 / 16).astype(np.uint8)
        np.savez(self.root / "blends.npz", image=images, label=np.repeat(np.arange(10), 30))

    def config(self, variant: int, name: str, **changes: Any) -> dict[str, Any]:
        """Return the configuration of a run; `changes` replace keys of the variant."""
        return {
            **{"dataset": "digits", "num_labels": 20, "real_count": 200, "synthetic_count": 200, "num_workers": 0},
            "synthetic": [{"source": f"npz:{self.root / 'blends.npz'}", "generator": "blend"}],
            **{"net": "small_wrn_10_1", "batch_size": 4, "uratio": 3, "eval_batch_size": 512, "rs_loader": "batched"},
            **{"epoch": 2, "num_train_iter": STEPS, "num_eval_iter": EVERY, "num_log_iter": 1, "ema_m": 0.9},
            **{"device": "cpu", "save_dir": str(self.root / "runs"), "save_name": name},
            **VARIANTS[variant % len(VARIANTS)],
            **changes,
        }

    def new_run_name(self) -> str:
        """Return a run name that is not in use."""
        self.started += 1
        return f"run{self.started}"

    def folder(self, config: dict[str, Any]) -> Path:
        """Return the run folder of a configuration."""
        return Path(config["save_dir"]) / config["save_name"]

    def start(self, config: dict[str, Any], prepare: Callable[[], object] = lambda: None) -> ForkedCommand:
        """Start `usb-rsmatch train` with this configuration; the output goes to a file outside of the run folder."""

        def prepare_child() -> None:
            torch.set_num_threads(1)
            os.chdir(self.root)
            prepare()

        path = self.root / f"{config['save_name']}.yaml"
        path.write_text(yaml.safe_dump(config))
        return ForkedCommand(["train", "--c", str(path)], path.with_suffix(".log"), prepare_child)

    def reference(self, variant: int) -> tuple[str, float]:
        """Return the digest of the undisturbed run's final state, and the seconds that the run took."""
        variant %= len(VARIANTS)
        if variant not in self._reference:
            config, begun = self.config(variant, f"whole{variant}"), time.monotonic()
            with self.start(config) as child:
                if child.wait() != 0:
                    raise RuntimeError(child.output())
            self._reference[variant] = self.digest(config), time.monotonic() - begun
        return self._reference[variant]

    def digest(self, config: dict[str, Any]) -> str:
        """Return the digest of a run's latest checkpoint without the state of the timer, which differs between runs."""
        content = checkpoint.read(self.folder(config) / "latest_model.pth")
        del content[checkpoint.KEY]["hooks"]["TimerHook"]
        return checkpoint.digest(content)

    def check_resume(self, variant: int, config: dict[str, Any], expected: str = "") -> str:
        """Restart the run and let it finish; return "" if it ends with the undisturbed run's state, else a problem.

        `expected` is text that the output must contain. The first word of a problem is its kind.
        """
        with self.start(config) as child:
            code = child.wait()
            output = child.output()
        if code != 0:
            return f"lost: exit code {code} after a restart: {output[-300:]}"
        if "Traceback" in output:
            return f"traceback: {output[-300:]}"
        if expected and expected not in output:
            return f"unreported: {expected!r} is not in {output[-300:]!r}"
        if self.digest(config) != self.reference(variant)[0]:
            return "silent: the final state differs"
        left = [path.name for path in self.folder(config).glob(".*") if path.name != ".lock"]
        shutil.rmtree(self.folder(config))
        return f"left behind: {left}" if left else ""


def check_refusal(child: ForkedCommand, codes: tuple[int, ...], seconds: float = 120.0) -> str:
    """Return "" if a child ends with one of the exit codes and a last line with the reason, else a problem."""
    code = child.wait(seconds)
    lines = child.output().splitlines()
    if code == HUNG:
        return "hang"
    if "Traceback" in child.output():
        return f"traceback: {child.output()[-500:]}"
    if code not in codes or not lines or not lines[-1].startswith("usb-rsmatch: "):
        return f"exit code {code}: {child.output()[-300:]}"
    return ""
