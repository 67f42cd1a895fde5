"""The table's figures against values worked out by hand and by scipy."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from usb_rsmatch.compare.grid import Run
from usb_rsmatch.errors import UserError
from usb_rsmatch.report.collection import collect
from usb_rsmatch.report.comparison import Table, make_table
from usb_rsmatch.report.table_formats import figures_csv
from usb_rsmatch.report.text_table import details, explanations, headline, interval, overview, spread

MakeGrid = Callable[..., Path]
ARMS = {"real only": {"synthetic_count": 0}, "FixMatch": {}, "RSMatch": {"algorithm": "rsmatch"}}
ACCURACY = {"real only": [0.80, 0.86, 0.83], "FixMatch": [0.85, 0.87, 0.80], "RSMatch": [0.90, 0.91, 0.86]}


def accuracy(run: Run) -> float:
    return ACCURACY[run.arm][run.config["seed"]]


@pytest.fixture
def table(finished_grid: MakeGrid) -> Table:
    return make_table(collect(finished_grid(accuracy, arms=ARMS, axes={"seed": [0, 1, 2]}, baseline="FixMatch")))


def test_means_differences_and_ranks(table: Table) -> None:
    cells = table.cells[0]
    assert table.arms == list(ARMS) and len(table.settings) == 1 and table.settings[0].label == ""
    assert cells["FixMatch"].accuracy.mean == pytest.approx(84)
    assert cells["FixMatch"].accuracy.std == pytest.approx(13**0.5)  # deviations 1, 3, -4
    assert cells["FixMatch"].difference is None
    expected = stats.ttest_rel(ACCURACY["RSMatch"], ACCURACY["FixMatch"]).confidence_interval(0.95)
    difference = cells["RSMatch"].difference
    assert difference is not None and difference.mean == pytest.approx(5)
    assert (difference.low, difference.high) == pytest.approx((100 * expected.low, 100 * expected.high))
    assert [cells[arm].leads for arm in ARMS] == [False, False, True]
    assert table.ranks == pytest.approx({"real only": 8 / 3, "FixMatch": 7 / 3, "RSMatch": 1})
    auroc = cells["RSMatch"].auroc
    assert auroc is not None and auroc.mean == pytest.approx(0.91) and cells["FixMatch"].auroc is None
    assert cells["real only"].pool == "600 real"


def test_another_baseline_can_be_asked_for(finished_grid: MakeGrid) -> None:
    found = collect(finished_grid(accuracy, arms=ARMS, axes={"seed": [0, 1, 2]}))
    assert make_table(found).baseline is None
    against = make_table(found, "real only").cells[0]["RSMatch"].difference
    assert against is not None and against.mean == pytest.approx(6)
    with pytest.raises(UserError, match="choose one of real only, FixMatch, RSMatch"):
        make_table(found, "fixmatch")


def test_an_arm_off_an_axis_stands_in_every_setting_of_it(finished_grid: MakeGrid) -> None:
    arms = {"real only": {"synthetic_ratio": 0}, "FixMatch": {}}
    axes = {"num_labels": [100, 20], "synthetic_ratio": [0.5, 0.25], "seed": [0, 1]}

    def of(run: Run) -> float:
        return run.config["num_labels"] / 200 + run.config["synthetic_ratio"] / 10 + run.config["seed"] / 100

    table = make_table(collect(finished_grid(of, arms=arms, axes=axes, baseline="real only")))
    assert [setting.label for setting in table.settings] == [
        "num_labels=20, synthetic_ratio=0.25",
        "num_labels=20, synthetic_ratio=0.5",
        "num_labels=100, synthetic_ratio=0.25",
        "num_labels=100, synthetic_ratio=0.5",
    ]
    assert all(set(cells) == {"real only", "FixMatch"} for cells in table.cells)
    assert [cells["real only"].accuracy.mean for cells in table.cells] == pytest.approx([10.5, 10.5, 50.5, 50.5])
    differences = [cells["FixMatch"].difference for cells in table.cells]
    assert [one.mean for one in differences if one] == pytest.approx([2.5, 5, 2.5, 5])
    assert len(table.records) == 4 + 8, "each run once"


def test_a_missing_arm_leaves_a_gap_and_no_false_rank(finished_grid: MakeGrid) -> None:
    axes = {"num_labels": [20, 40], "seed": [0, 1, 2]}
    folder = finished_grid(accuracy, arms=ARMS, axes=axes, exclude=[{"arm": "RSMatch", "num_labels": 40}])
    table = make_table(collect(folder))
    assert "RSMatch" not in table.cells[1] and table.cells[1]["FixMatch"].leads
    assert table.ranks["RSMatch"] == 1, "the setting without it does not count"
    summary = overview(table)[0]
    assert [entry.text for entry in summary.rows[2]] == ["RSMatch", "89.00 ± 2.65", "–", "1.0"]
    titles = ["num_labels=20", "num_labels=20: detection of synthetic images", "num_labels=40"]
    assert [sheet.title for sheet in details(table)] == titles and len(details(table)[2].rows) == 2


def test_one_arm_and_one_seed_claim_nothing(finished_grid: MakeGrid) -> None:
    table = make_table(collect(finished_grid(lambda run: 0.9, axes={"seed": [0]})))
    (sheet,) = overview(table)
    assert sheet.columns == ["", "Accuracy (%)", "Seeds"]
    assert [(entry.text, entry.bold) for entry in sheet.rows[0]] == [
        ("fixmatch", False),
        ("90.00", False),
        ("1", False),
    ]
    pool = "unlabelled: 600 real + 600 synthetic (flow)"
    assert headline(table) == f"digits · 20 labels · {pool} · 1,200 iterations · seed 0 · 1 run"


def test_equal_arms_lead_together(finished_grid: MakeGrid) -> None:
    table = make_table(collect(finished_grid(lambda run: 0.9, arms=ARMS, axes={"seed": [0, 1]})))
    assert all(cell.leads for cell in table.cells[0].values())
    assert set(table.ranks.values()) == {2.0}


def test_words_around_the_figures(table: Table) -> None:
    sheet, detected = overview(table)
    columns = ["", "Unlabelled pool", "Accuracy (%)", "Against FixMatch", "AUROC", "Rank", "Seeds"]
    assert sheet.columns == columns
    assert headline(table) == "digits · 20 labels · 1,200 iterations · 3 seeds · 9 runs"
    assert len(explanations(table)) == 4
    assert sheet.rows[0][3].text.startswith("−1.00 [−") and sheet.rows[1][3].text == "–"
    assert detected.title == "Detection of synthetic images" and detected.columns == ["", "AUROC", "AP", "FPR95"]
    figures = ["RSMatch", "0.910 ± 0.010", "0.910 ± 0.010", "0.090 ± 0.010"]
    assert [(entry.text, entry.bold) for entry in detected.rows[0]] == [(text, False) for text in figures]


def test_detection_is_told_generator_by_generator(write_result: Callable[..., Path]) -> None:
    """Means over seeds for each generator; a generator that one arm's pool lacks is a dash; the least FPR95 is best."""

    def figures(auroc: float) -> dict[str, float]:
        return {"auroc": auroc, "ap": auroc, "fpr95": 1 - auroc}

    for algorithm, gain in (("openmatch", 0.0), ("iomatch", 0.2)):
        for seed in (0, 1):
            parts = {"gan": figures(0.5 + gain + 0.02 * seed)}
            parts |= {"vae": figures(0.4 + gain)} if algorithm == "iomatch" else {}
            whole = {**figures(0.45 + gain), "by_generator": parts}
            write_result(f"{algorithm}{seed}", algorithm=algorithm, seed=seed, detection=whole)
    path = write_result("none", algorithm="fixmatch", detection=None)
    table = make_table(collect(path.parent.parent))
    _, detected = overview(table)
    assert detected.columns == ["", "AUROC", "AP", "FPR95", "AUROC of gan", "AUROC of vae"]
    shown = {row[0].text: [(entry.text, entry.bold) for entry in row[1:]] for row in detected.rows}
    assert list(shown) == ["iomatch", "openmatch"]
    assert shown["openmatch"][3:] == [("0.510 ± 0.014", False), ("–", False)]
    assert shown["iomatch"][2:] == [("0.350 ± 0.000", True), ("0.710 ± 0.014", True), ("0.600 ± 0.000", True)]
    rows = {row["arm"]: row for row in csv.DictReader(io.StringIO(figures_csv(table)))}
    assert float(rows["iomatch"]["auroc_of_gan_mean"]) == pytest.approx(0.71)
    assert rows["openmatch"]["auroc_of_vae_mean"] == rows["fixmatch"]["fpr95_mean"] == ""


def test_figures_as_text() -> None:
    from usb_rsmatch.report.statistics import estimate

    assert spread(estimate([1.0, 3.0])) == "2.00 ± 1.41" and spread(estimate([2.0]), 1) == "2.0"
    assert interval(estimate([-2.0])) == "−2.00" and interval(None) == "–"
    assert interval(estimate([1.0, 1.0])) == "+1.00 [+1.00, +1.00]"


def test_wide_comparisons_are_parted(finished_grid: MakeGrid) -> None:
    axes: dict[str, Any] = {"num_labels": list(range(10, 150, 10)), "seed": [0]}
    table = make_table(collect(finished_grid(lambda run: 0.5, axes=axes)))
    assert [len(sheet.columns) for sheet in overview(table)] == [7, 7, 6]
    assert any("first 9 of 14" in line for line in explanations(table))
