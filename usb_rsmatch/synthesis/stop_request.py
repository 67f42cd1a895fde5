"""Stop requests (Ctrl-C, SIGTERM) of image generation: immediate, but never in the middle of a write."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Any


class Stop:
    """As a context, both signals raise KeyboardInterrupt, except inside `held`, which raises it at its end.

    A second signal raises immediately. It does nothing outside of the main thread, where Python receives no signals.
    Training runs have `usb/stop_signals.py`, which stops between two steps instead.
    """

    def __init__(self) -> None:
        self.wanted, self._held = False, False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """A context whose writes are not interrupted."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self.wanted:
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: Any) -> None:
        again, self.wanted = self.wanted, True
        if again or not self._held:
            raise KeyboardInterrupt
