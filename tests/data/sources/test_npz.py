"""npz files: arrays of every layout, sorted by content; invalid files are named in the error."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from usb_rsmatch.data.sources.class_names import ClassIndex
from usb_rsmatch.data.sources.dataset_registry import open_real
from usb_rsmatch.data.sources.registry import SourceRequest, open_source
from usb_rsmatch.errors import UserError

CLASSES = ("cat", "dog", "T-shirt/top")


def request() -> SourceRequest:
    return SourceRequest(ClassIndex(CLASSES), "gen")


@pytest.mark.parametrize("keys", [("images", "labels"), ("image", "label"), ("x", "y")])
@pytest.mark.parametrize("layout", ["NHWC", "NCHW", "NHW", "NHW1"])
def test_npz_files_of_every_layout(tmp_path: Path, keys: tuple[str, str], layout: str) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1 if "C" not in layout else 3), dtype=np.uint8)
    stored = {"NHWC": images, "NCHW": images.transpose(0, 3, 1, 2), "NHW": images[..., 0], "NHW1": images}[layout]
    labels = np.arange(6) % 3
    np.savez(tmp_path / "a.npz", **{keys[0]: stored, keys[1]: labels[:, None] if layout == "NCHW" else labels})
    source = open_source(f"npz:{tmp_path / 'a.npz'}", request())
    read = source.load(np.arange(6), 8, images.shape[-1])
    found = {image.tobytes(): int(label) for image, label in zip(read, source.labels, strict=True)}
    assert found == {image.tobytes(): int(label) for image, label in zip(images, labels, strict=True)}


def test_images_are_ordered_by_content(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=images)
    np.savez(tmp_path / "b.npz", images=images[::-1])
    first, second = (open_source(f"npz:{tmp_path / name}.npz", request()) for name in "ab")
    every = np.arange(9)
    assert np.array_equal(first.load(every, 8, 3), second.load(every, 8, 3))
    assert first.labels.tolist() == [-1] * 9


ZEROS = np.zeros((2, 8, 8, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": ZEROS.astype(np.float32)}, "float32, must be uint8"),
        ({"images": ZEROS[0, 0]}, "have shape"),
        ({"images": np.zeros((2, 8, 8, 5), np.uint8)}, "have shape"),
        ({"pictures": ZEROS}, "no array named images or image or x, only pictures"),
        ({"images": ZEROS, "labels": np.array([0, 3])}, "label 3 is out of range"),
        ({"images": ZEROS, "labels": np.array([0, -2])}, "label -2 is out of range"),
        ({"images": ZEROS, "labels": np.array([0])}, "labels have shape"),
        ({"images": ZEROS, "labels": np.array([0.0, 1.5])}, "must be integers"),
        ({"images": np.array([{}, {}])}, "pickled objects, which are refused"),
        ({"images": ZEROS, "labels": np.array([{}, {}])}, "pickled objects, which are refused"),
        ({"images": ZEROS[:0]}, "contains no images"),
        ({"images": ZEROS[:, :1, :1]}, "1 x 1 are too small, under 4 pixels per side"),
    ],
)
def test_an_invalid_npz_is_named_in_the_error(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(UserError, match=rf"bad\.npz.*{message}"):
        open_source(f"npz:{tmp_path / 'bad.npz'}", request())


def test_a_damaged_or_missing_npz_is_named_in_the_error(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, images=np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8))
    whole = path.read_bytes()
    middle = bytearray(whole)
    middle[len(whole) // 2] ^= 0xFF
    odd = bytearray(whole)
    odd[whole.index(b"PK\x01\x02") + 10] = 97  # a compression method that Python does not support
    for content, message in (
        (whole[: len(whole) // 2], "not an npz file"),
        (bytes(middle), "cannot be read"),
        (bytes(odd), "cannot be read"),
        (b"", "not an npz file"),
        (b"text", "not an npz file"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"a\.npz: {message}"):
            open_source(f"npz:{path}", request())
    np.save(tmp_path / "a.npy", ZEROS)
    assert len(open_source(f"npz:{tmp_path / 'a.npy'}", request())) == len(ZEROS)
    (tmp_path / "a.npy").write_bytes(b"text")
    with pytest.raises(UserError, match="cannot be read as npy"):
        open_source(f"npz:{tmp_path / 'a.npy'}", request())
    for argument in ("gone.npz", "~no such user/a.npz", "a" * 5000):
        with pytest.raises(UserError, match="no such file"):
            open_source(f"npz:{argument}", request())


def test_a_folder_of_npz_files_with_classes_and_generator(tmp_path: Path) -> None:
    """In the format of `usb-rsmatch synthesize --format npz`, whose own test reads a complete folder."""
    images = np.arange(5 * 64, dtype=np.int64).reshape(5, 8, 8, 1).astype(np.uint8)
    np.savez(tmp_path / "images-00000.npz", images=images[:3], labels=np.array([0, 1, 0]))
    np.savez(tmp_path / "images-00001.npz", images=images[3:], labels=np.array([1, 1]))
    with pytest.raises(UserError, match=r"synthesis\.json"):
        open_source(f"npz:{tmp_path}", request())
    run = {"generator": "sd14", "label_names": [request().classes.classes[1], "an unknown class"]}
    (tmp_path / "synthesis.json").write_text(json.dumps(run))
    source = open_source(f"npz:{tmp_path}", request())
    assert source.generators == ("sd14",) and sorted(source.labels.tolist()) == [-1, -1, -1, 1, 1]
    (tmp_path / "synthesis.json").write_text(json.dumps({**run, "label_names": ["cat"]}))
    with pytest.raises(UserError, match="do not belong"):
        open_source(f"npz:{tmp_path}", request())


def test_missing_permission_is_reported_differently_from_damage(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=ZEROS)
    (tmp_path / "a.npz").chmod(0)
    if os.access(tmp_path / "a.npz", os.R_OK):
        pytest.skip("this user may read every file")
    with pytest.raises(UserError, match=r"a\.npz: cannot be read \(Permission denied\)"):
        open_source(f"npz:{tmp_path / 'a.npz'}", request())


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ([0, 1, 0, 1], [0, -1], r"test\.npz: a test image has the label -1"),
        ([0, 1, 0, 10**9], [0, 1], r"train\.npz: label 1000000000 is out of range"),
        ([-1] * 4, [0, 1], r"train\.npz: .* needs images with labels"),
    ],
)
def test_invalid_labels_of_a_real_npz_are_named_in_the_error(
    tmp_path: Path, train: list[int], test: list[int], message: str
) -> None:
    for part, labels in (("train", train), ("test", test)):
        images = np.zeros((len(labels), 8, 8), dtype=np.uint8)
        np.savez(tmp_path / f"{part}.npz", images=images, labels=np.array(labels))
    with pytest.raises(UserError, match=message):
        open_real("npz", tmp_path)


def test_unnamed_arrays_and_one_hot_labels(tmp_path: Path) -> None:
    """`arr_0` and `arr_1`, as NumPy names them and ADM saves samples."""
    images = np.arange(3, dtype=np.uint8)[:, None, None, None].repeat(8, 1).repeat(8, 2).repeat(3, 3)
    for labels in (np.array([2, 0, 1]), np.eye(3)[[2, 0, 1]], np.array([2.0, 0.0, 1.0])):
        np.savez(tmp_path / "a.npz", images, labels)
        source = open_source(f"npz:{tmp_path / 'a.npz'}", request())
        order = source.load(np.arange(3), 8, 1)[:, 0, 0, 0]
        assert source.labels.tolist() == [[2, 0, 1][value] for value in order]
