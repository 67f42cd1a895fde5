"""Synthetic sources on disk for the tests of the pool."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What is kept between runs is kept for one test."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("USB_RSMATCH_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Two generators: 60 images in class folders, 90 in an npz that is sorted by class."""
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("synthetic")
    for c in range(10):
        (root / "sd14" / str(c)).mkdir(parents=True)
        for i in range(6):
            Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(root / "sd14" / str(c) / f"{i}.png")
    images = rng.integers(0, 256, (90, 8, 8, 3), dtype=np.uint8)
    np.savez(root / "edm.npz", image=images, label=np.repeat(np.arange(10), 9))
    return [{"source": f"folder:{root / 'sd14'}"}, {"source": f"npz:{root / 'edm.npz'}", "generator": "edm"}]
