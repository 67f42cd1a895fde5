"""Stops a training run between two steps, with a checkpoint, after SIGINT (Ctrl-C), SIGTERM or its time limit.

`synthesis/deferred_interrupt.py` is for image generation instead: it has no time limit, and raises KeyboardInterrupt as
soon as no write is in progress.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

from torch.utils.data._utils import signal_handling


class StopBetweenSteps:
    """A call returns whether the run must stop after this step. As a context it handles SIGINT and SIGTERM.

    Before `begin` there is nothing to save: a signal raises KeyboardInterrupt immediately. After it, the first signal
    lets the step end, a second one raises KeyboardInterrupt immediately, and a third one ends the process. If a worker
    process of a loader dies, torch would raise an error from a signal handler at any time; here it is detected between
    steps, when the worker's next batch is due.
    """

    def __init__(self, max_minutes: float | None) -> None:
        self.deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes
        self.signalled = self.begun = False
        self.previous: dict[int, Any] = {}

    def __call__(self) -> bool:
        return self.signalled or (self.deadline is not None and time.monotonic() >= self.deadline)

    def begin(self) -> None:
        """From now on the first signal waits for the end of the step."""
        self.begun = True

    def _handle(self, number: int, frame: Any) -> None:
        if self.begun and not self.signalled:
            self.signalled = True
            return
        for caught in (signal.SIGINT, signal.SIGTERM):  # a further signal ends the process without clean-up
            signal.signal(caught, lambda number, frame: os._exit(130))
        raise KeyboardInterrupt

    def __enter__(self) -> StopBetweenSteps:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers only there
            for number in (signal.SIGINT, signal.SIGTERM):
                self.previous[number] = signal.signal(number, self._handle)
            if hasattr(signal, "SIGCHLD") and hasattr(signal_handling, "_SIGCHLD_handler_set"):
                self.previous[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                signal_handling._SIGCHLD_handler_set = True  # torch believes that its own handler is set
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self.previous.items():
            if handler is not None:  # None: a handler that Python did not set and cannot restore
                signal.signal(number, handler)
