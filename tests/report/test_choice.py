"""The choice by validation: its figures against scipy's, and what it says where nothing can be shown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from scipy import stats

from usb_rsmatch.report.choice import choice
from usb_rsmatch.report.collection import collect
from usb_rsmatch.report.comparison import make_table
from usb_rsmatch.report.text_table import explanations

KEEP = [0.80, 0.84, 0.82, 0.83]
USE = [0.85, 0.90, 0.86, 0.87]


def results(write: Callable[..., Path], **validation: list[float | None]) -> Path:
    """One result for each algorithm and seed, with that validation accuracy."""
    for algorithm, values in validation.items():
        for seed, value in enumerate(values):
            path = write(f"{algorithm}-{seed}", algorithm=algorithm, seed=seed, accuracy__validation=value)
    return path.parents[1]


def test_a_lead_that_the_runs_show(write_result: Callable[..., Path]) -> None:
    table = make_table(collect(results(write_result, fixmatch=[*KEEP], rsmatch=[*USE])))
    expected = stats.ttest_rel(USE, KEEP).confidence_interval(0.95)
    lines = choice(table)
    assert lines == [
        "Highest validation accuracy: rsmatch, 87.0 % (4 runs).",
        f"rsmatch minus fixmatch, by validation: +4.8 points ({100 * expected.low:+.1f} to {100 * expected.high:+.1f}, "
        "4 pairs)",
    ]
    assert explanations(table)[:2] == lines


def test_a_lead_that_may_be_chance(write_result: Callable[..., Path]) -> None:
    folder = results(write_result, fixmatch=[0.80, 0.90, 0.85], rsmatch=[0.86, 0.88, 0.84])
    assert choice(make_table(collect(folder)))[0].endswith("No difference can be shown between it and fixmatch.")


def test_one_pair_shows_nothing(write_result: Callable[..., Path]) -> None:
    folder = results(write_result, fixmatch=[0.80], rsmatch=[0.99])
    assert choice(make_table(collect(folder))) == [
        "Highest validation accuracy: rsmatch, 99.0 % (1 runs). No difference can be shown between it and fixmatch."
    ]


@pytest.mark.parametrize("values", [{"fixmatch": [0.8, 0.9]}, {"fixmatch": [0.8, None], "rsmatch": [0.9, 0.9]}])
def test_nothing_without_a_second_arm_or_without_validation(
    write_result: Callable[..., Path], values: dict[str, list[float | None]]
) -> None:
    assert choice(make_table(collect(results(write_result, **values)))) == []
