"""Progress lines without a terminal: progress, rate and remaining time; none before 30 seconds."""

from __future__ import annotations

import pytest

from usb_rsmatch import progress
from usb_rsmatch.progress import Progress


def test_a_line_contains_progress_rate_and_remaining_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Progress(1000, "making images", done=200) as progress_bar:
        now[0] += 10
        progress_bar.update(100)  # too soon for a line
        now[0] += 30
        progress_bar.update(100)
    assert capsys.readouterr().err == "making images: 400 of 1000, 5 images/s, 0:02:00 left\n"
