"""Test of the difficulty benchmark: a tiny end-to-end run, and the committed result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scipy.stats import spearmanr

from benchmarks import difficulty

ROOT = Path(__file__).resolve().parents[2]


def test_the_benchmark_writes_all_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "difficulty.json"
    assert difficulty.main(["--out", str(path), "--quick"]) == 0
    result = json.loads(path.read_text())
    assert [level["asked"] for level in result["levels"]["flow"]] == list(difficulty.LEVELS)
    for level in [*result["levels"]["flow"], *result["real_by_score"]]:
        for name in ("difficulty", "error"):
            low, high = level[name]["interval"]
            assert low <= level[name]["mean"] <= high and 0 <= level[name]["mean"] <= 1
    assert -1 <= result["monotone"]["flow"] <= 1 and len(result["monotone_by_seed"]["flow"]) == 2
    assert result["quick"] and result["gain_by_level"] is None and result["versions"]["torch"]
    assert "asked 0.9: measured difficulty" in capsys.readouterr().out
    # even quick scores find the hard real images: the judge has seen none of them
    easy, hard = (result["real_by_score"][n]["difficulty"]["mean"] for n in (0, -1))
    assert hard > 1.5 * easy


def test_the_committed_result_is_complete_and_consistent() -> None:
    result = json.loads((ROOT / "results" / "difficulty.json").read_text())
    levels = result["levels"]["flow"]
    means = [level["difficulty"]["mean"] for level in levels]
    assert not result["quick"] and len(result["setting"]["seeds"]) == 5
    assert result["monotone"]["flow"] == pytest.approx(spearmanr(difficulty.LEVELS, means).statistic, abs=1e-3)


def test_the_table_of_the_docs_is_that_of_the_result() -> None:
    page = (ROOT / "docs" / "synthesis.md").read_text(encoding="utf-8")
    result = json.loads((ROOT / "results" / "difficulty.json").read_text())
    for level in result["levels"]["flow"]:
        difficulty_, error = level["difficulty"]["mean"], level["error"]["mean"]
        row = next(line for line in page.splitlines() if line.startswith(f"| {level['asked']} | "))
        assert row.startswith(f"| {level['asked']} | {difficulty_:.3f} (") and f"| {100 * error:.1f} % (" in row
    assert f"measured difficulty is {result['monotone']['flow']:.2f}." in page
