"""Headless Chromium over its DevTools pipe, with the standard library alone, for the tests of HTML pages."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = """--headless --no-sandbox --disable-gpu --hide-scrollbars --no-first-run --disable-background-networking
--disable-sync --disable-component-update --disable-dev-shm-usage --remote-debugging-pipe about:blank"""
# DevTools reads descriptor 3 and writes descriptor 4.
START = """
import fcntl, os, sys
high = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3]]
os.dup2(high[0], 3)
os.dup2(high[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
TIMEOUT = 120.0  # seconds for a page


@dataclass
class Browser:
    """One page at a time; `problems` are errors in its console, `requests` the addresses that it asked for."""

    commands: BinaryIO
    events: BinaryIO
    problems: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    session: str | None = None
    loaded: bool = False
    number: int = 0

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a DevTools command; events that arrive before it are noted."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session is not None:
            message["sessionId"] = self.session
        self.commands.write(json.dumps(message).encode() + b"\0")
        self.commands.flush()
        while True:
            answer = self._next()
            if answer.get("id") == self.number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def open(self, page: Path, width: int = 1200, height: int = 900, dark: bool = False) -> None:
        """Load a file, at a width in CSS pixels (up to 600: a phone), in the light or the dark colour scheme."""
        self.problems.clear()
        self.requests.clear()
        self.loaded = False
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width <= 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Page.navigate", url=page.as_uri())
        end = time.monotonic() + TIMEOUT
        while not self.loaded:
            assert time.monotonic() < end, f"{page} did not load"
            self._next()

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression in the page."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def screenshot(self, path: Path, whole: bool = True) -> None:
        """Save the page as PNG: all of its height, or what the window shows."""
        image = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(image["data"]))

    def _next(self) -> dict[str, Any]:
        buffer = bytearray()
        while (byte := self.events.read(1)) != b"\0":
            assert byte, "the browser ended"
            buffer += byte
        message: dict[str, Any] = json.loads(buffer)
        event, about = message.get("method"), message.get("params", {})
        if event == "Page.loadEventFired":
            self.loaded = True
        elif event == "Network.requestWillBeSent":
            self.requests.append(about["request"]["url"])
        elif event == "Runtime.exceptionThrown":
            self.problems.append(str(about["exceptionDetails"]))
        elif event == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning", "assert"):
            self.problems.append(str(about["args"]))
        elif event == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
            self.problems.append(about["entry"]["text"])
        return message


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A headless Chromium with its own profile folder; it is ended with the context."""
    to_browser, from_us = os.pipe()
    to_us, from_browser = os.pipe()
    assert CHROMIUM is not None
    ends = (str(to_browser), str(from_browser))
    process = subprocess.Popen(
        [sys.executable, "-c", START, *ends, CHROMIUM, f"--user-data-dir={profile}", *FLAGS.split()],
        pass_fds=(to_browser, from_browser),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_browser)
    os.close(from_browser)
    try:
        with open(from_us, "wb") as commands, open(to_us, "rb") as events:
            found = Browser(commands, events)
            (target,) = [t for t in found.call("Target.getTargets")["targetInfos"] if t["type"] == "page"]
            attached = found.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
            found.session = attached["sessionId"]
            for domain in ("Page", "Runtime", "Network", "Log"):
                found.call(f"{domain}.enable")
            yield found
    finally:
        process.kill()
        process.wait()
