"""Commands on a run whose data has moved: the same figures from the new place, and no figure from other classes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from usb_rsmatch.cli import main
from usb_rsmatch.usb.training import train

CLASSES = ("dark", "light", "striped")


def write_part(root: Path, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for number, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(80 * number, 80 * number + 60, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i:02}.png")


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, float]:
    """A run folder, the new folder of its data, and the accuracy of the run."""
    root = tmp_path_factory.mktemp("moved")
    write_part(root / "old" / "train", 6, 0)
    write_part(root / "old" / "test", 5, 1)
    result = train(
        {
            "algorithm": "rsmatch", "dataset": "folder", "data_dir": str(root / "old"), "num_labels": 6,
            "net": "small_wrn_10_1", "num_train_iter": 4, "epoch": 1, "num_eval_iter": 4, "num_log_iter": 4,
            "batch_size": 4, "uratio": 2, "num_workers": 0, "device": "cpu", "rs_loader": "batched",
            "synthetic": [{"source": f"flat:{root / 'old' / 'test' / 'dark'}"}], "synthetic_count": 0,
            "save_dir": str(root / "runs"), "save_name": "run",
        },
        note=lambda line: None,
    )  # fmt: skip
    (root / "old").rename(root / "new")
    return root / "runs" / "run", root / "new", result["accuracy"]["last"]


def test_eval_reads_the_data_from_its_new_folder(
    moved: tuple[Path, Path, float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, new, accuracy = moved
    assert main(["eval", str(run)]) == 2
    err = capsys.readouterr().err
    assert "give its folder by --data_dir" in err and len(err.splitlines()) == 1
    assert main(["eval", str(run), "--data_dir", str(new), "--out", str(tmp_path / "a.json")]) == 0
    assert capsys.readouterr().err == ""
    assert json.loads((tmp_path / "a.json").read_text())["metrics"]["top-1-acc"] == pytest.approx(accuracy)


def test_a_run_without_manifest_needs_its_data_and_finds_it(moved: tuple[Path, Path, float], tmp_path: Path) -> None:
    run, new, _ = moved
    bare = shutil.copytree(run, tmp_path / "bare")
    (bare / "manifest.json").unlink()
    images = str(new / "test")
    for words in (
        ["predict", images, "--run", str(bare), "--out", str(tmp_path / "a.csv")],
        ["audit", images, "--run", str(bare), "--out", str(tmp_path / "b.csv")],
        ["export", str(bare), "--format", "safetensors", "--out", str(tmp_path / "c.safetensors")],
    ):
        assert main(words) == 2
        assert main([*words, "--data-dir", str(new)]) == 0
        assert Path(words[-1]).exists()


def test_other_test_images_are_noted_and_other_classes_refused(
    moved: tuple[Path, Path, float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, new, _ = moved
    other = shutil.copytree(new, tmp_path / "other")
    (other / "test" / "dark" / "00.png").unlink()
    assert main(["eval", str(run), "--data_dir", str(other)]) == 0
    assert "note: the test images are not those of the run's manifest.json" in capsys.readouterr().err
    (other / "train" / "dark").rename(other / "train" / "zebra")  # the numbers of all classes would be others
    (other / "test" / "dark").rename(other / "test" / "zebra")
    assert main(["eval", str(run), "--data_dir", str(other)]) == 2
    err = capsys.readouterr().err
    assert "'dark' is missing" in err and len(err.splitlines()) == 1


def test_similar_class_names_are_noted_by_eval(
    moved: tuple[Path, Path, float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, new, _ = moved
    shutil.copytree(new / "test", tmp_path / "data")
    (tmp_path / "data" / "dark").rename(tmp_path / "data" / "Dark")
    assert main(["eval", str(run), "--data", str(tmp_path / "data")]) == 0
    assert "'Dark' is read as the class 'dark'" in capsys.readouterr().err
