"""When a run shall stop: after a signal, or when its time is over."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

from torch.utils.data._utils import signal_handling


class Stop:
    """Whether the run shall stop after this step. Within it SIGINT and SIGTERM are caught.

    Before `begin` there is nothing to save: a signal leaves at once. After it the first signal lets the step end, a
    second one raises KeyboardInterrupt where the run stands, a third ends the process. That a loader's worker died,
    which torch raises from a signal's handler amid whatever runs, is found when its next batch is due: between steps.
    """

    def __init__(self, max_minutes: float | None) -> None:
        self.deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes
        self.signalled = self.begun = False
        self.previous: dict[int, Any] = {}

    def __call__(self) -> bool:
        return self.signalled or (self.deadline is not None and time.monotonic() >= self.deadline)

    def begin(self) -> None:
        """From here on a signal waits for the end of the step."""
        self.begun = True

    def _handle(self, number: int, frame: Any) -> None:
        if self.begun and not self.signalled:
            self.signalled = True
            return
        for caught in (signal.SIGINT, signal.SIGTERM):  # whoever cannot wait for the clearing up sends one more
            signal.signal(caught, lambda number, frame: os._exit(130))
        raise KeyboardInterrupt

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                self.previous[number] = signal.signal(number, self._handle)
            if hasattr(signal, "SIGCHLD") and hasattr(signal_handling, "_SIGCHLD_handler_set"):
                self.previous[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                signal_handling._SIGCHLD_handler_set = True  # torch takes its own for set
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self.previous.items():
            if handler is not None:  # one that Python did not set, and cannot set again
                signal.signal(number, handler)
