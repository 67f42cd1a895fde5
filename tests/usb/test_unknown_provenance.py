"""Runs on images of unknown provenance, through the command line: training, table, estimated share, report."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from usb_rsmatch.cli import main
from usb_rsmatch.detection.audit_verdict import REASONS
from usb_rsmatch.detection.share_text import share_text
from usb_rsmatch.usb.training import train


@pytest.fixture(scope="session")
def collected(tmp_path_factory: pytest.TempPathFactory, fake_digits: Path) -> Path:
    """150 synthetic digits in class folders, as files."""
    root = tmp_path_factory.mktemp("collected")
    with np.load(fake_digits) as file:
        images, labels = file["image"], file["label"]
    for number in range(0, 300, 2):
        path = root / str(labels[number]) / f"{number:03d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(images[number]).save(path)
    return root


@pytest.fixture
def mine(tiny: dict[str, Any], collected: Path) -> dict[str, Any]:
    """The mission's own case: 20 labelled digits, and a collection of which nothing is known."""
    known = {key: value for key, value in tiny.items() if key not in ("synthetic", "synthetic_count", "real_count")}
    unknown = {"unlabeled": [{"source": f"folder:{collected}", "name": "web"}], "real_count": 20}
    return {**known, **unknown, "algorithm": "rsmatch", "rs_warmup": 0.2, "rs_loader": "batched"}


def command(tmp_path: Path, config: dict[str, Any], *more: str) -> int:
    path = tmp_path / f"{config['save_name']}.yaml"
    path.write_text(yaml.safe_dump(config))
    return main(["train", "--c", str(path), *more])


