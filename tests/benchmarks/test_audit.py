"""Tests of the audit benchmark on tiny pools of digits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import audit
from usb_rsmatch.synthesis.flow import FlowSettings


def test_a_trial_run_writes_every_pool_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("USB_RSMATCH_CACHE", str(tmp_path / "cache"))
    recommended = FlowSettings.recommended
    monkeypatch.setattr(audit.FlowSettings, "recommended", lambda size, **more: recommended(size, steps=30, **more))
    out = tmp_path / "audit.json"
    assert audit.main(["--quick", "--max-minutes", "0", "--out", str(out)]) == 0 and not out.exists()
    assert audit.main(["--quick", "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert [pool["share"] for pool in result["pools"]] == [0.0, 0.25, 0.5, 1.0] and result["planned"] == 4
    for pool in result["pools"]:
        assert 0 <= pool["low"] <= pool["estimate"] <= pool["high"] <= 1 and sum(b[0] for b in pool["bins"]) == 100
        assert (pool["auroc"] is None) == (pool["share"] in (0, 1))
    assert capsys.readouterr().out.count("seed 100") == 4
    assert audit.main(["--quick", "--out", str(out)]) == 0 and not capsys.readouterr().out


def test_the_summary_counts_stated_shares_alone() -> None:
    common = {"seed": 0, "images": 2000, "seconds": 1.0, "cpu_seconds": 1.0, "apart": 0.6}
    bins = [[10, 1.0, 2], *([[0, 0.0, 0]] * 9)]
    pools = [
        {**common, "share": 0.2, "said": "share", "low": 0.1, "high": 0.3, "bins": bins},
        {**common, "share": 0.5, "said": "share", "low": 0.1, "high": 0.3, "bins": bins},
        {**common, "share": 0.5, "said": "cannot tell", "low": 0.0, "high": 1.0, "bins": bins},
        {"control": "JPEG", "said": "share", "low": 0.0, "apart": 0.47},
        {"control": "resized", "said": "histories differ", "low": 0.0, "apart": 0.99},
    ]
    found = audit.summary(pools)
    assert found["coverage"] == 0.5 and found["cannot_tell"] == 1 and found["controls_refused"] == 1
    assert found["half_width_median"] == pytest.approx(0.1) and found["control_auroc_max"] == pytest.approx(0.53)
    assert found["calibration_error"] == pytest.approx(0.1)


def test_missing_photographs_are_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit.main(["--photos", str(tmp_path), "--out", str(tmp_path / "a.json")]) == 2
    assert "no such file or folder" in capsys.readouterr().err
