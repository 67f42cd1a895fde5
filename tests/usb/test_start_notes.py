"""What a training says of its pool before the first step, on small sets of class folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from usb_rsmatch.data.pool.pool import HybridPool
from usb_rsmatch.errors import UserError
from usb_rsmatch.usb.start_notes import refuse_unlearnable, start_notes
from usb_rsmatch.usb.training import train

CLASSES = ("left", "right")


def write(root: Path, part: str, count: int, seed: int, size: tuple[int, int] = (12, 12)) -> None:
    rng = np.random.default_rng(seed)
    for name in CLASSES:
        (root / part / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / part / name / f"{i:03}.png")


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    write(tmp_path, "train", 12, 0)
    write(tmp_path, "Test", 4, 1)
    return tmp_path


def pool(root: Path, **keys: Any) -> HybridPool:
    return HybridPool.from_config({"dataset": "folder", "data_dir": str(root), "num_labels": 4, **keys})


def test_views_are_stated_and_follow_the_keys(folders: Path) -> None:
    assert start_notes(pool(folders)) == ["images: 12 x 12 px, colour, mirrored at random (key flip)"]
    plain = pool(folders, flip=False, mean=[0.1, 0.2, 0.3], std=[0.5, 0.5, 0.5])
    assert "not mirrored" in start_notes(plain)[0]
    assert plain.manifest()["view"] == {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.5], "flip": False}
    with pytest.raises(UserError, match="mean"):
        pool(folders, mean=[0.5])


def test_repeated_images_are_named(folders: Path) -> None:
    data = (folders / "train" / "left" / "000.png").read_bytes()
    (folders / "train" / "right" / "copy.png").write_bytes(data)
    (folders / "Test" / "left" / "copy.png").write_bytes(data)
    notes = pool(folders).notes
    assert any("also in the test set: 2" in note for note in notes)
    assert any("equal real images with two classes: 1, the first: " in note and "copy.png" in note for note in notes)


def test_the_commonest_size_counts_and_others_are_named(folders: Path) -> None:
    Image.new("RGB", (5, 6)).save(folders / "train" / "left" / "000.png")
    built = pool(folders)
    assert built.unlabeled.images.shape[1:] == (12, 12, 3)
    assert any("96 % of the images are 12 x 12 px, the smallest 5 x 6" in note for note in built.notes)
    assert any("4 % of the images are not square, such as 5 x 6 px; they are cropped" in note for note in built.notes)


def test_unlabelled_images_have_a_folder_of_their_own(folders: Path) -> None:
    (folders / "unlabeled").mkdir()
    for i in range(3):
        Image.new("RGB", (12, 12), (i, 7, 9)).save(folders / "unlabeled" / f"{i}.png")
    built = pool(folders)
    assert (built.unlabeled.labels < 0).sum() == 3 and len(built.unlabeled) == 27
    assert built.provenance == {"real": 24, "synthetic": 0, "unknown": 3, "by_generator": {}}


def test_images_outside_of_the_class_folders_are_refused(folders: Path) -> None:
    Image.new("RGB", (12, 12)).save(folders / "train" / "loose.png")
    with pytest.raises(UserError, match=r"1 images lie in no class folder, the first: loose\.png"):
        pool(folders)


@pytest.mark.parametrize(("name", "kind"), [("a.HEIC", r"1 \.heic"), ("a", "1 files without suffix")])
def test_a_class_of_unread_files_is_refused(folders: Path, name: str, kind: str) -> None:
    (folders / "train" / "up").mkdir()
    (folders / "train" / "up" / name).write_bytes(b"x")
    with pytest.raises(UserError, match=f"the class folder 'up' has only {kind}"):
        pool(folders)


def test_metadata_gives_the_classes_of_a_real_data_set(folders: Path) -> None:
    for part in ("train", "Test"):
        root = folders / part
        places = sorted(path.relative_to(root) for path in root.rglob("*.png"))
        flat = []
        for number, place in enumerate(places):
            (root / place).rename(root / f"{number}.png")
            flat.append(f"{number}.png,{place.parts[0]}")
        (root / "metadata.csv").write_text("\n".join(["file_name,label", *flat]))
    built = pool(folders)
    assert built.classes == CLASSES and np.bincount(built.test.labels).tolist() == [4, 4]
    (folders / "train" / "right" / "x.png").write_bytes((folders / "train" / "0.png").read_bytes())
    lines = (folders / "train" / "metadata.csv").read_text() + "\nright/x.png,left"
    (folders / "train" / "metadata.csv").write_text(lines)
    with pytest.raises(UserError, match=r"right/x\.png has the class 'left' in the metadata and lies in the folder"):
        pool(folders)


def test_folders_that_look_identical_are_refused(folders: Path) -> None:
    for name in ("\u00e9", "e\u0301"):
        (folders / "train" / name).mkdir()
        Image.new("RGB", (12, 12)).save(folders / "train" / name / "a.png")
    with pytest.raises(UserError, match="two class folders are both displayed as"):
        pool(folders)


def test_an_algorithm_that_needs_every_class_refuses_an_empty_one(folders: Path) -> None:
    from argparse import Namespace

    built = pool(folders, num_labels=2, lb_imb_ratio=10)  # one image of the first class, none of the second
    assert any("1 of 2 classes have no labelled image: right" in note for note in built.notes)
    refuse_unlearnable(Namespace(imb_algorithm=None), built)
    with pytest.raises(UserError, match="imb_algorithm: saw needs labelled images of every class, 1 have none"):
        refuse_unlearnable(Namespace(imb_algorithm="saw"), built)


def test_a_shortcut_is_named_before_training_and_in_the_result(folders: Path) -> None:
    for i in range(24):
        rng = np.random.default_rng(100 + i)
        (folders / "generated").mkdir(exist_ok=True)
        pixels = rng.integers(0, 64, (12, 12, 3), dtype=np.uint8) * 4  # fewer grey levels
        Image.fromarray(pixels).save(folders / "generated" / f"{i}.png")
    lines: list[str] = []
    config = {
        "algorithm": "rsmatch", "dataset": "folder", "data_dir": str(folders), "num_labels": 4, "net": "small_wrn_16_2",
        "synthetic": [{"source": f"flat:{folders / 'generated'}"}], "save_dir": str(folders / "runs"), "save_name": "a",
        "num_train_iter": 2, "epoch": 1, "num_eval_iter": 2, "num_log_iter": 1, "batch_size": 4, "uratio": 2,
    }  # fmt: skip
    result = train(config, note=lines.append)
    assert any(line.startswith("warning: grey levels in use alone tells real from synthetic") for line in lines)
    assert any("grey levels in use" in line for line in result["shortcuts"])
