"""`usb-rsmatch` commands in forked child processes that tests can kill or limit.

A fork starts fast, because the parent has already imported all modules.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

HUNG = -1000  # exit code of a child that was killed because it did not end


class ForkedCommand:
    """`usb-rsmatch ARGV` in a child process of its own session, its output in a file.

    `prepare` runs first in the child, for example to set limits. The context manager kills the child at its exit.
    """

    def __init__(self, argv: Sequence[str], log: Path, prepare: Callable[[], object] | None = None) -> None:
        self.log = log
        self.code: int | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._run(argv, log, prepare)

    @staticmethod
    def _run(argv: Sequence[str], log: Path, prepare: Callable[[], object] | None) -> None:
        """Run the command in the child process; never returns."""
        code = 70
        try:
            os.setsid()
            if sys.platform == "linux":
                ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: killed when its parent ends
            for number in (signal.SIGINT, signal.SIGTERM):  # reset the parent's signal handlers
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115  pytest's replacements are no files
            sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
            if prepare is not None:
                prepare()
            from usb_rsmatch.cli import main

            code = main(list(argv))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while the child is running."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def wait(self, seconds: float = 120.0) -> int:
        """Wait for the end and return the exit code; after `seconds` the child is killed and the code is `HUNG`."""
        deadline = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > deadline:
                self.send(signal.SIGKILL)
                os.waitpid(self.pid, 0)
                self.code = HUNG
                break
            time.sleep(0.005)
        assert self.code is not None
        return self.code

    def wait_for(self, condition: Callable[[], bool], seconds: float = 120.0) -> bool:
        """Wait until `condition` is true; return False if the child ends or `seconds` pass before."""
        deadline = time.monotonic() + seconds
        while not condition():
            if self.poll() is not None or time.monotonic() > deadline:
                return False
            time.sleep(0.002)
        return True

    def send(self, number: int) -> None:
        """Send a signal, if the child is still running."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def output(self) -> str:
        """Return what the child has printed so far."""
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    def __enter__(self) -> ForkedCommand:
        return self

    def __exit__(self, *_: object) -> None:
        self.send(signal.SIGKILL)
        self.wait()
