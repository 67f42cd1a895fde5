"""Pools larger than memory: cached file lists, images on disk and packs leave the pool unchanged."""

from __future__ import annotations

import os
import pickle
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from usb_rsmatch.data.images import file_index, large_npz
from usb_rsmatch.data.images.image_file import StoredImages
from usb_rsmatch.data.images.lazy_images import ArrayReader, LazyImages, join, take
from usb_rsmatch.data.pool import pack
from usb_rsmatch.data.pool.pool import HybridPool
from usb_rsmatch.data.sources import npz, source
from usb_rsmatch.data.sources.npz import read_npz
from usb_rsmatch.data.views.batched import BatchedImages
from usb_rsmatch.errors import UserError
from usb_rsmatch.io import write_json

RNG = np.random.default_rng(0)


def relative_paths(root: Path) -> list[str]:
    index = file_index.file_index(root)
    return [index.place(i) for i in range(len(index))]


def paint(path: Path, value: int, side: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((side, side, 3), value, np.uint8)).save(path)


def set_old_mtimes(root: Path) -> None:
    """Set the modification times of all folders to one minute ago."""
    for path in (root, *(path for path in root.rglob("*") if path.is_dir())):
        past = time.time() - 60
        os.utime(path, (past, past))


@pytest.fixture
def cache_every_list(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Cache even short lists; returns the roots that were listed again."""
    built: list[Path] = []
    original = file_index._build

    def counting(root: Path) -> Any:
        built.append(root)
        return original(root)

    monkeypatch.setattr(file_index, "KEEP_FROM", 1)
    monkeypatch.setattr(file_index, "_build", counting)
    return built


@pytest.fixture
def all_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No images of files or archives stay in memory."""
    monkeypatch.setattr(npz, "LARGE", 0)
    monkeypatch.setattr(source, "STORED_LIMIT", 0)
    monkeypatch.setattr(source.FileSource, "resident_limit", 0)


# cached file lists ----------------------------------------------------------------------------------------------


def test_a_list_is_cached_until_a_folder_changes(tmp_path: Path, cache_every_list: list[Path]) -> None:
    root = tmp_path / "images"
    for name in ("a/1.png", "a/2 é.png", "b/c/3.png", "b-d/4.png"):
        paint(root / name, 1)
    (root / "a" / "notes.txt").write_text("no image")
    set_old_mtimes(root)
    first = relative_paths(root)
    assert first == sorted(first) and len(first) == 4
    assert relative_paths(root) == first and cache_every_list == [root]
    paint(root / "b" / "c" / "5.png", 1)
    assert relative_paths(root) == sorted([*first, "b/c/5.png"]) and len(cache_every_list) == 2
    set_old_mtimes(root)
    relative_paths(root)
    (root / "a" / "1.png").unlink()
    assert "a/1.png" not in relative_paths(root)
    set_old_mtimes(root)
    relative_paths(root)
    (root / "b" / "c").rename(root / "b" / "e")
    assert "b/e/3.png" in relative_paths(root)


def test_a_file_that_is_rewritten_in_place_is_noticed(tmp_path: Path, cache_every_list: list[Path]) -> None:
    """It changes no folder; neither the same size nor the same time alone may hide it."""
    root = tmp_path / "images"
    paint(root / "a.png", 1)
    set_old_mtimes(root)
    before = file_index.file_index(root).fingerprint
    assert file_index.file_index(root).fingerprint == before and len(cache_every_list) == 1
    state = os.stat(root / "a.png")
    os.utime(root / "a.png", ns=(state.st_atime_ns, state.st_mtime_ns + 10))
    later = file_index.file_index(root).fingerprint
    assert later != before and len(cache_every_list) == 2
    state = os.stat(root / "a.png")
    with open(root / "a.png", "ab") as file:
        file.write(b"x")
    os.utime(root / "a.png", ns=(state.st_atime_ns, state.st_mtime_ns))
    assert file_index.file_index(root).fingerprint != later and len(cache_every_list) == 3


def test_a_folder_changed_just_before_listing_is_listed_again(tmp_path: Path, cache_every_list: list[Path]) -> None:
    """A file created within one tick of the file system's clock does not change the folder's modification time."""
    paint(tmp_path / "images" / "a.png", 1)
    relative_paths(tmp_path / "images")
    before = os.stat(tmp_path / "images")
    paint(tmp_path / "images" / "b.png", 1)
    os.utime(tmp_path / "images", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert relative_paths(tmp_path / "images") == ["a.png", "b.png"]


def test_a_damaged_cache_is_rebuilt(tmp_path: Path, cache_every_list: list[Path]) -> None:
    paint(tmp_path / "images" / "a.png", 1)
    set_old_mtimes(tmp_path / "images")
    relative_paths(tmp_path / "images")
    (cached,) = (Path(os.environ["USB_RSMATCH_CACHE"]) / "index").iterdir()
    cached.write_bytes(cached.read_bytes()[:100])
    assert relative_paths(tmp_path / "images") == ["a.png"]
    assert not [path for path in (tmp_path / "images").rglob("*") if path.name != "a.png"]


# images that stay on disk -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("layout", ["NHWC", "NCHW", "NHW"])
def test_a_large_archive_is_read_in_place_or_unpacked_once(
    tmp_path: Path, save: Callable[..., None], layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = RNG.integers(0, 256, (50, 6, 5, 3), dtype=np.uint8)
    stored = {"NHWC": images, "NCHW": images.transpose(0, 3, 1, 2), "NHW": images[..., 0]}[layout]
    expected = images[..., :1] if layout == "NHW" else images
    save(tmp_path / "a.npz", label=np.arange(50) % 7, image=np.ascontiguousarray(stored))
    in_memory, labels = read_npz(tmp_path / "a.npz")
    monkeypatch.setattr(npz, "LARGE", 0)
    for _ in range(2):
        large, again = read_npz(tmp_path / "a.npz")
        assert isinstance(large, StoredImages) and isinstance(in_memory, np.ndarray)
        assert np.array_equal(again, labels) and large.shape == in_memory.shape
        rows = RNG.integers(50, size=20)
        assert np.array_equal(large[rows], in_memory[rows]) and np.array_equal(large[rows], expected[rows])
        order = large_npz.large_order(large)
        digests = large.take(order).digests_at(np.arange(50))
        assert digests is not None and sorted(digests.tolist()) == digests.tolist()
        monkeypatch.setattr(large_npz, "_read_once", None)  # the second time only the requested rows are read
    assert np.array_equal(pickle.loads(pickle.dumps(large))[rows], expected[rows])
    assert os.listdir(tmp_path) == ["a.npz"]


def test_a_damaged_large_archive_is_named_in_the_error(tmp_path: Path, all_on_disk: None) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, image=RNG.integers(0, 256, (50, 8, 8, 3), dtype=np.uint8))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.npz: cannot be read.*CRC"):
        read_npz(path)
    np.savez(path, image=np.array([{}] * 9))
    with pytest.raises(UserError, match="pickled objects"):
        read_npz(path)
    np.savez(path, image=np.zeros((5, 8, 8, 3), np.float32))
    with pytest.raises(UserError, match="float32, must be uint8"):
        read_npz(path)


def test_an_archive_truncated_during_use_is_named_in_the_error(tmp_path: Path, all_on_disk: None) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, image=np.zeros((50, 8, 8, 3), np.uint8))
    images, _ = read_npz(path)
    with open(path, "rb+") as file:
        file.truncate(2000)
    with pytest.raises(UserError, match=r"a\.npz: has become shorter"):
        images[np.array([49])]


def test_a_full_disk_is_reported_before_writing(
    tmp_path: Path, all_on_disk: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez_compressed(tmp_path / "a.npz", image=np.zeros((50, 8, 8, 3), np.uint8))
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=100))
    with pytest.raises(UserError, match=r"GiB free: free space, or set USB_RSMATCH_CACHE"):
        read_npz(tmp_path / "a.npz")


