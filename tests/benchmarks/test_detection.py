"""The benchmark of detection on a few of the package's photographs, and its reference against a known case."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import detection
from benchmarks.taught_detector import taught_auroc
from usb_rsmatch.data.sources.archives import read_archive
from usb_rsmatch.data.sources.photos import ARCHIVE, open_photos


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """40 photographs of each class and part, in the benchmark's folders."""
    counts: dict[Path, int] = {}
    for place, content in read_archive(str(ARCHIVE)):
        part, label, name = place.split("/")
        folder = tmp_path / (f"matched/{part}" if part in ("train", "test") else part) / label
        counts[folder] = counts.get(folder, 0) + 1
        if counts[folder] <= 40:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
    return tmp_path


def test_a_finished_run_is_not_repeated(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = photos / "detection.json"
    short = ["--out", str(out), "--photos", str(photos), "--steps", "6", "--pool", "120", "--seeds", "3"]
    assert detection.main([*short, "--only", "latent_flow, 50% synthetic, 40 "]) == 0
    assert detection.main([*short, "--only", "latent_flow, 0%"]) == 0
    result = json.loads(out.read_text())
    (taught, clean) = result["runs"]
    reference = max(taught["supervised"], taught["small_cnn"])
    if reference > 0.5:
        assert result["mining_efficiency_min"] == pytest.approx((taught["mined"] - 0.5) / (reference - 0.5))
    assert 0 <= result["clean_identified"] == clean["real_identified"] <= 1
    before = out.read_bytes()
    capsys.readouterr()
    assert detection.main([*short, "--only", "latent_flow, 0%"]) == 0
    assert out.read_bytes() == before and len(capsys.readouterr().out.splitlines()) == 1
    assert detection.main([*short[:-4], "--pool", "100", "--seeds", "3"]) == 2
    assert "its runs have pool 120, not 100: choose another file" in capsys.readouterr().err


def test_the_reference_learns_a_visible_difference_and_nothing_from_random_flags() -> None:
    images = open_photos(Path()).train.load(np.arange(400), 32, 3)[:, :16, :16]
    flags = np.random.default_rng(1).random(400) < 0.5
    noise = np.random.default_rng(0).integers(0, 24, images.shape, dtype=np.uint8) * flags[:, None, None, None]
    noisy = np.minimum(images.astype(int) + noise, 255).astype(np.uint8)
    assert (found := taught_auroc(noisy, flags, 0, steps=60)) is not None and found > 0.95
    assert (found := taught_auroc(images, flags, 0, steps=60)) is not None and 0.35 < found < 0.65
