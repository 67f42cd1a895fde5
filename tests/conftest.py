"""What the tests share: the --runslow gate, one thread, and small configurations on embedded digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import usb_rsmatch  # noqa: F401  mends semilearn before any test imports it

pytest_plugins = ("result_fixtures",)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--runslow", action="store_true", help="also run the tests that take long")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--runslow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="slow; runs with --runslow"))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Results are equal bit for bit only for a fixed thread count."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def fake_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An npz of 300 synthetic 8 x 8 digits: blends of two real ones of a class, which no camera has seen."""
    from sklearn.datasets import load_digits

    digits, rng = load_digits(), np.random.default_rng(0)
    images, labels = [], []
    for label in range(10):
        real = digits.images[digits.target == label]
        first, second = (real[rng.integers(len(real), size=30)] for _ in range(2))
        images.append((first + second) / 2)
        labels.append(np.full(30, label))
    path = tmp_path_factory.mktemp("synthetic") / "blends.npz"
    pixels = np.round(np.concatenate(images) * 255 / 16).astype(np.uint8)
    np.savez(path, image=pixels, label=np.concatenate(labels))
    return path


@pytest.fixture(scope="session")
def small_pool(fake_digits: Path) -> dict[str, Any]:
    """The keys of 200 real and 200 synthetic digits, and of a network for them."""
    return {
        "dataset": "digits",
        "num_labels": 20,
        "synthetic": [{"source": f"npz:{fake_digits}", "generator": "blend"}],
        "real_count": 200,
        "synthetic_count": 200,
        "net": "small_wrn_10_1",
        "uratio": 3,
        "eval_batch_size": 256,
        "num_workers": 0,
        "device": "cpu",
    }


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, small_pool: dict[str, Any]) -> dict[str, Path]:
    """The run folders of RSMatch and of FixMatch after 60 steps on 200 real and 200 synthetic digits."""
    from usb_rsmatch.usb.training import train

    root = tmp_path_factory.mktemp("finished")
    config = {
        **small_pool,
        "batch_size": 8,
        "lr": 0.03,
        "ema_m": 0.8,
        "rs_loader": "batched",
        "num_train_iter": 60,
        "num_eval_iter": 30,
        "num_log_iter": 10,
        "save_dir": str(root),
    }
    for algorithm in ("rsmatch", "fixmatch"):
        train({**config, "algorithm": algorithm, "save_name": algorithm}, note=lambda line: None)
    return {name: root / name for name in ("rsmatch", "fixmatch")}


@pytest.fixture
def tiny(tmp_path: Path, small_pool: dict[str, Any]) -> dict[str, Any]:
    """A run of 12 steps on 200 real and 200 synthetic digits, in a few seconds."""
    return {
        **small_pool,
        "algorithm": "fixmatch",
        "batch_size": 4,
        "epoch": 2,
        "num_train_iter": 12,
        "num_eval_iter": 6,
        "num_log_iter": 2,
        "ema_m": 0.9,
        "seed": 0,
        "save_dir": str(tmp_path / "runs"),
        "save_name": "run",
    }
