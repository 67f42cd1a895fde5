"""Test of the synthesis benchmark: a tiny end-to-end run."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import synthesis


def test_the_benchmark_writes_all_values(tmp_path: Path) -> None:
    path = tmp_path / "synthesis.json"
    assert synthesis.main(["--out", str(path), "--threads", "1", "--quick"]) == 0
    result = json.loads(path.read_text())
    assert all(result["flow"][key] > 0 for key in synthesis.GOALS)
    assert result["flow"]["class_accuracy"] <= 1 and result["flow"]["quality"]["real_class_accuracy"] > 0.5
    assert result["quick"] and "--quick" in result["command"] and result["versions"]["torch"]
    text = synthesis.table(result)
    assert text.count("\n") == len(synthesis.GOALS) - 1
    best = {"flow": {"images_per_s": 20.0, "class_accuracy": 0.95, "train_minutes": 16.0, "peak_memory_mib": None}}
    assert [line.split()[-1] for line in synthesis.table(best).splitlines()] == ["met", "met", "missed", "-"]
