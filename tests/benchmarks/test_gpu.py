"""The GPU benchmark at toy size on the CPU: sections run alone, results accumulate, failures are recorded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import gpu


def test_sections_run_alone_and_failures_are_recorded(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "gpu.json"
    assert gpu.main(["--prepare", str(data)]) == 0
    common = ["--device", "cpu", "--toy", "--data", str(data), "--out", str(out), "--sections"]
    assert gpu.main([*common, "syncs", "equal"]) == 0
    result = json.loads(out.read_text())
    assert "RuntimeError" in result["sections"]["syncs"]["failed"] and "syncs_fixmatch" not in result
    assert result["rerun_equal"] is True and result["resume_equal"] is True, result
    assert gpu.main([*common, "steps"]) == 0
    result = json.loads(out.read_text())
    assert set(result["sections"]) == {"syncs", "equal", "steps"} and result["rerun_equal"] is True
    for key in ("rsmatch_over_fixmatch", "step_over_floor", "images_per_second"):
        assert result[key] > 0
    assert result["toy"] is True and "--toy" in result["command"] and result["versions"]["torch"]


@pytest.mark.slow
def test_all_other_sections_run(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    names = ["stock_4", "stock_12", "torchrun", "networks", "amp"]
    assert gpu.main(["--device", "cpu", "--toy", "--out", str(out), "--sections", *names]) == 0
    result = json.loads(out.read_text())
    assert not [state for state in result["sections"].values() if "failed" in state], result["sections"]
    assert result["stock_4_workers_ratio"] > 0 and result["stock_12_workers_ratio"] > 0


def test_after_the_time_limit_no_section_begins(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    gpu.measure(gpu.Bench(tmp_path, tmp_path, "cpu", True), ["steps"], out, "command", minutes=-1)
    assert "not run" in json.loads(out.read_text())["sections"]["steps"]["failed"]


def test_the_commands_of_the_documentation_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As docs/gpu.md has them, the second one at toy size on the CPU."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "gpu.md").read_text(encoding="utf-8")
    prepare, measure = (
        line.split()[3:] for line in page.splitlines() if line.startswith("    python -m benchmarks.gpu")
    )
    monkeypatch.chdir(tmp_path)
    assert gpu.main(prepare) == 0
    assert gpu.main([*measure, "--device", "cpu", "--toy", "--sections", "syncs"]) == 0
    assert set(json.loads((tmp_path / "gpu.json").read_text())["sections"]) == {"syncs"}