def test_lazy_images_index_like_an_array() -> None:
    first, second = (RNG.integers(0, 256, (9, 4, 4, 3), dtype=np.uint8) for _ in range(2))
    whole = np.concatenate([first, second, first[3:5]])
    lazy = LazyImages.of(ArrayReader(second), np.arange(9), (4, 4, 3))
    joined = join([first, lazy, first[3:5]])
    assert isinstance(joined, LazyImages) and joined.shape == whole.shape
    mask = whole[:, 0, 0, 0] % 2 == 0
    for key in (0, 10, -1, -2, slice(2, 15, 3), np.array([17, 3, 3, 12]), mask, np.array([], np.int64)):
        assert np.array_equal(joined[key], whole[key]), key
    assert np.array_equal(np.asarray(take(joined, np.array([11, 2]))), whole[[11, 2]])
    assert len(join([take(lazy, np.array([], np.int64)), take(lazy, np.array([], np.int64))])) == 0
    with pytest.raises(ValueError, match="different shapes"):
        join([first, second[:, :3]])


# whole pools ------------------------------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    """A folder data set of 24 px files, synthetic files and a synthetic archive."""
    for part, count in (("train", 6), ("test", 3), ("synthetic", 4)):
        for i in range(count):
            for name in ("cat", "dog"):
                path = tmp_path / part / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(RNG.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(path)
    images = RNG.integers(0, 256, (10, 24, 24, 3), dtype=np.uint8)
    np.savez(tmp_path / "edm.npz", image=images, label=np.arange(10) % 2)
    return {
        "dataset": "folder",
        "data_dir": str(tmp_path),
        "num_labels": 4,
        "validation_count": 2,
        "synthetic": [
            {"source": f"folder:{tmp_path / 'synthetic'}", "generator": "sd14"},
            {"source": f"npz:{tmp_path / 'edm.npz'}", "generator": "edm"},
        ],
    }


def contents(pool: HybridPool) -> list[tuple[str, bytes, int, bool, str]]:
    part = pool.unlabeled
    rows = zip(part.images[:], part.labels, part.is_synthetic, pool.names, strict=True)
    return [(name, image.tobytes(), int(label), bool(flag), name) for image, label, flag, name in rows]


@pytest.mark.parametrize("changes", [{}, {"img_size": 16}, {"reencode": 80}, {"include_lb_to_ulb": False}])
def test_a_pool_on_disk_equals_the_pool_in_memory(
    config: dict[str, Any], changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config |= changes
    in_memory = HybridPool.from_config(config)
    for limits in ((npz, "LARGE"), (source, "STORED_LIMIT"), (source.FileSource, "resident_limit")):
        monkeypatch.setattr(*limits, 0)
    lazy = HybridPool.from_config(config)
    assert isinstance(in_memory.unlabeled.images, np.ndarray) and isinstance(lazy.unlabeled.images, LazyImages)
    assert contents(lazy) == contents(in_memory) and lazy.provenance == in_memory.provenance
    assert lazy.manifest()["parts"].keys() == in_memory.manifest()["parts"].keys()
    assert lazy.manifest() == HybridPool.from_config(config).manifest()
    rows = np.array([0, len(lazy) - 1, 3])
    views = [BatchedImages(p.unlabeled, p.spec, 0, 0.875, torch.device("cpu")).gather(rows) for p in (in_memory, lazy)]
    assert torch.equal(*views)


def test_a_manifest_rebuilds_the_pool_elsewhere(config: dict[str, Any], tmp_path: Path, all_on_disk: None) -> None:
    first = HybridPool.from_config(config)
    write_json(tmp_path / "manifest.json", first.manifest())
    assert contents(HybridPool.from_manifest(tmp_path / "manifest.json")) == contents(first)
    moved = tmp_path / "elsewhere"
    shutil.copytree(tmp_path / "train", moved / "train")
    shutil.copytree(tmp_path / "test", moved / "test")
    again = HybridPool.from_manifest(tmp_path / "manifest.json", data_dir=str(moved))
    assert np.array_equal(again.unlabeled.images[:], first.unlabeled.images[:])
    (moved / "train" / "cat" / "0.png").unlink()
    with pytest.raises(UserError, match=r"manifest\.json: the labeled images are not those"):
        HybridPool.from_manifest(tmp_path / "manifest.json", data_dir=str(moved))
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(UserError, match="is not the manifest"):
        HybridPool.from_manifest(tmp_path / "other.json")


def test_readable_files_are_checked_once(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "KEEP_FROM", 1)
    monkeypatch.setattr(source, "SKIP_LIMIT", 0.5)
    bad = Path(config["data_dir"]) / "synthetic" / "dog" / "0.png"
    whole = bad.read_bytes()
    bad.write_bytes(b"")
    config["on_error"] = "skip"
    first = HybridPool.from_config(config)
    reads: list[str] = []
    original = source.read_image

    def counting(file: Any, name: str | None = None) -> Any:
        reads.append(str(name))
        return original(file, name)

    monkeypatch.setattr(source, "read_image", counting)
    again = HybridPool.from_config(config)
    assert list(again.manifest()["sources"][1]["skipped"]) == [str(bad)] == [name for name in reads if name != "None"]
    assert contents(again) == contents(first)
    bad.write_bytes(whole)
    assert HybridPool.from_config(config).manifest()["sources"][1]["skipped"] == {}


def test_a_packed_pool_is_equal_and_reads_no_file_again(
    config: dict[str, Any], all_on_disk: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = contents(HybridPool.from_config(config))
    packed = HybridPool.from_config(SimpleNamespace(**config), pack=True)
    assert contents(packed) == plain
    monkeypatch.setattr(source.FileSource, "load", None)
    monkeypatch.setattr(pack, "_make", None)
    again = HybridPool.from_config(config)
    assert contents(again) == plain and again.manifest() == packed.manifest()
    every = sorted(Path(config["data_dir"]).rglob("*.*"))
    assert {path.suffix for path in every} == {".png", ".npz"}  # no new file next to the data


def test_a_pack_is_ignored_when_a_file_has_changed(config: dict[str, Any]) -> None:
    HybridPool.from_config(SimpleNamespace(**config), pack=True)
    path = Path(config["data_dir"]) / "synthetic" / "dog" / "0.png"
    paint(path, 77, side=40)
    pool = HybridPool.from_config(config)
    row = list(pool.names).index(str(path))
    assert (pool.unlabeled.images[row] == 77).all()


def test_an_unreadable_file_stops_packing_and_leaves_no_pack(config: dict[str, Any], all_on_disk: None) -> None:
    bad = Path(config["data_dir"]) / "synthetic" / "dog" / "0.png"
    bad.write_bytes(bad.read_bytes()[:40])
    with pytest.raises(UserError, match=r"dog/0\.png: cannot be read"):
        HybridPool.from_config(SimpleNamespace(**config), pack=True)
    packs = Path(os.environ["USB_RSMATCH_CACHE"]) / "packs"
    assert all("synthetic" not in path.name for path in packs.iterdir())
    assert not list(packs.glob(".*"))


def test_a_copied_test_file_is_rejected_without_decoding_all(config: dict[str, Any], all_on_disk: None) -> None:
    root = Path(config["data_dir"])
    (root / "synthetic" / "dog" / "copy.png").write_bytes((root / "test" / "cat" / "1.png").read_bytes())
    for _ in range(2):  # detected, then read from the cache
        with pytest.raises(UserError, match=r"copy\.png: the same image is in the test set"):
            HybridPool.from_config(config)
    (root / "synthetic" / "dog" / "copy.png").unlink()
    (root / "train" / "dog" / "copy.png").write_bytes((root / "test" / "cat" / "1.png").read_bytes())
    assert HybridPool.from_config(config).duplicates == 1


def test_a_synthetic_copy_in_an_archive_is_rejected(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(config["data_dir"])
    with Image.open(root / "test" / "dog" / "2.png") as image:
        pixels = np.asarray(image)
    np.savez(root / "edm.npz", image=np.stack([255 - pixels, pixels]), label=np.array([0, 1]))
    monkeypatch.setattr(npz, "LARGE", 0)
    monkeypatch.setattr(source, "STORED_LIMIT", 0)
    with pytest.raises(UserError, match=r"edm\.npz, image 1: the same image is in the test set"):
        HybridPool.from_config(config)


def test_zip_members_with_extra_fields_are_read(tmp_path: Path, all_on_disk: None) -> None:
    """Other programs write extra fields before the data of a member."""
    images = RNG.integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as whole, whole.open("image.npy", "w", force_zip64=True) as stream:
        np.save(stream, images)  # `force_zip64` writes an extra field
    found, _ = read_npz(path)
    assert np.array_equal(found[np.arange(5)], images)
