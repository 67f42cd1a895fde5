"""The hooks of a run: time, checkpoints, metrics and progress. They replace USB's, which need a GPU or lose state."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from semilearn.core.hooks import EvaluationHook as UsbEvaluationHook
from semilearn.core.hooks import Hook

from usb_rsmatch import distributed
from usb_rsmatch.errors import Interrupted, RunFailed
from usb_rsmatch.io import parse_json, write_text
from usb_rsmatch.usb.trackers import Tracker
from usb_rsmatch.usb.weight_update import nonfinite


def drop_hook(algorithm: Any, name: str) -> None:
    """Remove the hook of that name, if there is one."""
    algorithm._hooks = [other for other in algorithm._hooks if other.name != name]
    algorithm.hooks_dict.pop(name, None)


def replace_hook(algorithm: Any, hook: Hook, name: str, priority: str) -> None:
    """Remove the hook of that name, then register this one; USB alone would keep the old one's position."""
    drop_hook(algorithm, name)
    algorithm.register_hook(hook, name, priority)


def to_json_value(value: Any) -> Any:
    """A logged value as one that JSON can hold: tensors become numbers or lists, NaN and infinity None.

    Reading a tensor waits for its device.
    """
    if isinstance(value, torch.Tensor):
        value = value.detach().float().item() if value.numel() == 1 else value.tolist()
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


class TimerHook(Hook):
    """Wall-clock seconds for data and for the step; waits for the GPU only when a log line is due."""

    def __init__(self) -> None:
        self.seconds = 0.0  # spent on steps and data, including earlier processes of this run

    def before_run(self, algorithm: Any) -> None:
        self._last = self._begin = time.perf_counter()

    def before_train_step(self, algorithm: Any) -> None:
        self._begin = time.perf_counter()

    def after_train_step(self, algorithm: Any) -> None:
        if algorithm.device.type == "cuda" and self.every_n_iters(algorithm, algorithm.num_log_iter):
            torch.cuda.synchronize(algorithm.device)
        now = time.perf_counter()
        algorithm.log_dict["lr"] = algorithm.optimizer.param_groups[-1]["lr"]
        algorithm.log_dict["train/prefetch_time"] = self._begin - self._last
        algorithm.log_dict["train/run_time"] = now - self._begin
        self.seconds += now - self._last
        self._last = now


class EvaluationHook(UsbEvaluationHook):
    """USB's evaluation, and that of the validation set if there is one."""

    def after_train_step(self, algorithm: Any) -> None:
        super().after_train_step(algorithm)
        due = self.every_n_iters(algorithm, algorithm.num_eval_iter) or self.is_last_iter(algorithm)
        if due and "validation" in algorithm.loader_dict:
            algorithm.log_dict.update(algorithm.evaluate("validation"))

    def after_run(self, algorithm: Any) -> None:
        """Only set the result: the last step's checkpoint already contains everything."""
        algorithm.results_dict = {"eval/best_acc": algorithm.best_eval_acc, "eval/best_it": algorithm.best_it}


class CheckpointHook(Hook):
    """Saves after all other hooks have run; a request to stop leads to a checkpoint and `Interrupted`."""

    def after_train_step(self, algorithm: Any) -> None:
        due = self.every_n_iters(algorithm, algorithm.num_eval_iter) or self.is_last_iter(algorithm)
        stop = distributed.any_rank(algorithm.stop_requested())
        if due or stop:
            bad = nonfinite(algorithm.model)
            if bad:  # this step's update can cause it, although the loss was finite
                raise RunFailed(
                    f"the weights are not finite after step {algorithm.it + 1}; {bad[0]} is the first of {len(bad)}; "
                    "the previous checkpoint is kept: lower lr, or set clip_grad"
                )
            folder = os.path.join(algorithm.save_dir, algorithm.save_name)
            if due and algorithm.it == algorithm.best_it:  # first: after a kill in between, both repeat
                algorithm.save_model("model_best.pth", folder)
            algorithm.save_model("latest_model.pth", folder)
        algorithm.mark_consistent(algorithm.it + 1)
        if stop and not self.is_last_iter(algorithm):
            raise Interrupted(f"stopped after step {algorithm.it + 1} of {algorithm.num_train_iter}; saved")