def table(folder: Path) -> list[dict[str, str]]:
    with open(folder / "unlabeled.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def weights(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(folder / "latest_model.pth", weights_only=True)["ema_model"]
    return state


def test_a_run_from_the_command_line_to_the_report(
    mine: dict[str, Any], collected: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(tmp_path, mine) == 0
    out = capsys.readouterr().out
    folder = tmp_path / "runs" / "run"
    result = json.loads((folder / "result.json").read_text())
    assert result["pool"] == {"real": 20, "synthetic": 0, "unknown": 150, "by_generator": {}}
    assert json.loads((folder / "manifest.json").read_text())["pool"] == result["pool"]
    detection, share = result["detection"], result["detection"]["unknown"]
    assert [detection[name] for name in ("auroc", "ap", "fpr95")] == [None] * 3 and detection["by_generator"] == {}
    assert detection["share"]["true"] is None
    assert set(detection["pseudo_labels"]["unknown"]) == {"utilisation"}
    assert detection["pseudo_labels"]["synthetic"] == {"utilisation": None, "accuracy": None}
    assert (share["images"], share["real_images"], share["real_part"]) == (150, 359, "test")
    assert share_text(share) in out and "AUROC" not in out

    rows = table(folder)
    assert sorted(row["file"] for row in rows) == sorted(str(path) for path in collected.rglob("*.png"))
    assert main(["predict", str(collected), "--run", str(folder), "--out", str(tmp_path / "p.csv")]) == 0
    with open(tmp_path / "p.csv", newline="", encoding="utf-8") as file:
        predicted = {row["file"]: row for row in csv.DictReader(file)}
    for row in rows:
        other = predicted[row["file"]]
        assert row["class"] == other["class"]
        for name in ("confidence", "synthetic"):
            assert float(row[name]) == pytest.approx(float(other[name]), abs=2e-5)
    assert main(["audit", str(collected), "--run", str(folder), "--out", str(tmp_path / "a.csv")]) == 0
    audit = json.loads((tmp_path / "a.json").read_text())  # one detector, one answer
    assert (audit["share"] is None) == (share["estimate"] is None)
    if share["estimate"] is not None:
        assert [audit[end] for end in ("share", "low", "high")] == pytest.approx(
            [share[end] for end in ("estimate", "low", "high")], abs=1e-3
        )

    assert main(["report", str(tmp_path / "runs"), "--out", str(tmp_path / "report")]) == 0
    page, text = ((tmp_path / "report" / name).read_text() for name in ("index.html", "report.md"))
    for content in (page, text):
        assert "20 real + 150 of unknown provenance" in content
        assert "estimated synthetic share" in content
        assert "does not cover that the detector was trained on" in content and "FPR95: share" not in content
    assert "Highest scores, most synthetic first" in page and "Lowest scores, most real first" in page
    assert 'alt="unknown' in page and "truly synthetic" not in page


def test_known_and_unknown_images_together(mine: dict[str, Any], tiny: dict[str, Any], tmp_path: Path) -> None:
    """AUROC is over known images alone: it equals that of their scores, and not that of unknown ones as real."""
    from sklearn.metrics import roc_auc_score

    from usb_rsmatch.report.analysis_file import read_analysis

    both = {**mine, **{key: tiny[key] for key in ("synthetic", "synthetic_count")}, "real_count": 120}
    assert command(tmp_path, {**both, "synthetic_count": 100}) == 0
    folder = tmp_path / "runs" / "run"
    result = json.loads((folder / "result.json").read_text())
    assert result["pool"] == {"real": 120, "synthetic": 100, "unknown": 150, "by_generator": {"blend": 100}}
    analysis = read_analysis(folder)
    assert analysis is not None and analysis.scores is not None and analysis.scores_generator is not None
    known = ~analysis.unknown(analysis.scores_generator)
    assert known.sum() == 200 and (~known).sum() == 150
    expected = roc_auc_score(analysis.synthetic(analysis.scores_generator)[known], analysis.scores[known])
    assert result["detection"]["auroc"] == pytest.approx(expected, abs=1e-6)
    assert result["detection"]["share"]["true"] is None and len(table(folder)) == 150
    assert main(["report", str(tmp_path / "runs"), "--out", str(tmp_path / "report")]) == 0
    assert "blend" in (tmp_path / "report" / "index.html").read_text()


def test_training_is_equal_for_images_told_and_not_told_to_be_synthetic(
    mine: dict[str, Any], collected: Path, tmp_path: Path
) -> None:
    assert command(tmp_path, {**mine, "save_name": "unknown"}) == 0
    told = {**mine, "save_name": "told", "unlabeled": [], "synthetic": [{"source": f"flat:{collected}"}]}
    assert command(tmp_path, told) == 0
    one, other = (weights(tmp_path / "runs" / name) for name in ("unknown", "told"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    results = [json.loads((tmp_path / "runs" / name / "result.json").read_text()) for name in ("unknown", "told")]
    assert results[0]["accuracy"] == results[1]["accuracy"]
    assert not (tmp_path / "runs" / "told" / "unlabeled.csv").exists() and "unknown" not in results[1]["detection"]


def test_a_resumed_run_equals_an_uninterrupted_one(mine: dict[str, Any], tmp_path: Path) -> None:
    assert command(tmp_path, {**mine, "save_name": "whole"}) == 0
    parts = {**mine, "save_name": "parts"}
    assert command(tmp_path, parts, "--max-minutes", "0") == 130
    assert not (tmp_path / "runs" / "parts" / "unlabeled.csv").exists()
    assert command(tmp_path, parts) == 0
    one, other = (weights(tmp_path / "runs" / name) for name in ("whole", "parts"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert table(tmp_path / "runs" / "whole") == table(tmp_path / "runs" / "parts")
    results = [json.loads((tmp_path / "runs" / name / "result.json").read_text()) for name in ("whole", "parts")]
    assert results[0]["detection"] == results[1]["detection"]


@pytest.mark.parametrize("detector", ["oracle", "supervised"])
def test_detectors_that_need_every_provenance_refuse(
    detector: str, mine: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(tmp_path, mine, "--rs_detector", detector) == 2
    err = capsys.readouterr().err.splitlines()
    assert "needs the provenance of every image, 150 of the pool are of unknown provenance" in err[-1]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("changes", [{"algorithm": "fixmatch"}, {"rs_detector": "none"}, {"algorithm": "openmatch"}])
def test_without_a_detector_there_is_no_share(changes: dict[str, Any], mine: dict[str, Any]) -> None:
    result = train({**mine, **changes}, note=lambda line: None)
    assert "unknown" not in (result["detection"] or {}) and result["pool"]["unknown"] == 150
    assert {row["synthetic"] for row in table(Path(mine["save_dir"]) / "run")} == {""}


def test_with_too_few_images_no_share_is_stated(mine: dict[str, Any], collected: Path) -> None:
    few = [{"source": f"folder:{collected}", "count": 30}]
    result = train({**mine, "unlabeled": few, "real_count": 200}, note=lambda line: None)
    share = result["detection"]["unknown"]
    assert share["estimate"] is share["low"] is share["high"] is None and "fewer than 40" in share["reason"]
    assert len(table(Path(mine["save_dir"]) / "run")) == 30


def test_a_pu_detector_and_validation_images_give_a_share(mine: dict[str, Any]) -> None:
    result = train({**mine, "rs_detector": "pu", "validation_count": 60}, note=lambda line: None)
    share = result["detection"]["unknown"]
    assert share["real_part"] == "validation" and share["real_images"] == 60
    assert (share["estimate"] is None) == (share.get("reason") in REASONS.values())


def test_a_pool_without_images_is_refused(
    mine: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(tmp_path, {**mine, "unlabeled": [], "real_count": 0}) == 2
    assert capsys.readouterr().err == (
        "usb-rsmatch: the pool has no unlabelled image: set include_lb_to_ulb: true, raise real_count, or add "
        "a source under `synthetic:` or `unlabeled:`\n"
    )


def test_the_collection_alone_is_a_pool(mine: dict[str, Any]) -> None:
    result = train({**mine, "real_count": 0}, note=lambda line: None)
    assert result["pool"] == {"real": 0, "synthetic": 0, "unknown": 150, "by_generator": {}}


def test_the_pool_command_and_a_grid_know_them(
    mine: dict[str, Any], collected: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({**mine, "algorithm": "fixmatch"}))
    assert (
        main(["pool", "--c", str(tmp_path / "base.yaml"), "--check-shortcuts", "--out", str(tmp_path / "m.json")]) == 0
    )
    out = capsys.readouterr().out
    assert "web" in out and "known to be real against unknown" in out and (tmp_path / "m.png").stat().st_size > 0
    arms = {"Labelled only": {"unlabeled": []}, "All": {}}
    grid = {"name": "two", "base": str(tmp_path / "base.yaml"), "arms": arms, "axes": {"seed": [0]}, "baseline": "All"}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid))
    keys = ["--save_dir", str(tmp_path / "grid")]
    assert main(["compare", "--c", str(tmp_path / "grid.yaml"), "--jobs", "1", *keys]) == 0
    said = capsys.readouterr().out
    assert "20 real + 150 of unknown provenance" in said and "20 real" in said
