"""Tests of the speed benchmark: a tiny end-to-end run, and the alternating timer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import speed
from benchmarks.timing import median_min_max, ratios, time_alternately


def test_sides_are_timed_alternately_after_a_warm_up() -> None:
    order: list[str] = []

    def side(name: str) -> float:
        order.append(name)
        return float(len(order))

    seconds = time_alternately({"a": lambda: side("a"), "b": lambda: side("b")}, rounds=2)
    assert order == ["a", "b"] * 3
    assert seconds == {"a": [3.0, 5.0], "b": [4.0, 6.0]}
    assert ratios(seconds["b"], seconds["a"]) == [4 / 3, 6 / 5]
    assert median_min_max([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0}


@pytest.mark.slow
def test_the_benchmark_writes_all_values(tmp_path: Path) -> None:
    path = tmp_path / "speed.json"
    assert speed.main(["--out", str(path), "--threads", "1", "--quick"]) == 0
    result = json.loads(path.read_text())
    for key in speed.GOALS:
        assert 0 < result[key]["min"] <= result[key]["median"] <= result[key]["max"], key
    assert set(result["seconds"]["step_wrn_28_2"]) == {"stock", "fixmatch", "rsmatch", "floor"}
    assert result["threads"] == 1 and "--quick" in result["command"] and result["versions"]["torch"]
    text = speed.table(result)
    assert text.count("\n") == len(speed.GOALS) and "goal" in text
