"""Statistics against scipy and values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from usb_rsmatch.report.statistics import average_ranks, estimate, paired_difference

values = st.lists(st.floats(0, 100, allow_subnormal=False), min_size=2, max_size=12)


def test_estimate_by_hand() -> None:
    shown = estimate([92.0, 94.0, 96.0])
    half = 4.302652729911275 * 2 / math.sqrt(3)  # t quantile at 2 degrees of freedom
    assert (shown.n, shown.mean, shown.std) == (3, 94.0, 2.0)
    assert shown.low == pytest.approx(94 - half) and shown.high == pytest.approx(94 + half)


@given(values, st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_interval_equals_scipys(sample: list[float], level: float) -> None:
    shown = estimate(sample, level)
    assert shown.std == pytest.approx(np.std(sample, ddof=1), abs=1e-9)
    if shown.std and shown.std > 1e-6:
        expected = stats.t.interval(level, len(sample) - 1, np.mean(sample), stats.sem(sample))
        assert (shown.low, shown.high) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_one_value_has_no_spread_and_none_is_an_error() -> None:
    shown = estimate([7.0])
    assert (shown.mean, shown.std, shown.low, shown.high) == (7.0, None, None, None)
    with pytest.raises(ValueError, match="no values"):
        estimate([])


def test_paired_difference_equals_scipys_paired_t() -> None:
    arm = {0: 91.0, 1: 94.5, 2: 90.2, 3: 97.1, 9: 50.0}  # 9 and 7 have no partner
    base = {3: 95.0, 2: 90.0, 1: 92.5, 0: 88.0, 7: 10.0}
    shown = paired_difference(arm, base)
    shared = [0, 1, 2, 3]
    test = stats.ttest_rel([arm[seed] for seed in shared], [base[seed] for seed in shared])
    interval = test.confidence_interval(0.95)
    assert shown is not None and shown.n == 4
    assert (shown.low, shown.high) == pytest.approx((interval.low, interval.high))
    assert paired_difference({0: 1.0}, {1: 1.0}) is None


def test_pairing_removes_what_a_seed_does_to_both() -> None:
    base = {seed: 50.0 + 10 * seed for seed in range(4)}
    shown = paired_difference({seed: value + 1 for seed, value in base.items()}, base)
    assert shown is not None and shown.mean == 1 and shown.std == 0


@given(st.lists(st.lists(st.integers(0, 3), min_size=3, max_size=3), min_size=1, max_size=6))
def test_ranks_equal_scipys(rows: list[list[int]]) -> None:
    blocks = [dict(zip("abc", map(float, row), strict=True)) for row in rows]
    expected = stats.rankdata(-np.array(rows), axis=1).mean(axis=0)
    assert [average_ranks(blocks)[name] for name in "abc"] == pytest.approx(expected)


def test_ranks_use_complete_blocks_only() -> None:
    blocks = [{"a": 1.0, "b": 2.0}, {"a": 9.0}]
    assert average_ranks(blocks) == {"a": 2.0, "b": 1.0}
