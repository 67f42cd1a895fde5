"""`real_history` changes the real images of a pool and no generated one."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from usb_rsmatch.data.images.history import through_history
from usb_rsmatch.data.pool.pool import HybridPool


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Two classes of crops of a photograph each: real/train, real/test, generated."""
    for c, photograph in enumerate(load_sample_images().images):
        for part, first in (("real/train", 0), ("real/test", 4), ("generated", 8)):
            folder = tmp_path / part / f"class{c}"
            folder.mkdir(parents=True)
            for n in range(16):
                row, column = 32 * (first + n // 8), 40 * (n % 8)
                Image.fromarray(photograph[row : row + 32, column : column + 32]).save(folder / f"{n:02}.png")
    return tmp_path


def test_real_images_of_every_part_and_only_these(folders: Path) -> None:
    config = {
        "dataset": "folder",
        "data_dir": str(folders / "real"),
        "num_labels": 4,
        "validation_count": 4,
        "synthetic": [{"source": f"folder:{folders / 'generated'}", "generator": "g"}],
    }
    plain = HybridPool.from_config(config)
    changed = HybridPool.from_config({**config, "real_history": [{"resize": 64}, {"jpeg": 75}]})
    history = (("resize", 64), ("jpeg", 75))
    for name, part in plain.parts().items():
        images, synthetic = np.asarray(part.images[:]), part.is_synthetic
        expected = np.where(synthetic[:, None, None, None], images, through_history(images, history))
        np.testing.assert_array_equal(changed.parts()[name].images[:], expected)
    assert plain.unlabeled.is_synthetic.any() and not plain.unlabeled.is_synthetic.all()
    assert changed.manifest()["config"]["real_history"] == [{"resize": 64}, {"jpeg": 75}]
    assert HybridPool.from_config(changed.manifest()["config"]).hashes == changed.hashes
