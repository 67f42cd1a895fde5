"""Folders as users have them, through `usb-rsmatch train`: all images labelled, and one line for what cannot work."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from usb_rsmatch.cli import main

COUNTS = {"train": {"few": 3, "many": 8}, "test": {"few": 2, "many": 2}}


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for part, counts in COUNTS.items():
        for number, (name, count) in enumerate(counts.items()):
            (tmp_path / "data" / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(100 * number, 100 * number + 90, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / part / name / f"{i}.png")
    (tmp_path / "base.yaml").write_text(
        f"{{algorithm: fixmatch, dataset: folder, data_dir: {tmp_path / 'data'}, num_labels: 4, net: small_wrn_10_1, "
        "num_train_iter: 4, num_eval_iter: 4, num_log_iter: 4, batch_size: 4, num_workers: 0, device: cpu, "
        f"rs_loader: batched, save_dir: {tmp_path / 'runs'}, save_name: run}}"
    )
    return tmp_path


def train(root: Path, *words: str) -> int:
    return main(["train", "--c", str(root / "base.yaml"), *words])


def manifest(root: Path) -> dict[str, dict[str, object]]:
    parts: dict[str, dict[str, object]] = json.loads((root / "runs" / "run" / "manifest.json").read_text())["parts"]
    return parts


@pytest.mark.parametrize("algorithm", ["fixmatch", "rsmatch"])
def test_all_images_are_labelled(folders: Path, algorithm: str) -> None:
    """The unlabelled pool is then the labelled images and the further sources."""
    made = folders / "made"
    made.mkdir()
    for i in range(5):
        Image.new("RGB", (8, 8), (i, 2 * i, 90)).save(made / f"{i}.png")
    words = ("--synthetic", f"[{{source: 'flat:{made}'}}]", "--algorithm", algorithm)
    assert train(folders, "--num_labels", "all", *words) == 0
    parts = manifest(folders)
    assert parts["labeled"]["by_class"] == COUNTS["train"]
    assert parts["unlabeled"]["count"] == 16 and parts["unlabeled"]["by_generator"] == {"made": 5}
    result = json.loads((folders / "runs" / "run" / "result.json").read_text())
    assert result["num_labels"] == 11 and result["iterations"] == 4
    assert main(["eval", str(folders / "runs" / "run")]) == 0
    assert train(folders, "--num_labels", "all", *words) == 0  # the finished run, not another configuration


def test_all_images_but_the_validation_images_are_labelled(folders: Path) -> None:
    assert train(folders, "--num_labels", "all", "--validation_count", "4") == 0
    parts = manifest(folders)
    assert parts["labeled"]["count"] == parts["unlabeled"]["count"] == 7 and parts["validation"]["count"] == 4


def test_folders_of_other_case_and_further_ones(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folders / "data" / "test").rename(folders / "data" / "Test")
    (folders / "data" / "valid" / "few").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folders / "data" / "valid" / "few" / "0.png")
    assert train(folders) == 0
    err = capsys.readouterr().err
    assert f"note: {folders / 'data' / 'valid'}: is not read, Test/ is the test part" in err
    assert manifest(folders)["test"]["count"] == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num_labels", "some"], "num_labels takes a number or all, not 'some'"),
        (["--num_labels", "all", "--lb_imb_ratio", "5"], "num_labels: all leaves nothing to choose by lb_imb_ratio"),
        (["--num_labels", "all", "--include_lb_to_ulb", "false"], "the pool has no unlabelled image: set include_lb"),
        (["--include_lb_to_ulb", "false", "--real_count", "0"], "the pool has no unlabelled image: set include_lb"),
        (["--real_count", "0"], "the pool has no unlabelled image: set include_lb"),
        (["--net", "vit_tiny_patch2_32"], "vit_tiny_patch2_32 takes images of 32 px, these have 8; set img_size: 32"),
        (
            ["--net", "vit_tiny_patch2_32", "--algorithm", "rsmatch"],
            "vit_tiny_patch2_32 takes images of 32 px, these have 8; set img_size: 32",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_trained_is_refused_in_one_line(
    folders: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(folders, *words) == 2
    err = capsys.readouterr().err
    assert message in err and len(err.splitlines()) == 1
    assert not (folders / "runs").exists()


def test_class_folders_that_look_identical_are_refused(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("caf\u00e9", "cafe\u0301"):
        (folders / "data" / "train" / name).mkdir()
        Image.new("RGB", (8, 8)).save(folders / "data" / "train" / name / "0.png")
    assert train(folders) == 2
    err = capsys.readouterr().err
    assert "two class folders are both displayed as 'café', with different Unicode forms; merge them" in err
    assert len(err.splitlines()) == 1
