"""Tests of the method's figures: computed from small result files, and compatible with the shipped grids."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import ttest_1samp, ttest_rel

from benchmarks import method, method_tables
from usb_rsmatch.compare.grid import plan, read_grid
from usb_rsmatch.usb.config import DEAD, all_keys, import_semilearn, read_yaml, resolve
from usb_rsmatch.usb.shipped_configs import find_config

GRIDS = (
    "ways",
    "variants",
    "cutoff",
    "contamination",
    "detection",
    "control",
    "harm",
    "fashion",
    "benchmark",
    "open_set",
)
Runs = Mapping[tuple[str, str | float | None], tuple[float, ...]]


def summary(tmp_path: Path, *folders: Path) -> dict[str, Any]:
    out = tmp_path / "method.json"
    arguments = ["--out", str(out), "--kept", str(tmp_path / "kept"), "--keep", *map(str, folders)]
    assert method.main(arguments) == 0
    return json.loads(out.read_text())


def test_differences_are_paired_and_against_the_better_baseline(
    compared: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real, pool, oracle, more = (0.80, 0.84, 0.82), (0.81, 0.85, 0.81), (0.88, 0.89, 0.90), (0.85, 0.84, 0.83)
    arms = {(method_tables.REAL, None): real, (method_tables.POOL, None): pool, (method_tables.MORE, None): more}
    content = summary(tmp_path, compared("ways", {**arms, (method.ORACLE_WAY, None): oracle}))
    for name, one in (("oracle_gain", oracle), ("ceiling_real", more)):
        expected = ttest_rel(one, pool).confidence_interval(0.95)
        figure = content[name]
        assert (figure["low"], figure["high"]) == pytest.approx((100 * expected.low, 100 * expected.high))
        assert figure["n"] == 3
    assert content["seeds"] == [0, 1, 2] and "gain_over_best_baseline" not in content
    printed = capsys.readouterr().out
    assert "main and dummy head, normalised apart | 89.0 ± 1.0 |" in printed


def test_figures_of_a_harmful_pool(compared: Callable[..., Path], tmp_path: Path) -> None:
    runs = {
        method_tables.REAL: (0.8, 0.9),
        method_tables.POOL: (0.7, 0.8),
        method_tables.MORE: (0.9, 0.9),
        method_tables.MINED: (0.81, 0.92),
        method_tables.ORACLE: (0.83, 0.95),
    }
    content = summary(tmp_path, compared("harm", {(arm, None): values for arm, values in runs.items()}))
    means = {name: content[name]["mean"] for name in ("harm_ceiling_real", "harm_gain", "harm_oracle_gain")}
    assert means == pytest.approx({"harm_ceiling_real": 15.0, "harm_gain": 1.5, "harm_oracle_gain": 4.0})


def test_figures_over_the_share_of_synthetic_images(compared: Callable[..., Path], tmp_path: Path) -> None:
    runs: dict[tuple[str, float], tuple[float, ...]] = {}
    for ratio, values in {0.0: (0.80, 0.84), 0.5: (0.70, 0.78)}.items():
        runs |= {
            (method_tables.POOL, ratio): values,
            (method_tables.MINED, ratio): tuple(v + 0.05 for v in values),
            (method_tables.ORACLE, ratio): tuple(v + 0.06 for v in values),
        }
    content = summary(tmp_path, compared("contamination", runs, "synthetic_ratio"))
    assert content["gain_over_best_baseline"]["mean"] == pytest.approx(
        -3.0
    )  # compared with the real part, the better baseline
    assert content["gap_to_oracle"]["mean"] == pytest.approx(1.0)
    assert content["clean_pool_gap"]["mean"] == pytest.approx(5.0)


def test_gains_over_the_base_rules_are_averaged_by_seed(compared: Callable[..., Path], tmp_path: Path) -> None:
    runs: dict[tuple[str, None], tuple[float, ...]] = {}
    for number, rule in enumerate(method.BASE_RULES):
        runs |= {(rule, None): (0.8, 0.7), (f"RSMatch on {rule}", None): (0.8 + number / 100, 0.72 + number / 100)}
    figure = summary(tmp_path, compared("benchmark", runs))["gain_over_base_rule"]
    expected = ttest_1samp([1.5, 3.5], 0).confidence_interval(0.95)
    assert (figure["mean"], figure["n"]) == (pytest.approx(2.5), 2)
    assert (figure["low"], figure["high"]) == pytest.approx((expected.low, expected.high))


def test_efficiency_and_control(compared: Callable[..., Path], tmp_path: Path) -> None:
    runs = {("mined", "flow"): (0.9, 0.8), ("supervised", "flow"): (1.0, 0.9), ("mined", "gan"): (0.95, 0.7)}
    detection = compared("detection", {**runs, ("supervised", "gan"): (0.95, 0.9)}, "synthetic", auroc=True)
    control = compared("control", {(method_tables.MINED, None): (0.5, 0.52, 0.48)}, auroc=True)
    content = summary(tmp_path, detection, control)
    expected = ttest_1samp([(0.8 + 1.0) / 2, (0.75 + 0.5) / 2], 0).confidence_interval(0.95)  # by seed
    assert content["mining_efficiency_mean"]["mean"] == pytest.approx((0.8 + 0.75 + 1.0 + 0.5) / 4)
    assert content["mining_efficiency_mean"]["low"] == pytest.approx(expected.low)
    assert content["mining_efficiency_mean"]["n"] == 2
    assert content["mining_efficiency_min"]["mean"] == pytest.approx(0.5)
    assert content["auroc_clean_mean"]["mean"] == pytest.approx(0.8375) and "auroc_mean" not in content
    expected = ttest_1samp([0.5, 0.52, 0.48], 0).confidence_interval(0.95)
    assert content["control_auroc"]["low"] == pytest.approx(expected.low)


def test_an_existing_copy_is_not_overwritten(
    compared: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = compared("control", {(method_tables.MINED, None): (0.5, 0.52)}, auroc=True)
    arguments = ["--out", str(tmp_path / "m.json"), "--kept", str(tmp_path / "kept"), "--keep", str(folder)]
    assert method.main(arguments) == 0 and method.main(arguments) == 0
    assert "0 new results" in capsys.readouterr().out
    path = folder / "1" / "result.json"
    path.write_text(path.read_text().replace("0.52", "0.62"))
    assert method.main(arguments) == 2
    message = capsys.readouterr().err
    assert "remove it first" in message and message.count("\n") == 1
    assert method.main(["--out", "x.json", "--kept", str(tmp_path / "none")]) == 2
    assert "has no results" in capsys.readouterr().err
    assert method.main([*arguments[:-1], str(tmp_path)]) == 2
    assert "is not the folder of a comparison" in capsys.readouterr().err


@pytest.mark.parametrize("name", GRIDS)
def test_the_shipped_grids_have_the_arms_that_are_read(name: str) -> None:
    import_semilearn()
    known = {**all_keys(), **dict.fromkeys(DEAD)}
    grid = read_grid(find_config(f"method/{name}"), known, lambda base: read_yaml(find_config(base)))
    runs = plan(grid)
    assert grid.name == name
    for run in runs:
        resolve(run.config)
    arms = {run.arm for run in runs}
    read = {
        "ways": {method_tables.REAL, method_tables.MORE, method_tables.POOL, method.ORACLE_WAY},
        "variants": {method_tables.ORACLE},
        "cutoff": {method_tables.POOL, method_tables.MINED, method_tables.ORACLE},
        "contamination": {method_tables.POOL, method_tables.MINED, method_tables.ORACLE},
        "detection": {"mined", "supervised", "mined, as they are"},
        "control": {method_tables.MINED, "RSMatch, coarser at last"},
        "harm": {method_tables.REAL, method_tables.MORE, method_tables.POOL, method_tables.MINED, method_tables.ORACLE},
        "fashion": {method_tables.POOL},
        "open_set": {"FixMatch", "OpenMatch", "IOMatch", "SCOMatch"},
        "benchmark": {rule for name in method.BASE_RULES for rule in (name, f"RSMatch on {name}")},
    }
    assert read[name] <= arms
    if name == "contamination":
        assert {0.0, method.HEADLINE} <= {run.axes["synthetic_ratio"] for run in runs}


def test_the_committed_figures_are_those_of_the_committed_results(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    if not (root / method.KEPT).is_dir():
        pytest.skip("this tree has no committed results")
    committed = json.loads((root / "results" / "method.json").read_text())
    again = method.summarise(root / method.KEPT)
    assert {name: committed[name] for name in again} == json.loads(json.dumps(again))
