"""How far the work is: a bar on a terminal, plain lines elsewhere, both with rate and time left."""

from __future__ import annotations

import sys
import time
from typing import TextIO

EVERY = 30.0  # seconds between plain lines


class Bar:
    """A count that rises to `total`; what was `done` before is left out of the rate."""

    def __init__(self, title: str, total: int, done: int = 0, unit: str = "image", out: TextIO | None = None) -> None:
        self.title, self.total, self.begun, self.done, self.unit = title, total, done, done, unit
        self.out = out or sys.stderr
        self.started = self.told = time.monotonic()
        self.bar = None
        if self.out.isatty():
            from tqdm import tqdm

            self.bar = tqdm(
                total=total, initial=done, desc=title, unit=unit, file=self.out, dynamic_ncols=True, leave=False
            )

    def advance(self, by: int) -> None:
        """Count `by` more."""
        self.done += by
        if self.bar is not None:
            self.bar.update(by)
        elif time.monotonic() - self.told >= EVERY or self.done == self.total:
            self.told = time.monotonic()
            print(self.line(), file=self.out, flush=True)

    def line(self) -> str:
        """The state in words: "making images: 256 of 1000, 21.3 images/s, 0:35 left"."""
        taken = time.monotonic() - self.started
        rate = (self.done - self.begun) / taken if taken > 0 else 0.0
        parts = [f"{self.title}: {self.done} of {self.total}"]
        if rate > 0:
            left = round((self.total - self.done) / rate)
            parts.append(f"{rate:.3g} {self.unit}s/s")
            if left:
                parts.append(f"{left // 3600}:{left % 3600 // 60:02}:{left % 60:02} left")
        return ", ".join(parts)

    def close(self) -> None:
        """Leave the terminal clean."""
        if self.bar is not None:
            self.bar.close()
