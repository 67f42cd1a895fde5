"""Signals to this process raise KeyboardInterrupt, at once or after the current write."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from usb_rsmatch.synthesis.deferred_interrupt import DeferredInterrupt

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_interrupts_at_once_or_at_the_end_of_a_deferred_write(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt), DeferredInterrupt() as stop:
        with stop.deferred():
            os.kill(os.getpid(), number)
            done.append("written")
        done.append("never")
    with pytest.raises(KeyboardInterrupt), DeferredInterrupt():
        os.kill(os.getpid(), number)
        done.append("never")
    with pytest.raises(KeyboardInterrupt), DeferredInterrupt() as stop, stop.deferred():
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        done.append("never")
    assert done == ["written"] and signal.getsignal(number) is before
