"""Measures seconds per step in an algorithm's own training loop, for time estimates and benchmarks."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from semilearn.core.hooks import Hook

from usb_rsmatch.usb.compat import cuda_calls_stay_on_cpu


class _Pause(Exception):
    """Raised to end a training loop after the requested steps."""


class _StepTimer(Hook):
    """Measures `steps` complete steps with their data, from the last hook of one step to the last hook of another.

    A loop's first step is not measured, because USB draws the order of all samples of an epoch before it.
    """

    def __init__(self, steps: int) -> None:
        self.steps, self.seconds = steps, 0.0

    def before_train_epoch(self, algorithm: Any) -> None:
        self.left = self.steps + 1

    def after_train_step(self, algorithm: Any) -> None:
        self.left -= 1
        if self.left in (0, self.steps) and next(algorithm.model.parameters()).is_cuda:
            torch.cuda.synchronize()  # a step only launches its work
        if self.left == self.steps:
            self.begin = time.perf_counter()
        elif self.left == 0:
            self.seconds = (time.perf_counter() - self.begin) / self.steps
            algorithm.it += 1
            raise _Pause


def time_steps(algorithm: Any, steps: int) -> Callable[[], float]:
    """Returns a function that runs `steps` + 1 further steps and returns the seconds per step of the last `steps`.

    It raises RuntimeError if the training loop ends before.
    """
    timer = _StepTimer(steps)
    algorithm.register_hook(timer, "StepClock", "LOWEST")

    def run_steps() -> float:
        try:
            with cuda_calls_stay_on_cpu():
                algorithm.train()
        except _Pause:
            return timer.seconds
        raise RuntimeError("the training loop ended too early: num_train_iter is too small")

    return run_steps
