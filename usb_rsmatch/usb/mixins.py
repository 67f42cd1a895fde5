"""Mixins for any USB algorithm: device, data, evaluation and exact resume.

`compose_run_class(core, imbalanced)` returns the class that a run uses. USB composes an imbalanced algorithm with a
core one, and its steps call `super()` down to the core: `CoreMixin`, which replaces methods of `AlgorithmBase`, is
between the two; `RunMixin`, which needs to see the whole algorithm, is on top.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from semilearn.core.hooks import ParamUpdateHook
from torch import Tensor

from usb_rsmatch import distributed
from usb_rsmatch.data.views.hybrid_dataset import HybridDataset
from usb_rsmatch.data.views.loaders import build_loaders
from usb_rsmatch.data.views.settings import LoaderSettings
from usb_rsmatch.device import has_bfloat16
from usb_rsmatch.usb import checkpoint, distributed_training
from usb_rsmatch.usb.compat import cuda_calls_stay_on_cpu
from usb_rsmatch.usb.crmatch_rotation import RotatedBatches, without_usb_rotation_loader
from usb_rsmatch.usb.evaluation import classification_metrics, confusion_matrix
from usb_rsmatch.usb.hooks import CheckpointHook, EvaluationHook, ResumeHook, TimerHook, replace_hook
from usb_rsmatch.usb.state import NOT_STATE, capture, restore
from usb_rsmatch.usb.weight_update import RememberHook, UpdateHook


class CoreMixin:
    """Replaces what `AlgorithmBase` does with a GPU, its loaders over a pool, and its evaluation."""

    args: Any
    model: torch.nn.Module
    ema: Any
    it: int

    @property
    def device(self) -> torch.device:
        """The device of the run: `args.device`, else a GPU (number `args.gpu`) if there is one."""
        name = getattr(self.args, "device", None) or ("cuda" if torch.cuda.is_available() else "cpu")
        number = getattr(self.args, "gpu", None)
        return torch.device(name, number) if name == "cuda" and number is not None else torch.device(name)

    # data -------------------------------------------------------------------------------------------------------

    def set_data_loader(self) -> dict[str, Any] | None:
        """Loaders of a pool, whose samples are pure functions of the step; otherwise USB's loaders."""
        datasets = self.dataset_dict  # type: ignore[attr-defined]
        if datasets is None or not isinstance(datasets["train_ulb"], HybridDataset):
            return super().set_data_loader()  # type: ignore[misc]
        with without_usb_rotation_loader(self):
            loaders: dict[str, Any] = super().set_data_loader()  # type: ignore[misc]
        settings = LoaderSettings.read(self.args)
        loaders.update(build_loaders(datasets, settings, self.steps_of_epoch, self.device))
        for name in ("train_lb", "train_ulb"):
            vars(loaders[name]).setdefault("sampler", None)  # Dash's warm-up reads it
        if getattr(self, "use_rot", False):
            rotated = RotatedBatches(datasets["train_ulb"], settings.batch_size, lambda: self.it, settings.share)
            loaders["train_ulb_rot"] = loaders["train_ulb_rot_iter"] = rotated
        return loaders

    def steps_of_epoch(self) -> range:
        """The remaining steps of the current epoch; Dash's warm-up ends itself, possibly after the last training
        step.
        """
        per_epoch: int = self.num_iter_per_epoch  # type: ignore[attr-defined]
        end = (self.it // per_epoch + 1) * per_epoch
        warming_up = getattr(self, "warmup_stage", False)
        return range(self.it, end if warming_up else min(end, self.num_train_iter))  # type: ignore[attr-defined]

    def process_batch(self, input_args: list[str] | None = None, **batch: Any) -> dict[str, Any]:
        """Keep what the step takes by name and send it to the device."""
        wanted = input_args or list(inspect.signature(self.train_step).parameters)  # type: ignore[attr-defined]
        return {key: self._send(value) for key, value in batch.items() if key in wanted and value is not None}

    def _send(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._send(item) for key, item in value.items()}
        return value.to(self.device, non_blocking=True)

    def get_logits(self, data: dict[str, Any], out_key: str) -> Tensor:
        return self.model(self._send(data["x_lb"]))[out_key]

    def get_targets(self, data: dict[str, Any]) -> Tensor:
        return self._send(data["y_lb"])

    # evaluation -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """A context with the EMA weights in evaluation mode; before training there are none, and the plain weights are
        used.
        """
        self.model.eval()
        if self.ema is not None:
            self.ema.apply_shadow()
        try:
            yield
        finally:
            if self.ema is not None:
                self.ema.restore()
            self.model.train()

    def evaluate(self, eval_dest: str = "eval", out_key: str = "logits", return_logits: bool = False) -> dict[str, Any]:
        """USB's metrics of the EMA weights on one loader, under USB's names."""
        bf16 = getattr(self.args, "rs_eval_bf16", False) and has_bfloat16(self.device)
        with self.averaged_weights(), torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            batches = [
                (self.get_logits(data, out_key).float(), self.get_targets(data))
                for data in self.loader_dict[eval_dest]  # type: ignore[attr-defined]
            ]
        logits, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
        matrix = confusion_matrix(targets, logits.argmax(1), logits.shape[1]).cpu().numpy()
        self.print_fn("confusion matrix:\n" + np.array_str(matrix))  # type: ignore[attr-defined]
        if eval_dest == "eval":
            self._confusion = matrix  # of this process, for `analysis.py`
        metrics: dict[str, Any] = {f"{eval_dest}/{k}": v for k, v in classification_metrics(logits, targets).items()}
        if return_logits:
            metrics[f"{eval_dest}/logits"] = logits.cpu().numpy()
        return metrics


class RunMixin:
    """Hooks that need no GPU, checkpoints with the complete state, and stop requests."""

    args: Any
    hooks_dict: dict[str, Any]
    it: int
    epoch: int

    def __init__(self, args: Any, net_builder: Any, **kwargs: Any) -> None:
        self.checkpoint_state: dict[str, Any] | None = None
        self.stop_requested: Callable[[], bool] = lambda: False
        self._whole_after: int | None = None
        with cuda_calls_stay_on_cpu():  # by keyword, as some imbalanced algorithms take only `args` by position
            super().__init__(args, net_builder=net_builder, **kwargs)  # type: ignore[call-arg]

    def set_hooks(self) -> None:
        """USB's hooks, except for those that need a GPU or save too early, which are replaced."""
        super().set_hooks()  # type: ignore[misc]
        replace_hook(self, ResumeHook(), "ResumeHook", "LOWEST")
        if type(self.hooks_dict["ParamUpdateHook"]) is ParamUpdateHook:  # CoSSL's does more than update
            replace_hook(self, UpdateHook(getattr(self.args, "rs_on_nan", "stop")), "ParamUpdateHook", "HIGHEST")
            replace_hook(self, RememberHook(), "RememberHook", "LOWEST")  # after the state is restored
        replace_hook(self, TimerHook(), "TimerHook", "LOW")
        replace_hook(self, EvaluationHook(), "EvaluationHook", "HIGH")
        replace_hook(self, CheckpointHook(), "CheckpointHook", "LOWEST")

    def train(self) -> None:
        """USB's own loop."""
        with cuda_calls_stay_on_cpu():
            super().train()  # type: ignore[misc]

    def warmup(self) -> None:
        """Dash's steps on labelled images before training; nothing for other algorithms."""
        warmup: Callable[[], None] | None = getattr(super(), "warmup", None)
        if warmup is not None:
            with cuda_calls_stay_on_cpu():
                warmup()

    # checkpoints ------------------------------------------------------------------------------------------------

    def completed_steps(self) -> int:
        """The number of completed steps, as seen from a hook after the step (USB counts a step only after its
        hooks).
        """
        return min(self.it + 1, self.num_train_iter)  # type: ignore[attr-defined]

    def mark_consistent(self, step: int | None) -> None:
        """Record that the state is that after `step` complete steps; None during a step, when it is inconsistent."""
        self._whole_after = step

    def save_between_steps(self) -> bool:
        """Save after an error between two steps; returns whether that was possible.

        It is not possible at an epoch's end, where some hooks may have been called and others not.
        """
        if self._whole_after != self.it or self.it % self.num_iter_per_epoch == 0:  # type: ignore[attr-defined]
            return False
        self.completed_steps = lambda: self.it  # type: ignore[method-assign]
        self.save_model("latest_model.pth", str(Path(self.args.save_dir) / self.args.save_name))
        return True

    def get_save_dict(self) -> dict[str, Any]:
        """USB's checkpoint, plus the state of every hook, attribute and random generator."""
        content = super().get_save_dict()  # type: ignore[misc]
        content["it"] = self.completed_steps()
        content["best_eval_acc"], content["best_it"] = float(content["best_eval_acc"]), int(content["best_it"])
        content[checkpoint.KEY] = {
            "it": content["it"],
            "algorithm": capture(self, NOT_STATE),
            "hooks": {name: capture(hook) for name, hook in self.hooks_dict.items()},
            "random": checkpoint.random_state(),
        }
        if distributed.world_size() > 1:
            content[checkpoint.KEY]["random_of_processes"] = distributed.all_gather_objects(checkpoint.random_state())
        return content

    def save_model(self, save_name: str, save_path: str) -> None:
        """Write a checkpoint atomically; all processes must call this, and the first one writes."""
        path, content = Path(save_path) / save_name, self.get_save_dict()
        if distributed.rank() == 0:
            checkpoint.write(content, path)
        self.print_fn(f"model saved: {path}")  # type: ignore[attr-defined]

    def load_model(self, load_path: str) -> dict[str, Any]:
        """Continue from a checkpoint file: exactly from one of ours, approximately from one of USB's."""
        content = checkpoint.read(Path(load_path))
        self.load_checkpoint(content)
        return content

    def load_checkpoint(self, content: dict[str, Any]) -> None:
        """Set weights, optimiser and position; hooks and generators are restored once the epoch's iterators exist."""
        checkpoint.load_weights(self.model, content["model"])  # type: ignore[attr-defined]
        checkpoint.load_weights(self.ema_model, content["ema_model"])  # type: ignore[attr-defined]
        self.optimizer.load_state_dict(content["optimizer"])  # type: ignore[attr-defined]
        if content.get("loss_scaler"):  # that of a run without CUDA is empty, which a scaler on CUDA refuses
            self.loss_scaler.load_state_dict(content["loss_scaler"])  # type: ignore[attr-defined]
        if self.scheduler is not None and "scheduler" in content:  # type: ignore[attr-defined]
            self.scheduler.load_state_dict(content["scheduler"])  # type: ignore[attr-defined]
        self.best_eval_acc, self.best_it = content["best_eval_acc"], content["best_it"]
        self.it = content["it"]
        self.start_epoch = self.epoch = self.it // self.num_iter_per_epoch  # type: ignore[attr-defined]
        self.resume = True  # EMAHook takes the shadow weights from ema_model
        self.checkpoint_state = content.get(checkpoint.KEY)
        if (missing := checkpoint.missing_state_note(content)) is not None:
            self.print_fn(missing)  # type: ignore[attr-defined]

    def restore_state(self) -> None:
        """Restore hooks, attributes and generators, once; see `ResumeHook`."""
        state, self.checkpoint_state = self.checkpoint_state, None
        if state is None:
            return
        device = self.device  # type: ignore[attr-defined]
        restore(self, state["algorithm"], device)
        for name, hook_state in state["hooks"].items():
            if name in self.hooks_dict:
                restore(self.hooks_dict[name], hook_state, device)
        states = state.get("random_of_processes", [state["random"]])
        if len(states) == distributed.world_size():
            checkpoint.set_random_state(states[distributed.rank()])
        else:  # saved by another number of processes
            checkpoint.set_random_state(state["random"])
            distributed_training.seed_generators(self.args.seed, self.it)


def compose_run_class(core: type, imbalanced: type | None = None, fast: bool = False) -> type:
    """The class of a run: `RunMixin`, (the imbalanced algorithm,) `CoreMixin`, core algorithm, in this order.

    With `fast`, `FastMixin` comes first.
    """
    if issubclass(core, CoreMixin):
        inner = core
    else:
        inner = type(core.__name__, (CoreMixin, core), {"__module__": core.__module__})
    bases: tuple[type, ...] = (RunMixin, inner) if imbalanced is None else (RunMixin, imbalanced, inner)
    if fast:
        from usb_rsmatch.usb.fast import FastMixin

        bases = (FastMixin, *bases)
    return type(core.__name__, bases, {"__module__": core.__module__})
