"""Tests of the audit benchmark on tiny pools."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import audit
from usb_rsmatch.data.sources.digits import open_digits
from usb_rsmatch.detection import audit_detector


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_detector, "STEPS", (50, 50))
    monkeypatch.setattr(audit_detector, "COLD", 50)
    monkeypatch.setattr(audit, "SUPERVISED_STEPS", 30)


def test_a_trial_run_writes_every_pool_and_the_control(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("USB_RSMATCH_CACHE", str(tmp_path / "cache"))
    assert audit.main(["--quick", "--out", str(tmp_path / "audit.json")]) == 0
    result = json.loads((tmp_path / "audit.json").read_text())
    assert [pool["share"] for pool in result["pools"]] == list(audit.SHARES)
    for pool in result["pools"]:
        assert 0 <= pool["low"] <= pool["estimate"] <= pool["high"] <= 1
        assert (pool["auroc"] is None) == (pool["share"] == 0)
    assert result["interval_coverage"]["of"] == result["within_5_points"]["of"] == 5
    control = result["negative_control"]
    assert control["both_reencoded"]["jpeg"] == 75 and control["as_they_are"]["jpeg"] is None
    assert result["command"].endswith(f"benchmarks.audit --quick --out {tmp_path / 'audit.json'}") and result["quick"]
    assert "within 5 points" in capsys.readouterr().out


def test_a_pool_has_the_given_share_and_no_trusted_image(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.ndarray] = []
    real = open_digits(Path()).train.images[:300]
    made = np.full((100, 8, 8, 1), 255, np.uint8)

    def keep(trusted: audit.ImageList, images: audit.ImageList, seed: int) -> None:
        seen.extend([np.concatenate([item.read() for item in side.items]) for side in (trusted, images)])
        raise InterruptedError

    monkeypatch.setattr(audit, "audit_with_real", keep)
    setting = audit.Setting("test", "digits", {}, trusted=100, pool=120, seeds=(0,))
    with pytest.raises(InterruptedError):
        audit.one_pool(setting, real, made, 0.25, 0)
    trusted, pool = seen
    assert len(trusted) == 100 and len(pool) == 120 and (pool == 255).all(axis=(1, 2, 3)).sum() == 30
    copies = {image.tobytes() for image in trusted} & {image.tobytes() for image in pool}
    assert len(copies) <= len(real) - len({image.tobytes() for image in real})


def test_no_available_data_set_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit.main(["--only", "nothing of this name", "--out", str(tmp_path / "a.json")]) == 2
    assert "no data set is available" in capsys.readouterr().err and list(tmp_path.iterdir()) == []
