"""Tests of the grids for one GPU: all runs resolve, and the cost in the header comment is correct."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from usb_rsmatch.compare.grid import plan, read_grid
from usb_rsmatch.usb import config

GPU = Path(__file__).resolve().parents[2] / "config" / "gpu"


@pytest.mark.parametrize("name", ["cifar10_edm", "cifar10_cifake"])
def test_every_run_of_a_grid_resolves(name: str) -> None:
    config.import_semilearn()
    grid = read_grid(GPU / f"{name}.yaml", {**config.all_keys()}, lambda base: {})
    runs = plan(grid)
    steps = 0
    for run in runs:
        resolved, notes = config.resolve(run.config)
        assert notes == [] and resolved.synthetic and resolved.real_count == 25000
        steps += resolved.num_train_iter
    text = (GPU / f"{name}.yaml").read_text()
    assert grid.name == name and "NOT YET RUN HERE" in text
    assert f"{len(runs)} runs of {runs[0].config['num_train_iter']:,} steps" in text
    (hours,) = re.findall(r"(\d+) GPU hours", text)
    assert float(hours) == pytest.approx(steps / 20 / 3600, rel=0.01)
