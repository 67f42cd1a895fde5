"""`analysis.npz` of a finished run agrees with its result, is optional, and is the same if it is made later."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from usb_rsmatch.data.pool.pool import HybridPool
from usb_rsmatch.usb.run_analysis import NAME, spread_over_classes, thumbnails
from usb_rsmatch.usb.training import train


def trained(config: dict[str, Any], **changes: Any) -> tuple[Path, dict[str, Any]]:
    config = {**config, "rs_warmup": 0.0, **changes}
    result = train(config, note=lambda line: None)
    return Path(config["save_dir"]) / config["save_name"], result


def read(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / NAME, allow_pickle=False) as content:
        return dict(content)


@pytest.fixture
def rsmatch(tiny: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in tiny.items() if key != "algorithm"} | {"algorithm": "rsmatch"}


def test_the_file_agrees_with_the_result_and_the_pool(rsmatch: dict[str, Any]) -> None:
    folder, result = trained(rsmatch)
    content, pool = read(folder), HybridPool.from_config(rsmatch)
    assert list(content["classes"]) == list(pool.classes) and list(content["generators"]) == ["real", "blend"]

    matrix = content["confusion"]
    assert matrix.sum() == len(pool.test)
    assert np.trace(matrix) / matrix.sum() == pytest.approx(result["accuracy"]["last"])
    assert (matrix.sum(1) == np.bincount(pool.test.labels, minlength=10)).all()

    synthetic = content["scores_generator"] > 0
    assert roc_auc_score(synthetic, content["scores"]) == pytest.approx(result["detection"]["auroc"])
    assert len(synthetic) == 380 and synthetic.sum() == 200, "without the 20 labelled images"

    count, width = content["features"].shape
    assert count == 380 and width >= 8 and np.isfinite(content["features"]).all()
    assert (content["features_generator"] > 0).sum() == 200
    assert np.bincount(content["features_class"], minlength=10).min() > 0

    low, high = content["lowest_scores"], content["highest_scores"]
    ranked = np.sort(content["scores"])
    assert (low == ranked[:28]).all() and (high == ranked[::-1][:28]).all()
    pool_images = {image.tobytes() for image in pool.unlabeled.images}
    for name in ("lowest", "highest", "queued"):
        assert {image.tobytes() for image in content[f"{name}_images"]} <= pool_images
        assert len(content[f"{name}_generator"]) == len(content[f"{name}_images"])
    assert len(content["queue_class"]) == len(content["queue_generator"]) > 0
    assert (folder / NAME).stat().st_size < 2**20


def test_it_can_be_switched_off_and_does_not_change_the_result(rsmatch: dict[str, Any]) -> None:
    with_file, first = trained(rsmatch)
    without, second = trained(rsmatch, analysis=False, save_name="without")
    assert (with_file / NAME).is_file() and not (without / NAME).exists()
    assert first["config_sha256"] == second["config_sha256"] and first["accuracy"] == second["accuracy"]


def test_a_process_that_did_not_train_writes_the_same_file(rsmatch: dict[str, Any]) -> None:
    folder, result = trained(rsmatch)
    before = read(folder)
    (folder / "result.json").unlink()  # as if the process had been killed between its last checkpoint and this file
    (folder / NAME).unlink()
    _, again = trained(rsmatch)
    after = read(folder)
    assert after.keys() == before.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(value, after[name], err_msg=name)
    assert again["accuracy"] == result["accuracy"] and again["detection"] == result["detection"]


@pytest.mark.parametrize(("algorithm", "scored"), [("fixmatch", False), ("uasd", True), ("scomatch", True)])
def test_algorithms_without_a_queue_write_the_rest(tiny: dict[str, Any], algorithm: str, scored: bool) -> None:
    folder, result = trained(tiny, algorithm=algorithm)
    content = read(folder)
    assert "features" in content and ("scores" in content) == scored and "queue_class" not in content
    if scored:
        synthetic = content["scores_generator"] > 0
        assert roc_auc_score(synthetic, content["scores"]) == pytest.approx(result["detection"]["auroc"])
        assert json.loads((folder / "result.json").read_text())["detection"] == result["detection"]


def test_thumbnails_keep_the_aspect_ratio() -> None:
    images = np.zeros((2, 128, 96, 3), np.uint8)
    images[:, :64] = 255
    small = thumbnails(images)
    assert small.shape == (2, 64, 48, 3) and small[0, 5].min() > 250 and small[0, 60].max() < 5
    assert thumbnails(np.zeros((2, 96, 96, 1), np.uint8)).shape == (2, 64, 64, 1)
    assert thumbnails(images[:, :32, :32]).shape == (2, 32, 32, 3)


def test_the_newest_queue_entries_of_each_class_are_chosen() -> None:
    classes = np.array([0, 0, 0, 3, 3, 7])
    assert spread_over_classes(classes, 6).tolist() == [2, 1, 4, 3, 5]
    assert len(spread_over_classes(np.arange(100), 60)) == 60
    assert len(spread_over_classes(np.empty(0, np.int64), 60)) == 0
