"""Tests of the report benchmark: a small end-to-end run, and the goals of the committed result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import reporting

RESULT = Path(__file__).parents[2] / "results" / "reporting.json"


@pytest.mark.slow
def test_the_benchmark_writes_all_values(tmp_path: Path) -> None:
    path = tmp_path / "reporting.json"
    assert reporting.main(["--out", str(path), "--quick"]) == 0
    result = json.loads(path.read_text())
    assert result["runs"] == 24 and result["quick"] and "--quick" in result["command"]
    for key in ("seconds", "cpu_seconds"):
        assert 0 < result[key]["min"] <= result[key]["median"] <= result[key]["max"]


def test_the_committed_result_has_a_thousand_runs_and_meets_the_goals() -> None:
    result = json.loads(RESULT.read_text())
    assert result["runs"] == 1000 and not result["quick"] and result["goals"] == reporting.GOALS
    assert result["cpu_seconds"]["median"] < reporting.GOALS["cpu_seconds"]
    assert result["peak_memory_mib"]["max"] < reporting.GOALS["peak_memory_mib"]
