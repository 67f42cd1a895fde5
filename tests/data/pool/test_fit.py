"""The key `fit`: images that are not square become square in the same way in every part, at eval and at predict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from usb_rsmatch import load_run
from usb_rsmatch.data.images.decode import fit, fit_array
from usb_rsmatch.data.pool.pool import HybridPool
from usb_rsmatch.inference.evaluate import evaluate
from usb_rsmatch.inference.input_images import open_images
from usb_rsmatch.usb.training import train

SIDE = 8
RNG = np.random.default_rng(0)


def reference(image: Image.Image, how: str) -> np.ndarray:
    """The image by Pillow's own functions and by slices."""
    if how == "pad":
        return np.asarray(ImageOps.pad(image, (SIDE, SIDE), Image.Resampling.BILINEAR))
    if how == "crop":
        pixels = np.asarray(image)
        side = min(pixels.shape[:2])
        top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
        image = Image.fromarray(pixels[top : top + side, left : left + side])
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR))


@pytest.mark.parametrize("how", ["crop", "pad", "squash"])
@pytest.mark.parametrize("shape", [(10, 20), (20, 10), (16, 16), (8, 8), (4, 8), (32, 4), (9, 12)])
def test_pixels_equal_pillows(how: str, shape: tuple[int, int]) -> None:
    colour = RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)
    expected = reference(Image.fromarray(colour), how)
    assert np.array_equal(fit(Image.fromarray(colour), SIDE, 3, how), expected)
    assert np.array_equal(fit_array(colour[None], SIDE, 3, how)[0], expected)
    grey = Image.fromarray(colour[..., 0])
    assert np.array_equal(fit(grey, SIDE, 1, how)[..., 0], reference(grey, how))


def test_padding_keeps_the_whole_image_and_adds_black() -> None:
    white = Image.new("RGB", (40, 20), "white")
    padded = fit(white, 8, 3, "pad")[..., 0]
    assert padded.tolist() == [[0] * 8] * 2 + [[255] * 8] * 4 + [[0] * 8] * 2


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for part, count in (("train", 6), ("test", 3), ("made", 4)):
        for name in ("left", "right"):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = RNG.integers(0, 256, (10, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / name / f"{i}.png")
    (tmp_path / "unlabeled").mkdir()
    Image.fromarray(RNG.integers(0, 256, (20, 10, 3), dtype=np.uint8)).save(tmp_path / "unlabeled" / "a.png")
    return tmp_path


def keys(root: Path, how: str) -> dict[str, Any]:
    source = {"source": f"folder:{root / 'made'}"}
    return {
        "dataset": "folder",
        "data_dir": str(root),
        "num_labels": 4,
        "img_size": SIDE,
        "fit": how,
        "synthetic": [source],
    }


@pytest.mark.parametrize("how", ["crop", "pad", "squash"])
@pytest.mark.parametrize("pack", [False, True])
def test_every_part_of_a_pool(folders: Path, how: str, pack: bool) -> None:
    pool = HybridPool.from_config(keys(folders, how), pack=pack)
    for part in (pool.labeled, pool.unlabeled, pool.test):
        assert part.names is not None
        expected = [reference(Image.open(part.names[i]), how) for i in range(len(part))]
        assert np.array_equal(part.images[:], np.stack(expected))
    assert pool.unlabeled.is_synthetic.sum() == 8 and (pool.unlabeled.labels < 0).sum() == 1
    done = {"crop": "cropped to their centre", "pad": "padded with black", "squash": "squashed"}[how]
    notes = [note for note in pool.notes if "not square" in note]
    assert len(notes) == 4 and all(note.endswith(f"they are {done} (key fit)") for note in notes)
    made = f"{folders / 'made'}: 100 % of the images are not square, such as 16 x 10 px"
    assert any(note.startswith(made) for note in notes)


def test_packs_of_two_ways_are_two_packs(folders: Path) -> None:
    first, second = (HybridPool.from_config(keys(folders, how), pack=True) for how in ("pad", "crop"))
    assert not np.array_equal(first.test.images[:], second.test.images[:])


def test_a_run_remembers_it(folders: Path) -> None:
    run_keys = {
        "algorithm": "fixmatch", "net": "small_wrn_10_1", "num_train_iter": 2, "epoch": 1, "num_eval_iter": 2,
        "num_log_iter": 2, "batch_size": 4, "uratio": 1, "num_workers": 0, "device": "cpu", "rs_loader": "batched",
        "save_dir": str(folders / "runs"), "save_name": "run",
    }  # fmt: skip
    train({**keys(folders, "pad"), **run_keys}, note=lambda line: None)
    run = load_run(folders / "runs" / "run", device="cpu")
    images = open_images([folders / "test"])
    expected = np.stack([reference(Image.open(name), "pad") for name in images.names])
    assert np.array_equal(run.test.images[:], expected)
    assert np.array_equal(next(images.batches(run.pipeline)).images, expected)
    assert evaluate(run, str(folders / "test")).metrics == pytest.approx(evaluate(run).metrics)
