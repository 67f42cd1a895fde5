"""Tests of the figures on photographs: computed from small result files against SciPy, and the shipped grids."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import ttest_rel

from benchmarks import photos
from usb_rsmatch.compare.grid import plan, read_grid
from usb_rsmatch.usb.config import DEAD, all_keys, import_semilearn, read_yaml, resolve
from usb_rsmatch.usb.shipped_configs import find_config

REAL, POOL, MORE = (0.80, 0.84, 0.82), (0.81, 0.85, 0.84), (0.85, 0.84, 0.86)
MINED, ORACLE = (0.83, 0.86, 0.88), (0.88, 0.89, 0.90)
ARMS = {photos.REAL: REAL, photos.POOL: POOL, photos.MORE: MORE, photos.MINED: MINED, photos.ORACLE: ORACLE}


def summary(tmp_path: Path, *folders: Path) -> dict[str, Any]:
    out = tmp_path / "photos.json"
    arguments = ["--out", str(out), "--kept", str(tmp_path / "kept"), "--keep", *map(str, folders)]
    assert photos.main(arguments) == 0
    return json.loads(out.read_text())


def check(figure: Mapping[str, Any], one: tuple[float, ...], other: tuple[float, ...]) -> None:
    expected = ttest_rel(one, other).confidence_interval(0.95)
    assert (figure["low"], figure["high"]) == pytest.approx((100 * expected.low, 100 * expected.high))
    assert figure["n"] == len(one)


def test_figures_are_paired_and_against_the_better_baseline(compared: Callable[..., Path], tmp_path: Path) -> None:
    ceiling = compared("ceiling", {(arm, None): values for arm, values in ARMS.items() if arm != photos.MINED})
    detector = compared("detector", {(photos.MINED, None): MINED})
    clean = compared("clean", {("FixMatch", None): (0.8, 0.9), ("RSMatch", None): (0.79, 0.9)})
    content = summary(tmp_path, ceiling, detector, clean)
    check(content["ceiling_real"], MORE, POOL)
    check(content["oracle_gain"], ORACLE, POOL)
    check(content["gain_over_best_baseline"], MINED, POOL)
    check(content["gap_to_oracle"], ORACLE, MINED)
    check(content["clean_pool_gap"], (0.79, 0.9), (0.8, 0.9))
    assert content["harm_gap_to_real"] is None and content["by_generator"] == {}


def test_figures_by_generator(compared: Callable[..., Path], tmp_path: Path) -> None:
    worse = {arm: tuple(value - 0.1 for value in values) for arm, values in ARMS.items()} | {photos.REAL: REAL}
    runs = {(arm, "one"): values for arm, values in ARMS.items()} | {(arm, "two"): v for arm, v in worse.items()}
    content = summary(tmp_path, compared("generators", runs, "synthetic"))
    check(content["by_generator"]["one"]["gain_over_best_baseline"], MINED, POOL)
    check(content["by_generator"]["two"]["gain_over_best_baseline"], worse[photos.MINED], REAL)
    assert content["oracle_gain"] is None


@pytest.mark.parametrize("name", ["ceiling", "detector", "clean", "generators"])
def test_the_shipped_grids_have_the_arms_that_the_figures_need(name: str) -> None:
    import_semilearn()
    known = {**all_keys(), **dict.fromkeys(DEAD)}
    grid = read_grid(find_config(f"photos/{name}"), known, lambda base: read_yaml(find_config(base)))
    wanted = {
        "ceiling": set(ARMS) - {photos.MINED},
        "detector": {photos.MINED},
        "clean": {"FixMatch", "RSMatch"},
        "generators": {photos.REAL, photos.POOL, photos.MINED, photos.ORACLE},
    }[name]
    assert grid.name == name and wanted <= set(grid.arms)
    runs = plan(grid)
    for arm in grid.arms:
        resolve(next(run.config for run in runs if run.arm == arm))
    assert all(run.config["seed"] >= 100 for run in runs)  # seeds that no choice was made on
