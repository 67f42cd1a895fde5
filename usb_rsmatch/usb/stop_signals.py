"""Stop requests of a training run: by a signal, or by its time limit; the run stops between two steps."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

from torch.utils.data._utils import signal_handling


class Stop:
    """Whether the run must stop after this step. As a context it handles SIGINT and SIGTERM.

    Before `begin` there is nothing to save: a signal ends the run at once. After it the first signal lets the step end,
    a second one raises KeyboardInterrupt immediately, a third ends the process. The death of a loader's worker, which
    torch would raise from a signal handler at any time, is detected between steps, when its next batch is due.
    """

    def __init__(self, max_minutes: float | None) -> None:
        self.deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes
        self.signalled = self.begun = False
        self.previous: dict[int, Any] = {}

    def __call__(self) -> bool:
        return self.signalled or (self.deadline is not None and time.monotonic() >= self.deadline)

    def begin(self) -> None:
        """From now on a signal waits for the end of the step."""
        self.begun = True

    def _handle(self, number: int, frame: Any) -> None:
        if self.begun and not self.signalled:
            self.signalled = True
            return
        for caught in (signal.SIGINT, signal.SIGTERM):  # a further signal ends the process without clean-up
            signal.signal(caught, lambda number, frame: os._exit(130))
        raise KeyboardInterrupt

    def __enter__(self) -> Stop:
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
