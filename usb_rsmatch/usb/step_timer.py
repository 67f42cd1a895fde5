"""Seconds a step of an algorithm's own training loop, for estimates and benchmarks."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from semilearn.core.hooks import Hook

from usb_rsmatch.usb.compat import cuda_calls_stay_on_cpu


class _Pause(Exception):
    """Ends a loop after the steps that were asked for."""


class _StepClock(Hook):
    """Measures whole steps of a training loop, with their data, from the last hook of one step to that of another.

    A loop's first step is not measured: USB draws the order of all samples of an epoch before it.
    """

    def __init__(self, steps: int) -> None:
        self.steps, self.seconds = steps, 0.0

    def before_train_epoch(self, algorithm: Any) -> None:
        self.left = self.steps + 1

    def after_train_step(self, algorithm: Any) -> None:
        self.left -= 1
        if self.left == self.steps:
            self.begin = time.perf_counter()
        elif self.left == 0:
            self.seconds = (time.perf_counter() - self.begin) / self.steps
            algorithm.it += 1
            raise _Pause


def steps_of(algorithm: Any, steps: int) -> Callable[[], float]:
    """The side that goes on with the algorithm's own `train` by a step and `steps` measured ones; seconds a step."""
    clock = _StepClock(steps)
    algorithm.register_hook(clock, "StepClock", "LOWEST")

    def side() -> float:
        try:
            with cuda_calls_stay_on_cpu():
                algorithm.train()
        except _Pause:
            return clock.seconds
        raise RuntimeError("the loop ended before it was paused: num_train_iter is too small")

    return side
