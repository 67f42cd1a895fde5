"""Images by file, folder, glob and npz: the same pixels as in a pool; unreadable files are reported and skipped."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from usb_rsmatch.data.pool.preprocessing import Pipeline
from usb_rsmatch.data.sources.source import FileSource
from usb_rsmatch.errors import UserError
from usb_rsmatch.inference.input_images import ImageList, open_images


def read(images: ImageList, pipeline: Pipeline, batch_size: int = 7) -> tuple[np.ndarray, dict[int, str]]:
    parts = list(images.batches(pipeline, batch_size))
    assert [row for part in parts for row in sorted([*part.rows.tolist(), *part.failed])] == list(range(len(images)))
    return np.concatenate([part.images for part in parts]), {k: v for part in parts for k, v in part.failed.items()}


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Image files of several sizes and modes."""
    rng = np.random.default_rng(0)
    for number, mode in enumerate(("RGB", "L", "RGBA", "P", "CMYK", "I;16", "1")):
        size = (20 + number, 15 + 2 * number)
        if mode == "I;16":
            image = Image.fromarray(rng.integers(0, 65535, size, dtype=np.uint16))
        else:
            image = Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).convert(mode)
        image.save(tmp_path / f"{number}_{mode.replace(';', '')}.{'tif' if mode in ('CMYK', 'I;16') else 'png'}")
    return tmp_path


@pytest.mark.parametrize(
    "pipeline", [Pipeline(12, 3), Pipeline(16, 1), Pipeline(12, 3, jpeg=80), Pipeline(12, 3, clear_below=90)]
)
def test_pixels_equal_those_of_a_pool(mixed: Path, pipeline: Pipeline) -> None:
    images = open_images([mixed])
    source = FileSource("reference", [Path(name) for name in images.names], np.zeros(len(images)))
    pixels, failed = read(images, pipeline)
    assert failed == {}
    np.testing.assert_array_equal(pixels, pipeline.load(source, np.arange(len(source))))


def test_files_folders_and_globs(mixed: Path, tmp_path: Path) -> None:
    files = sorted(str(path) for path in mixed.iterdir())
    assert open_images([mixed]).names == files
    assert open_images([mixed / "*.png"]).names == [name for name in files if name.endswith(".png")]
    assert open_images([files[2], mixed]).names == [files[2], *files[:2], *files[3:]]  # each file once
    (mixed / "deep" / "er").mkdir(parents=True)
    Image.new("L", (9, 9)).save(mixed / "deep" / "er" / "[odd] name?.png")
    assert open_images([f"{mixed}/**/*.png"]).names[-1].endswith("name?.png")
    assert len(open_images([mixed / "deep" / "er" / "[odd] name?.png"])) == 1  # a name, not a pattern


def test_npz_arrays_of_any_order(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (5, 3, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "some.npz", image=pixels)
    images = open_images([tmp_path / "some.npz"])
    assert images.names == [f"{tmp_path / 'some.npz'}#{n}" for n in range(5)]
    np.testing.assert_array_equal(read(images, Pipeline(8, 3), 2)[0], pixels.transpose(0, 2, 3, 1))
    assert images.native_side() == 8 and not images.is_grey()


def test_npy_arrays(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (5, 8, 8), dtype=np.uint8)
    np.save(tmp_path / "some.npy", pixels)
    images = open_images([tmp_path / "some.npy"])
    np.testing.assert_array_equal(read(images, Pipeline(8, 1), 2)[0][..., 0], pixels)
    np.save(tmp_path / "none.npy", pixels[:0])
    with pytest.raises(UserError, match="contains no images"):
        open_images([tmp_path / "none.npy"])


def test_lists_of_paths(mixed: Path, tmp_path: Path) -> None:
    (mixed / "deep").mkdir()
    Image.new("L", (9, 9)).save(mixed / "deep" / "a b.png")
    rows = ["1_L.png", str(mixed / "0_RGB.png"), "deep/a b.png"]
    for end, start in (("\n", ""), ("\r\n", "\ufeff")):  # also as Windows' editor saves text
        (mixed / "list.txt").write_bytes((start + end.join([*rows, "", ""])).encode())
        names = [str(mixed / row) for row in rows]
        assert open_images([mixed / "list.txt"]).names == names
    (mixed / "list.txt").write_text("\n".join(["gone.png", *rows, "gone/too.png"]))
    with pytest.raises(UserError, match=r"2 of the 5 files that it names do not exist, the first: gone\.png"):
        open_images([mixed / "list.txt"])
    (mixed / "list.txt").write_text("\n")
    with pytest.raises(UserError, match="contains no images"):
        open_images([mixed / "list.txt"])


def test_an_archive_is_refused(mixed: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.write(mixed / "1_L.png", "1_L.png")
    with pytest.raises(UserError, match="is an archive; unpack it"):
        open_images([tmp_path / "all.zip"])


def test_unreadable_files_are_listed_and_the_others_are_read(mixed: Path) -> None:
    (mixed / "empty.png").touch()
    (mixed / "text.jpg").write_text("no picture")
    (mixed / "gone.png").symlink_to(mixed / "nowhere.png")
    images = open_images([mixed])
    pixels, failed = read(images, Pipeline(8, 3), batch_size=3)
    bad = {Path(images.names[row]).name: reason for row, reason in failed.items()}
    assert bad.keys() == {"empty.png", "text.jpg", "gone.png"}
    assert "0 bytes" in bad["empty.png"] and "not an image" in bad["text.jpg"] and "No such file" in bad["gone.png"]
    assert len(pixels) == len(images) - 3
    assert images.native_side() == 15


@pytest.mark.parametrize("place", ["nowhere", "nowhere/*.png", ""])
def test_missing_files_and_folders_are_refused(place: str) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        open_images([place])


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="contains no images"):
        open_images([tmp_path])


def test_stopping_early_stops_the_threads(mixed: Path) -> None:
    for _ in open_images([mixed] * 1).batches(Pipeline(8, 3), 1):
        break  # this closes the generator: its threads must not hang


def test_grey_images_are_recognised(tmp_path: Path, runs: dict[str, Any]) -> None:
    np.savez(tmp_path / "grey.npz", image=runs["fixmatch"].test.images[:3])
    assert open_images([tmp_path / "grey.npz"]).is_grey()
    Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / "a.png")
    assert open_images([tmp_path / "a.png"]).is_grey()
    Image.new("RGB", (8, 8), (9, 0, 9)).save(tmp_path / "b.png")
    assert not open_images([tmp_path / "b.png"]).is_grey()
