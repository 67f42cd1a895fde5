"""The command `doctor` reports installed versions and fixes, and missing packages with their purpose."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch

from usb_rsmatch.cli import main
from usb_rsmatch.usb import doctor
from usb_rsmatch.version import __version__


def test_versions_fixes_and_machine_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["usb_rsmatch"].startswith(__version__) and torch.__version__.startswith(lines["torch"])
    assert lines["semilearn"].endswith("has it") and lines["threads"] == "1"
    assert "rsmatch" in lines["algorithms"] and "fixmatch" in lines["algorithms"]
    assert {"python", "fixes", "device", "bfloat16", "cache", "timm", "extras"} <= lines.keys()


def test_missing_packages_are_reported_with_their_purpose(monkeypatch: pytest.MonkeyPatch) -> None:
    original = importlib.util.find_spec

    def find(name: str, package: str | None = None) -> Any:
        return None if name in doctor.EXTRAS else original(name, package)

    monkeypatch.setattr(doctor.importlib.util, "find_spec", find)
    report = doctor.report()
    assert "extras        none" in report
    for module, (purpose, package) in doctor.EXTRAS.items():
        assert f"{module}, for {purpose}: pip install '{package}'" in report


def test_more_threads_than_cores_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 512)
    assert "set OMP_NUM_THREADS=" in doctor.report()
