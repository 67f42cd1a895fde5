"""Progress of long work: a bar on a terminal, otherwise a line every 30 seconds, with rate and remaining time."""

from __future__ import annotations

import sys
import time
from typing import Any

EVERY = 30.0  # seconds between plain lines


class Progress:
    """A counter from `done` to `total`, which `update(n)` advances. Very short work shows nothing."""

    def __init__(self, total: int, title: str, unit: str = "image", done: int = 0) -> None:
        self.total, self.title, self.unit, self.begun, self.done = total, title, unit, done, done
        self.started = self.reported = time.monotonic()
        self.bar: Any = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(
                total=total, initial=done, desc=title, unit=unit, dynamic_ncols=True, delay=0.5, leave=False
            )

    def update(self, n: int) -> None:
        """Count `n` more."""
        self.done += n
        if self.bar is not None:
            self.bar.update(n)
        elif time.monotonic() - self.reported >= EVERY:
            self.reported = time.monotonic()
            print(self.line(), file=sys.stderr, flush=True)

    def line(self) -> str:
        """The state as text: "making images: 256 of 1000, 21.3 images/s, 0:00:35 left"."""
        taken = time.monotonic() - self.started
        rate = (self.done - self.begun) / taken if taken > 0 else 0.0
        parts = [f"{self.title}: {self.done} of {self.total}"]
        if rate > 0:
            left = round((self.total - self.done) / rate)
            parts.append(f"{rate:.3g} {self.unit}s/s")
            if left > 0:
                parts.append(f"{left // 3600}:{left % 3600 // 60:02}:{left % 60:02} left")
        return ", ".join(parts)

    def close(self) -> None:
        """Remove the bar from the terminal."""
        if self.bar is not None:
            self.bar.close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def duration(seconds: float) -> str:
    """`42 s`, `3 min 5 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
