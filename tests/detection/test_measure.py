"""What is measured of a queue, by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from usb_rsmatch.detection.measure import queue_report

POOL = SimpleNamespace(
    labels=np.array([0, 1, 2, 3, 0, -1, -1]),
    is_synthetic=np.array([True, True, False, False, True, True, False]),
    is_unknown=np.array([False] * 6 + [True]),
)


def test_purity_and_balance_of_a_queue() -> None:
    assert queue_report(np.array([-1, -1]), POOL) is None
    assert queue_report(np.array([0, 1, 2, 3]), POOL) == {"purity": 0.5, "balance": pytest.approx(1.0)}
    assert queue_report(np.array([-1, 0, 4, 1, 5]), POOL) == {
        "purity": 1.0,
        "balance": pytest.approx(-(2 / 3 * np.log(2 / 3) + 1 / 3 * np.log(1 / 3)) / np.log(4)),
    }
    assert queue_report(np.array([5]), POOL) == {"purity": 1.0, "balance": None}


def test_images_of_unknown_provenance_are_not_in_a_purity() -> None:
    assert queue_report(np.array([6]), POOL) == {"purity": None, "balance": None}
    assert queue_report(np.array([0, 2, 6, 6]), POOL) == {"purity": 0.5, "balance": pytest.approx(0.5)}
    only_real = SimpleNamespace(labels=POOL.labels, is_synthetic=np.zeros(7, bool), is_unknown=POOL.is_unknown)
    assert queue_report(np.array([0, 2, 6, 6]), only_real) == {"purity": None, "balance": pytest.approx(0.5)}
