"""The command `doctor` reports installed versions and fixes, and missing packages with their purpose."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from usb_rsmatch.cli import main
from usb_rsmatch.usb import doctor
from usb_rsmatch.version import __version__

ROOT = Path(__file__).resolve().parents[2]


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


@pytest.mark.parametrize("broken", ["torch", "semilearn", "timm", "numpy"])
def test_a_broken_package_is_named_without_a_traceback(broken: str, tmp_path: Path) -> None:
    """Each package in turn fails at its import, as after an interrupted or mismatched installation."""
    (tmp_path / f"{broken}.py").write_text("raise ImportError('libcudart.so.99: no such file\\nsecond line')\n")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    for words, code in ((["doctor"], 0), (["train", "--c", "quickstart/fixmatch"], 2)):
        command = [sys.executable, "-m", "usb_rsmatch", *words]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
        said = done.stdout if code == 0 else done.stderr
        assert done.returncode == code and "Traceback" not in done.stderr, done.stderr
        assert "libcudart.so.99" in said and ("broken  " in said or len(done.stderr.splitlines()) == 1)
