"""The cache folder's location, and file locks: one holder at a time, released after a crash."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from usb_rsmatch.cache import cache_folder, file_lock


def test_the_argument_has_priority_over_environment_and_platform(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("USB_RSMATCH_CACHE", raising=False)
    assert cache_folder() == tmp_path / "xdg" / "usb_rsmatch"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "usb_rsmatch"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert cache_folder() == tmp_path / "local" / "usb_rsmatch"
    monkeypatch.setenv("USB_RSMATCH_CACHE", str(tmp_path / "environment"))
    assert cache_folder() == tmp_path / "environment"
    assert cache_folder(tmp_path / "argument") == tmp_path / "argument"


def test_a_second_holder_waits_for_the_first(tmp_path: Path) -> None:
    events: list[str] = []

    def second() -> None:
        with file_lock(tmp_path / "lock", poll=0.01):
            events.append("second")

    with file_lock(tmp_path / "lock"):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.1)
        events.append("first")
    thread.join()
    assert events == ["first", "second"]


def test_the_lock_of_a_killed_process_is_released(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys, time\n"
        "from usb_rsmatch.cache import file_lock\n"
        "with file_lock(pathlib.Path(sys.argv[1])):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "lock")], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        holder.kill()
        holder.wait()
        with file_lock(tmp_path / "lock", poll=0.01):
            assert holder.poll() is not None
