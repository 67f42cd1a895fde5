"""Plain lines of long work: how far, how fast, how long yet; none of work that ends soon."""

from __future__ import annotations

import pytest

from usb_rsmatch import progress
from usb_rsmatch.progress import Progress


def test_a_line_says_how_far_how_fast_and_how_long_yet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Progress(1000, "making images", done=200) as counted:
        now[0] += 10
        counted.update(100)  # too soon for a line
        now[0] += 30
        counted.update(100)
    assert capsys.readouterr().err == "making images: 400 of 1000, 5 images/s, 0:02:00 left\n"
