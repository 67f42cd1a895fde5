"""Requests to stop, sent to this very process: at once, or after the write that is under way."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from usb_rsmatch.synthesis.stop_request import Stop

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_at_once_and_inside_a_write_after_it(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt), Stop() as stop:
        with stop.held():
            os.kill(os.getpid(), number)
            done.append("written")
        done.append("never")
    with pytest.raises(KeyboardInterrupt), Stop():
        os.kill(os.getpid(), number)
        done.append("never")
    with pytest.raises(KeyboardInterrupt), Stop() as stop, stop.held():
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        done.append("never")
    assert done == ["written"] and signal.getsignal(number) is before
