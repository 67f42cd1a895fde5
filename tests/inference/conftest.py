"""Fixtures: trained runs, loaded, and images as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def runs(finished: dict[str, Path]) -> dict[str, Any]:
    from usb_rsmatch import load_run

    return {name: load_run(folder, device="cpu") for name, folder in finished.items()}


@pytest.fixture(scope="session")
def digit_files(runs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 60 test digits as PNG files in class folders, named by their number in the test set."""
    root = tmp_path_factory.mktemp("digits")
    test = runs["fixmatch"].test
    for number in range(60):
        folder = root / str(test.labels[number])
        folder.mkdir(exist_ok=True)
        Image.fromarray(test.images[number, ..., 0]).save(folder / f"{number:03d}.png")
    return root


@pytest.fixture
def without_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make reading a pool or a data set fail: prediction must not need the run's images."""
    from usb_rsmatch.inference import loaded_run

    def fail(*_: Any) -> Any:
        raise AssertionError("the pool was read")

    for module, name in ((loaded_run, "open_dataset"), (loaded_run, "read_selections"), (loaded_run, "open_real")):
        monkeypatch.setattr(module, name, fail)
    monkeypatch.setattr("usb_rsmatch.data.pool.pool.build_pool", fail)


def noisy(images: np.ndarray, seed: int = 0) -> np.ndarray:
    """The uint8 images with added noise, which a detector can detect."""
    rng = np.random.default_rng(seed)
    return np.clip(images + rng.normal(scale=12, size=images.shape), 0, 255).astype(np.uint8)
