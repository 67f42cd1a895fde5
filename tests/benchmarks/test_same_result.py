"""Tests of the comparison of fast and exact path: its figures, and results that are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import ttest_1samp

from benchmarks import readme_tables, same_result
from usb_rsmatch.compare.grid import plan, read_grid
from usb_rsmatch.usb.config import all_keys, import_semilearn, read_yaml, resolve
from usb_rsmatch.usb.shipped_configs import find_config

ACCURACIES = {"fixmatch, exact": (0.60, 0.64, 0.71), "fixmatch, fast": (0.61, 0.62, 0.73)}


@pytest.fixture
def compared(write_result: Callable[..., Path], tmp_path: Path) -> Path:
    """A folder of runs as `usb-rsmatch compare` writes it."""
    runs = []
    for arm, accuracies in ACCURACIES.items():
        for seed, last in enumerate(accuracies):
            folder = f"{arm.replace(', ', '-')}__seed-{seed}"
            path = write_result(folder, seed=seed, accuracy__last=last, config_sha256=f"{len(runs):064x}")
            sha = json.loads(path.read_text())["config_sha256"]
            runs.append({"folder": folder, "arm": arm, "axes": {"seed": seed}, "config_sha256": sha})
    record = {"name": "same_result", "baseline": None, "varied": ["rs_fast", "rs_loader", "seed"], "runs": runs}
    (tmp_path / "results" / "grid.json").write_text(json.dumps(record))
    return tmp_path / "results"


def test_figures_are_those_of_a_paired_test(compared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = compared.parent / "same_result.json"
    assert same_result.main([str(compared), "--out", str(out)]) == 0
    content = json.loads(out.read_text())
    (row,) = content["rows"]
    difference = row["difference"]
    expected = ttest_1samp([1.0, -2.0, 2.0], 0).confidence_interval(0.95)
    assert difference["mean"] == pytest.approx(1 / 3)
    assert (difference["low"], difference["high"]) == pytest.approx((expected.low, expected.high))
    assert row["exact"]["by_seed"] == pytest.approx([60, 64, 71]) and row["fast"]["mean"] == pytest.approx(196 / 3)
    assert content["summarised_by"].startswith("python -m benchmarks.same_result")
    table = same_result.table(content)
    assert table in capsys.readouterr().out
    assert "| fixmatch | 65.0 ± 5.6 | 65.3 ± 6.7 | +0.3 (-4.8 to +5.5) | 3 |" in table


def test_an_unfinished_comparison_is_refused(compared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (compared / "fixmatch-fast__seed-1" / "result.json").unlink()
    out = compared.parent / "same_result.json"
    assert same_result.main([str(compared), "--out", str(out)]) == 2
    assert "finish the comparison" in capsys.readouterr().err and not out.exists()


def test_other_arms_and_mixed_threads_are_refused(
    write_result: Callable[..., Path], compared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = compared / "fixmatch-fast__seed-1" / "result.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"threads": 1}))
    assert same_result.main([str(compared), "--out", "x.json"]) == 2
    assert "different threads" in capsys.readouterr().err
    (compared / "grid.json").write_text((compared / "grid.json").read_text().replace("fixmatch, fast", "fast"))
    assert same_result.main([str(compared), "--out", "x.json"]) == 2
    assert "ALGORITHM, exact|fast" in capsys.readouterr().err


def test_the_arms_of_the_shipped_grid_differ_only_in_algorithm_and_path() -> None:
    import_semilearn()
    grid = read_grid(find_config(same_result.GRID), all_keys(), lambda name: read_yaml(find_config(name)))
    runs = plan(grid)
    assert len(runs) == 20
    for run in runs:
        config, notes = resolve(run.config)
        algorithm, side = run.arm.split(", ")
        assert not notes and config.algorithm == algorithm and side in same_result.SIDES
        assert (config.rs_loader, config.rs_fast) == (("pil", False) if side == "exact" else ("batched", True))
    rest: list[dict[str, Any]] = [
        {k: v for k, v in run.config.items() if k not in ("algorithm", "rs_loader", "rs_fast", "seed", "save_name")}
        for run in runs
    ]
    assert all(other == rest[0] for other in rest)


def test_the_readme_has_a_place_for_the_table() -> None:
    text = (readme_tables.ROOT / "README.md").read_text("utf-8")
    assert "<!-- same result table -->" in text and find_config(same_result.GRID).exists()
