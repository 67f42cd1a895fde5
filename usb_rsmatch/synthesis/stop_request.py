"""A request to stop (Ctrl-C, SIGTERM): at once while images are made, after the write while one is under way."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Any


class Stop:
    """While it is entered, both signals raise KeyboardInterrupt, but not inside `held`, whose end then raises it.

    A second signal raises at once. Outside of the main thread, where Python takes no signals, it does nothing.
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
        """What is written inside is whole or not begun."""
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
