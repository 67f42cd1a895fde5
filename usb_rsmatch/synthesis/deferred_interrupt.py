"""Raises KeyboardInterrupt after SIGINT (Ctrl-C) or SIGTERM in image generation, but never in the middle of a write.

`usb/stop_between_steps.py` is for training runs instead: its first signal raises nothing, the run checks for it after
each step, and there is a time limit.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Any


class DeferredInterrupt:
    """As a context, both signals raise KeyboardInterrupt at once; inside `deferred` the first one raises it at its end.

    A second signal raises it at once in any case. Outside of the main thread, where Python receives no signals, the
    context has no effect.
    """

    def __init__(self) -> None:
        self.requested, self._deferred = False, False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> DeferredInterrupt:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """A context that the first signal does not interrupt, for writes."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self.requested:
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: Any) -> None:
        again, self.requested = self.requested, True
        if again or not self._deferred:
            raise KeyboardInterrupt
