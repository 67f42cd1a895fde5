"""The shipped photographs: their counts, classes and file history, and the command that made them."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.photos_subset import members
from usb_rsmatch.data.pool.pool import HybridPool
from usb_rsmatch.data.sources.dataset_registry import open_real
from usb_rsmatch.data.sources.photos import ARCHIVE, CLASSES, MEAN, STD, _parts
from usb_rsmatch.errors import UserError

GENERATORS = ("latent_flow", "latent_flow_guided")


def test_counts_and_classes() -> None:
    data = open_real("photos", Path())
    assert data.classes == CLASSES
    assert np.bincount(data.train.labels).tolist() == [800] * 4
    assert np.bincount(data.test.labels).tolist() == [500] * 4
    for name in GENERATORS:
        labels = [label for label, _ in _parts()[name]]
        assert [labels.count(label) for label in CLASSES] == [800] * 4
    assert ARCHIVE.stat().st_size <= 4 * 2**20


def test_every_file_has_the_same_format() -> None:
    formats = set()
    for images in _parts().values():
        for _, content in images:
            with Image.open(io.BytesIO(content)) as image:
                tables = tuple(tuple(table) for table in image.quantization.values())  # type: ignore[attr-defined]
                formats.add((image.format, image.size, image.mode, tables))
    assert len(formats) == 1


def test_mean_and_deviation_are_those_of_the_training_images() -> None:
    train = open_real("photos", Path()).train
    pixels = train.load(np.arange(len(train)), 32, 3) / 255
    np.testing.assert_allclose(pixels.mean((0, 1, 2)), MEAN, atol=1e-3)
    np.testing.assert_allclose(pixels.std((0, 1, 2)), STD, atol=1e-3)


def test_no_photograph_is_in_two_parts_and_a_pool_of_them_is_built() -> None:
    contents = [content for images in _parts().values() for _, content in images]
    assert len(set(contents)) == len(contents) == 11_600
    sources = [{"source": f"photos:{name}", "count": 100} for name in GENERATORS]
    pool = HybridPool.from_config({"dataset": "photos", "num_labels": 8, "real_count": 300, "synthetic": sources})
    made = dict.fromkeys(GENERATORS, 100)
    assert pool.provenance == {"real": 300, "synthetic": 200, "unknown": 0, "by_generator": made}


def test_an_unknown_generator_is_refused() -> None:
    with pytest.raises(UserError, match="take photos:latent_flow or photos:latent_flow_guided"):
        HybridPool.from_config({"dataset": "photos", "num_labels": 8, "synthetic": [{"source": "photos:sd"}]})


@pytest.mark.skipif("CIFAR10_JPEG" not in os.environ, reason="CIFAR10_JPEG names no folder of the original images")
def test_the_archive_is_what_the_command_makes() -> None:
    root = Path(os.environ["CIFAR10_JPEG"])
    made = members(root, {name: root / name for name in GENERATORS})
    assert {content for _, content in made} == {content for images in _parts().values() for _, content in images}
