"""How far long work is: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

EVERY = 30.0  # seconds between plain lines


class Progress:
    """Counts to `total`; `update(n)` moves it on. Nothing is shown of work that ends within the first seconds."""

    def __init__(self, total: int, title: str, unit: str = "image") -> None:
        self.total, self.title, self.done = total, title, 0
        self._bar: Any = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, desc=title, unit=unit, dynamic_ncols=True, delay=0.5, leave=False)
        self._told = time.monotonic()

    def update(self, n: int) -> None:
        self.done += n
        if self._bar is not None:
            self._bar.update(n)
        elif time.monotonic() - self._told > EVERY:
            self._told = time.monotonic()
            print(f"{self.title}: {self.done} of {self.total}", file=sys.stderr, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: Any) -> None:
        if self._bar is not None:
            self._bar.close()