class ResumeHook(Hook):
    """Restores the state of hooks and random generators from a checkpoint, once the epoch's iterators exist."""

    def before_run(self, algorithm: Any) -> None:
        """Call `after_train_epoch` if the checkpoint was written at an epoch's last step, before that call.

        After the very last step, restore the state here, since no further step would do so before the result is made.
        """
        steps = algorithm.num_iter_per_epoch
        if algorithm.it >= algorithm.num_train_iter:
            algorithm.restore_state()
        elif algorithm.checkpoint_state and algorithm.it % steps == 0:
            algorithm.restore_state()
            algorithm.epoch = algorithm.it // steps - 1
            algorithm.call_hook("after_train_epoch")

    def before_train_step(self, algorithm: Any) -> None:
        algorithm.mark_consistent(None)
        algorithm.restore_state()


class MetricsHook(Hook):
    """One JSON line for each `num_log_iter` and each evaluation; lines after the resumed step are dropped.

    Its numbers also go to `trackers`.
    """

    def __init__(self, path: Path, trackers: Sequence[Tracker] = ()) -> None:
        self.path, self._trackers = path, trackers

    def before_run(self, algorithm: Any) -> None:
        kept = [line for line in read_metrics(self.path) if line["it"] <= algorithm.it]
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def after_train_step(self, algorithm: Any) -> None:
        if not (
            self.every_n_iters(algorithm, algorithm.num_log_iter)
            or self.every_n_iters(algorithm, algorithm.num_eval_iter)
            or self.is_last_iter(algorithm)
        ):
            return
        values = {key: to_json_value(value) for key, value in algorithm.log_dict.items()}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"it": algorithm.it + 1, **values}) + "\n")
        numbers = {key: value for key, value in values.items() if isinstance(value, (int, float))}
        for tracker in self._trackers:
            tracker.log(numbers, algorithm.it + 1)

    def close(self) -> None:
        """Close the trackers."""
        for tracker in self._trackers:
            tracker.close()


class ProgressHook(Hook):
    """A progress bar on a terminal, a plain line at each evaluation elsewhere."""

    _bar: Any = None  # of this process only: not part of a checkpoint

    def before_run(self, algorithm: Any) -> None:
        if sys.stderr.isatty():
            from tqdm import tqdm

            total, done = algorithm.num_train_iter, algorithm.it
            self._bar = tqdm(total=total, initial=done, unit="step", desc=algorithm.save_name, dynamic_ncols=True)

    def after_train_step(self, algorithm: Any) -> None:
        due = self.every_n_iters(algorithm, algorithm.num_eval_iter) or self.is_last_iter(algorithm)
        text = summary(algorithm.log_dict) if due else ""
        if self._bar is not None:
            self._bar.update(1)
            if due:
                self._bar.set_postfix_str(text)
        elif due:
            print(f"step {algorithm.it + 1}/{algorithm.num_train_iter}  {text}", flush=True)

    def close(self) -> None:
        """Close the bar, if there is one."""
        if self._bar is not None:
            self._bar.close()


def summary(log_dict: dict[str, Any]) -> str:
    """Accuracy, loss and AUROC of a log line as text, if they are present and finite."""
    parts = []
    for key, name, scale in (
        ("eval/top-1-acc", "accuracy", 100.0),
        ("train/total_loss", "loss", 1.0),
        ("detection/auroc", "AUROC", 1.0),
    ):
        value = to_json_value(log_dict.get(key))
        if isinstance(value, (int, float)):
            parts.append(f"{name} {value * scale:.2f}")
    return "  ".join(parts)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; an incomplete last line, after a crash, is ignored."""
    lines: list[dict[str, Any]] = []
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                values = parse_json(line)
            except ValueError:
                break
            if not isinstance(values, dict) or not isinstance(values.get("it"), int):
                break
            lines.append(values)
    return lines
