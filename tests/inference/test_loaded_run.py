"""`load_run`: predictions agree with the metrics that the run measured; wrong input is refused in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

import usb_rsmatch
from usb_rsmatch import load_run
from usb_rsmatch.errors import UserError


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


@pytest.fixture(scope="module")
def runs(finished: dict[str, Path]) -> dict[str, Any]:
    return {name: load_run(folder) for name, folder in finished.items()}


@pytest.mark.parametrize("name", ["rsmatch", "fixmatch"])
def test_predictions_agree_with_the_accuracy_of_the_run(
    name: str, runs: dict[str, Any], finished: dict[str, Path]
) -> None:
    run, test = runs[name], runs[name].pool.test
    probabilities = run.predict(test.images)
    assert probabilities.dtype == np.float32 and probabilities.shape == (len(test), 10) == (len(test), len(run.classes))
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    accuracy = float((probabilities.argmax(1) == test.labels).mean())
    assert accuracy == pytest.approx(result(finished[name])["accuracy"]["last"], abs=1e-9)
    assert accuracy > 0.15  # above chance


def test_synthetic_scores_agree_with_the_metrics_of_the_run(runs: dict[str, Any], finished: dict[str, Path]) -> None:
    run, pool = runs["rsmatch"], runs["rsmatch"].pool.unlabeled
    scores = run.synthetic_score(pool.images)
    assert scores.dtype == np.float32 and scores.shape == (len(pool),)
    assert ((scores >= 0) & (scores <= 1)).all() and len(np.unique(scores)) > len(pool) / 2
    unseen = ~pool.is_labeled
    detection = result(finished["rsmatch"])["detection"]
    assert roc_auc_score(pool.is_synthetic[unseen], scores[unseen]) == pytest.approx(detection["auroc"], abs=1e-5)
    expected = average_precision_score(pool.is_synthetic[unseen], scores[unseen])
    assert expected == pytest.approx(detection["ap"], abs=1e-5)


@pytest.mark.parametrize("method", ["predict", "synthetic_score"])
def test_batch_size_and_array_type_do_not_change_the_outputs(method: str, runs: dict[str, Any]) -> None:
    call, images = getattr(runs["rsmatch"], method), runs["rsmatch"].pool.test.images[:50]
    whole = call(images)
    np.testing.assert_allclose(call(images, batch_size=7), whole, rtol=1e-4, atol=1e-6)
    for same in (images[..., 0], torch.from_numpy(images), images.repeat(3, axis=-1), images[::-1][::-1]):
        np.testing.assert_allclose(call(same), whole, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(call(list(images)), whole)
    assert len(call(images[:0])) == 0 and call(images[:0]).shape[1:] == whole.shape[1:]


@pytest.mark.parametrize("method", ["predict", "synthetic_score"])
@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 9, 9), np.uint8),
        np.zeros((2, 8, 8), np.float32),
        np.zeros((2, 8, 8, 4), np.uint8),
        np.zeros((8, 8), np.uint8),
        np.zeros((2, 8, 8, 1, 1), np.uint8),
        [[[1, 2], [3]]],
        [np.zeros((8, 8), np.uint8), np.zeros((9, 9), np.uint8)],
        "digits.png",
    ],
    ids=["size", "dtype", "channels", "one image", "axes", "ragged", "sizes", "text"],
)
def test_wrong_images_are_refused_in_one_line(method: str, images: Any, runs: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="image") as caught:
        getattr(runs["rsmatch"], method)(images)
    assert "\n" not in str(caught.value)


def test_synthetic_scores_need_a_detector(runs: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="trained no detector"):
        runs["fixmatch"].synthetic_score(runs["fixmatch"].pool.test.images)


@pytest.mark.filterwarnings("error:.*GradScaler")
def test_loading_prints_no_warning(finished: dict[str, Path]) -> None:
    load_run(finished["rsmatch"], device="cpu")


def test_loading_changes_no_file(finished: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished["rsmatch"], folder)
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace("use_tensorboard: false", "use_tensorboard: true"))
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    load_run(str(folder), device="cpu").predict(np.zeros((1, 8, 8), np.uint8))
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_folders_that_are_not_runs_are_refused(finished: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run folder"):
        load_run(tmp_path)
    (tmp_path / "run").mkdir()
    shutil.copy(finished["rsmatch"] / "config.yaml", tmp_path / "run")
    with pytest.raises(UserError, match="has no checkpoint yet"):
        load_run(tmp_path / "run")
    for name in ("latest_model.pth", "previous_model.pth"):
        (tmp_path / "run" / name).write_bytes(b"damaged")
    with pytest.raises(UserError, match="no valid checkpoint is left"):
        load_run(tmp_path / "run")
    with pytest.raises(UserError, match="device takes auto, cpu or cuda"):
        load_run(finished["rsmatch"], device="tpu")


def test_the_public_names_exist() -> None:
    assert usb_rsmatch.HybridPool.__name__ == "HybridPool" and callable(usb_rsmatch.train)
    assert all(getattr(usb_rsmatch, name) is not None for name in usb_rsmatch.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        usb_rsmatch.nothing  # noqa: B018
