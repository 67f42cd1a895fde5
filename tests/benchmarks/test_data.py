"""Tests of the data benchmark: its test data, and a small end-to-end run that removes its temporary files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from benchmarks import data
from usb_rsmatch.data.sources.class_folders import class_folders
from usb_rsmatch.data.sources.npz import read_npz


def test_generated_files_and_images_have_the_given_sizes(tmp_path: Path) -> None:
    data.make_files(tmp_path / "files", 60, 3)
    source, classes = class_folders(tmp_path / "files", "{class}/{file}")
    assert len(source) == 60 and len(classes) == 3 and np.bincount(source.labels).tolist() == [20] * 3
    assert source.load(np.array([59]), 8, 3).shape == (1, 8, 8, 3)
    data.make_npz(tmp_path / "noise.npz", 70, 0)
    images, labels = read_npz(tmp_path / "noise.npz")
    assert images.shape == (70, 32, 32, 3) and labels is not None and (np.diff(labels) >= 0).all()
    assert len(np.unique(images[np.arange(70)])) == 256


@pytest.mark.slow
def test_the_benchmark_writes_all_values(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    cache = os.environ.get("USB_RSMATCH_CACHE")
    assert data.main(["--out", str(path), "--folder", str(tmp_path), "--quick"]) == 0
    result = json.loads(path.read_text())
    assert all(result[name] > 0 for name in data.NAMED)
    assert result["index_files"] == data.QUICK.files and result["npz_images"] == data.QUICK.large and result["quick"]
    assert os.listdir(tmp_path) == ["data.json"] and os.environ.get("USB_RSMATCH_CACHE") == cache
