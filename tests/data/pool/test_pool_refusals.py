"""What a pool cannot be made of is said in one line; unreadable and repeated images are found."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from usb_rsmatch.data.pool.pool import HybridPool
from usb_rsmatch.data.pool.summary import pool_table
from usb_rsmatch.errors import UserError

RNG = np.random.default_rng(0)


def pool(**keys: Any) -> HybridPool:
    return HybridPool.from_config(SimpleNamespace(**{"dataset": "digits", "num_labels": 40, **keys}))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"synthetic_count": 1, "synthetic_ratio": 0.5}, "synthetic_count or synthetic_ratio, not both"),
        ({"synthetic_count": 5}, "no `synthetic:` source"),
        ({"synthetic_ratio": 0.5}, "no `synthetic:` source"),
        ({"synthetic_ratio": 1.0, "synthetic": [{"source": "flow"}]}, "under 1"),
        ({"num_labels": 42}, "num_labels: 42 is not divisible by the 10 classes"),
        ({"num_labels": 2000}, r"class \d has \d+ training images"),
        ({"num_labels": 0}, "at least 1"),
        ({"num_labels": "many"}, "takes a number"),
        ({"num_labels": 40.5}, "whole number"),
        ({"num_classes": 9}, "num_classes: 9 is given, digits has 10"),
        ({"real_count": 20}, "between the 40 labelled images .* and the 1438"),
        ({"real_count": 1439}, "the 1438 real ones"),
        ({"validation_count": 1439}, "the training data has 1438 images"),
        ({"validation_count": 1420}, "training images .validation left out."),
        ({"dataset": "digitz"}, "'digitz' is unknown"),
        ({"on_error": "ignore"}, "takes raise or skip"),
        ({"img_size": 2}, "at least 8"),
        ({"lb_imb_ratio": 0.5}, "lb_imb_ratio"),
        ({"ulb_imb_ratio": 10}, "ulb_imb_ratio needs ulb_num_labels"),
        ({"reencode": 101}, "at most 100"),
        ({"include_lb_to_ulb": "maybe"}, "true or false"),
        ({"synthetic": "folder:x"}, "synthetic takes a list"),
        ({"synthetic": [{"generator": "x"}]}, "needs a `source`"),
        ({"synthetic": [{"source": "folder:x", "count": {"a": "many"}}]}, "folder:x, a: count takes a number"),
        ({"synthetic": [{"source": "folder:x", "count": 0}]}, "at least 1"),
        ({"synthetic": [{"source": "folder:x", "generator": "Real"}]}, "cannot name its generator"),
        ({"synthetic": [{"source": "folder:x", "mapping": "gone.json"}]}, "gone.json"),
        ({"synthetic": [{"source": "folder:gone"}]}, "gone: no such folder"),
        ({"layouts": ["x"]}, "layouts takes a mapping"),
    ],
)
def test_impossible_settings_are_one_line(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        pool(**keys)
    assert "\n" not in str(caught.value)


def test_a_pool_of_synthetic_images_alone(sources: list[dict[str, Any]]) -> None:
    """The negative control: the real images are the labelled ones, and none of them is in the pool."""
    alone = pool(real_count=0, include_lb_to_ulb=False, synthetic=sources)
    assert alone.unlabeled.is_synthetic.all() and len(alone) == 150 and len(alone.labeled) == 40


def test_too_few_synthetic_images_say_how_many(sources: list[dict[str, Any]]) -> None:
    with pytest.raises(UserError, match="151 synthetic images are asked for, the sources have 150"):
        pool(synthetic=sources, synthetic_count=151)
    with pytest.raises(UserError, match="1438 synthetic images are asked for, the sources have 150"):
        pool(synthetic=sources, synthetic_ratio=0.5)
    with pytest.raises(UserError, match="count 61 is asked for, it has 60 images"):
        pool(synthetic=[{**sources[0], "count": 61}])


def test_a_test_image_in_a_synthetic_source_is_refused(sources: list[dict[str, Any]], tmp_path: Path) -> None:
    image = pool().test.images[5, :, :, 0]
    Image.fromarray(image).save(tmp_path / "leak.png")
    with pytest.raises(UserError, match=r"leak\.png: the same image is in the test set"):
        pool(synthetic=[*sources, {"source": f"folder:{tmp_path}"}])


def test_real_duplicates_are_reported(tmp_path: Path) -> None:
    images = RNG.integers(0, 256, (20, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "train.npz", x=images, y=np.arange(20) % 2)
    np.savez(tmp_path / "test.npz", x=images[:3], y=np.arange(3) % 2)
    p = pool(dataset="npz", data_dir=tmp_path, num_labels=2)
    found = p.manifest()["duplicates"]
    assert p.duplicates == found["real_train_in_test"] == len(set(found["first"])) == 3
    assert {"train.npz, image 0", "train.npz, image 1", "train.npz, image 2"} == set(found["first"])
    assert f"also in the test set: 3, the first: {found['first'][0]}" in pool_table(p)


def test_unreadable_images_are_skipped_and_listed(tmp_path: Path) -> None:
    for part, n in (("train", 150), ("test", 2)):
        for c in "ab":
            (tmp_path / part / c).mkdir(parents=True)
            for i in range(n):
                pixels = RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / c / f"{i}.png")
    bad = tmp_path / "train" / "a" / "7.png"
    bad.write_bytes(bad.read_bytes()[:60])
    keys = {"dataset": "folder", "data_dir": tmp_path, "num_labels": 2}
    with pytest.raises(UserError, match=r"7\.png: cannot be read"):
        pool(**keys)
    p = pool(**keys, on_error="skip")
    skipped = p.manifest()["sources"][0]["skipped"]
    assert len(p) == 299 and list(skipped) == [str(bad)] and "on_error" not in skipped[str(bad)]


def test_a_pool_larger_than_memory_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(*_: object, **__: object) -> None:
        raise MemoryError("Unable to allocate 2.16 TiB")

    monkeypatch.setattr("usb_rsmatch.data.pool.pool.read_selections", too_large)
    with pytest.raises(UserError, match=r"does not fit into memory \(Unable to allocate 2.16 TiB\); lower img_size"):
        HybridPool.from_config({"dataset": "digits", "num_labels": 20})
    with pytest.raises(UserError, match="img_size takes a number of at least 8 and at most 4096"):
        HybridPool.from_config({"dataset": "digits", "num_labels": 20, "img_size": 1540985})
