"""The update of the weights: USB's own, after a check that stops or skips steps with a loss that is not finite."""

from __future__ import annotations

import math
from typing import Any

import torch
from semilearn.core.hooks import Hook, ParamUpdateHook
from torch import nn

from usb_rsmatch import distributed
from usb_rsmatch.errors import RunFailed
from usb_rsmatch.usb import distributed_training
from usb_rsmatch.usb.state import NOT_STATE, capture, restore

MOST_SKIPPED = 20  # consecutive skipped steps after which the run stops (ours)


class UpdateHook(ParamUpdateHook):
    """USB's update; if the loss is not finite, the run stops or, with `rs_on_nan: skip`, skips that step.

    A skipped step changes no weight, statistic, queue or threshold; only the learning rate advances. On a GPU `stop`
    checks only when a log line or a checkpoint is due, because each check waits for the device; `skip` checks at every
    step.
    """

    def __init__(self, on_nan: str) -> None:
        self._skips = on_nan == "skip"
        self._before: dict[str, Any] | None = None
        self.skipped = self.skipped_in_a_row = 0

    def remember(self, algorithm: Any) -> None:
        """Store the state that a step changes before its update, if steps may be skipped."""
        if self._skips:
            self._before = {
                "buffers": [buffer.detach().clone() for buffer in algorithm.model.buffers()],
                "algorithm": capture(algorithm, NOT_STATE),
                "hooks": {name: capture(hook) for name, hook in algorithm.hooks_dict.items() if hook is not self},
            }

    def after_train_step(self, algorithm: Any) -> None:
        check_is_due = (
            self._skips
            or algorithm.device.type == "cpu"
            or self.is_last_iter(algorithm)
            or any(self.every_n_iters(algorithm, n) for n in (algorithm.num_log_iter, algorithm.num_eval_iter))
        )
        if check_is_due and distributed.any_rank(not math.isfinite(algorithm.out_dict["loss"].detach())):
            if not self._skips:
                raise RunFailed(diagnosis(algorithm))
            self._skip_step(algorithm)
            return
        if distributed.world_size() > 1:
            self._average_and_update(algorithm)
        else:
            super().after_train_step(algorithm)
        self.skipped_in_a_row = 0
        if self.skipped:
            algorithm.log_dict["train/skipped_steps"] = self.skipped

    def _average_and_update(self, algorithm: Any) -> None:
        """USB's update (`core/hooks/param_update.py`) with the mean of all processes' gradients."""
        optimizer, scaler, amp = algorithm.optimizer, algorithm.loss_scaler, algorithm.use_amp
        loss = algorithm.out_dict["loss"]
        (scaler.scale(loss) if amp else loss).backward()
        distributed_training.average_gradients(algorithm.model)
        if algorithm.clip_grad > 0:
            if amp:
                scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(algorithm.model.parameters(), algorithm.clip_grad)
        if amp:
            scaler.step(optimizer)
            scaler.update()
        else:
            optimizer.step()
        if algorithm.scheduler is not None:
            algorithm.scheduler.step()
        algorithm.model.zero_grad()

    def _skip_step(self, algorithm: Any) -> None:
        """Undo the step by restoring the state before it; only the learning rate advances."""
        self.skipped, self.skipped_in_a_row = self.skipped + 1, self.skipped_in_a_row + 1
        if self._before is None or self.skipped_in_a_row >= MOST_SKIPPED:
            raise RunFailed(f"{diagnosis(algorithm)} ({self.skipped_in_a_row} consecutive steps skipped)")
        algorithm.print_fn(f"step {algorithm.it + 1} is skipped: {diagnosis(algorithm)}")
        with torch.no_grad():
            for buffer, before in zip(algorithm.model.buffers(), self._before["buffers"], strict=True):
                buffer.copy_(before)
        restore(algorithm, self._before["algorithm"], algorithm.device)
        for name, state in self._before["hooks"].items():
            restore(algorithm.hooks_dict[name], state, algorithm.device)
        algorithm.model.zero_grad()
        if algorithm.scheduler is not None:
            algorithm.scheduler.step()
        algorithm.log_dict["train/skipped_steps"] = self.skipped


class RememberHook(Hook):
    """Calls `UpdateHook.remember` directly before a step."""

    def before_train_step(self, algorithm: Any) -> None:
        algorithm.hooks_dict["ParamUpdateHook"].remember(algorithm)


def diagnosis(algorithm: Any) -> str:
    """One line about a loss that is not finite: its terms, the first weights that are not finite, and the remedy."""
    terms = {key.removeprefix("train/"): value for key, value in algorithm.log_dict.items() if key.endswith("loss")}
    shown = ", ".join(f"{name} {float(value):.4g}" for name, value in terms.items())
    bad = nonfinite(algorithm.model)
    weights = f"not finite in {bad[0]} and {len(bad) - 1} more" if bad else "finite"
    loss, lr = float(algorithm.out_dict["loss"].detach()), algorithm.optimizer.param_groups[-1]["lr"]
    return (
        f"the loss is {loss} at step {algorithm.it + 1} ({shown}; the weights are {weights}; lr {lr:.3g}); the "
        "previous checkpoint is kept: lower lr, set clip_grad, or skip such steps by rs_on_nan: skip"
    )


def nonfinite(model: nn.Module) -> list[str]:
    """Names of the tensors of a network that hold NaN or infinity."""
    named = {
        name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point() and tensor.numel()
    }
    norms = torch._foreach_norm(list(named.values()), math.inf) if named else []
    finite = torch.stack(list(norms)).isfinite().tolist() if norms else []
    return [name for name, fine in zip(named, finite, strict=True) if not fine]
