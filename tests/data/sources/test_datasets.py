"""Real data sets are read from files in their original layouts, without a network."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import socket
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from sklearn.datasets import load_digits

from usb_rsmatch.data.pool.pool import HybridPool
from usb_rsmatch.data.sources import class_folders, dataset_registry, digits
from usb_rsmatch.data.sources.dataset_registry import RealData, open_real
from usb_rsmatch.data.sources.idx import read_idx
from usb_rsmatch.data.sources.source import Source
from usb_rsmatch.errors import UserError

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test of this file uses the network: name resolution fails, as on a machine without one."""

    def refuse(*args: object, **options: object) -> None:
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def paint(path: Path, value: int, size: tuple[int, int] = (16, 16)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


def values(source: Source) -> list[int]:
    return source.load(np.arange(len(source)), 8, 1)[:, 0, 0, 0].tolist()


def write_idx(path: Path, array: np.ndarray, packed: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()
    path.with_name(path.name + (".gz" if packed else "")).write_bytes(gzip.compress(data) if packed else data)


def test_digits_equal_those_of_scikit_learn() -> None:
    data = open_real("digits", "nowhere")
    images = np.concatenate([source.load(np.arange(len(source)), 8, 1) for source in (data.train, data.test)])
    expected = np.rint(load_digits().images * 255 / 16).astype(np.uint8)
    assert sorted(map(bytes, images)) == sorted(map(bytes, expected))
    assert (len(data.train), len(data.test), data.spec.flip) == (1438, 359, False)
    share = np.bincount(data.test.labels) / np.bincount(load_digits().target)
    assert np.abs(share - 0.2).max() < 0.005
    train = data.train.load(np.arange(len(data.train)), 8, 1) / 255
    assert data.spec.mean[0] == pytest.approx(train.mean(), abs=2e-3)
    assert data.spec.std[0] == pytest.approx(train.std(), abs=2e-3)


@pytest.mark.parametrize("place", ["FashionMNIST/raw", "fashionmnist/FashionMNIST/raw", "fashionmnist", "."])
@pytest.mark.parametrize("packed", [True, False])
def test_fashionmnist_from_idx_files(tmp_path: Path, place: str, packed: bool) -> None:
    images = {part: RNG.integers(0, 256, (n, 28, 28), dtype=np.uint8) for part, n in (("train", 20), ("t10k", 10))}
    labels = {part: (np.arange(len(array)) % 10).astype(np.uint8) for part, array in images.items()}
    for part in images:
        write_idx(tmp_path / place / f"{part}-images-idx3-ubyte", images[part], packed)
        write_idx(tmp_path / place / f"{part}-labels-idx1-ubyte", labels[part], packed)
    data = open_real("fashionmnist", tmp_path)
    assert np.array_equal(data.train.load(np.arange(20), 28, 1)[..., 0], images["train"])
    assert np.array_equal(data.test.load(np.arange(10), 28, 1)[..., 0], images["t10k"])
    assert data.test.labels.tolist() == list(range(10)) and data.spec.flip


def test_fashionmnist_from_the_debian_package() -> None:
    if not Path("/usr/share/datasets/fashion-mnist").is_dir():
        pytest.skip("the Debian package dataset-fashion-mnist is not installed")
    data = open_real("fashionmnist", "nowhere")
    assert (
        np.bincount(data.train.labels).tolist() == [6000] * 10 and np.bincount(data.test.labels).tolist() == [1000] * 10
    )
    images = data.train.load(np.arange(60000), 28, 1) / np.float32(255)
    assert data.spec.mean[0] == pytest.approx(images.mean(), abs=1e-4)
    assert data.spec.std[0] == pytest.approx(images.std(), abs=1e-4)


def test_a_damaged_idx_file_is_named_in_the_error(tmp_path: Path) -> None:
    write_idx(tmp_path / "a", RNG.integers(0, 256, (5, 4, 4), dtype=np.uint8), packed=False)
    whole = (tmp_path / "a").read_bytes()
    for content in (whole[:-1], whole[:3], b"", b"\0\0\x0d" + whole[3:]):
        (tmp_path / "a").write_bytes(content)
        with pytest.raises(UserError, match="a: "):
            read_idx(tmp_path / "a")
    (tmp_path / "a.gz").write_bytes(gzip.compress(whole)[:-10])
    with pytest.raises(UserError, match=r"a\.gz: cannot be read"):
        read_idx(tmp_path / "a.gz")


@pytest.mark.parametrize("root", ["tiny-imagenet-200", "tinyimagenet", "."])
def test_tinyimagenet_in_its_original_layout(tmp_path: Path, root: str) -> None:
    base = tmp_path / root
    for c, wnid in enumerate(("n01", "n02")):
        for i in range(3):
            paint(base / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", 10 * c + i)
    for i, wnid in enumerate(("n02", "n01", "n02")):
        paint(base / "val" / "images" / f"val_{i}.JPEG", 100 + i)
        with open(base / "val" / "val_annotations.txt", "a") as file:
            file.write(f"val_{i}.JPEG\t{wnid}\t0\t0\t62\t62\n")
    (base / "words.txt").write_text("n01\tgoldfish, Carassius\nn02\tbee, goldfish\nn99\towl\n")
    data = open_real("tinyimagenet", tmp_path)
    assert (data.classes, data.spec.img_size) == (("n01", "n02"), 64)
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1] and values(data.train) == [0, 1, 2, 10, 11, 12]
    assert data.test.labels.tolist() == [1, 0, 1] and values(data.test) == [100, 101, 102]
    assert data.aliases == {"Carassius": 0, "bee": 1}


def test_tinyimagenet_with_validation_images_in_class_folders(tmp_path: Path) -> None:
    for wnid in ("n01", "n02"):
        paint(tmp_path / "train" / wnid / "images" / "a.JPEG", 1)
        paint(tmp_path / "val" / wnid / "images" / "b.JPEG", 2)
    assert open_real("tinyimagenet", tmp_path).test.labels.tolist() == [0, 1]


def test_tinyimagenet_with_a_damaged_table(tmp_path: Path) -> None:
    paint(tmp_path / "train" / "n01" / "images" / "a.JPEG", 1)
    for text, message in (("", "must contain"), ("a.JPEG n01\n", "must contain"), ("a.JPEG\tn02\n", "n02")):
        (tmp_path / "val").mkdir(exist_ok=True)
        (tmp_path / "val" / "val_annotations.txt").write_text(text)
        with pytest.raises(UserError, match=message):
            open_real("tinyimagenet", tmp_path)


@pytest.mark.parametrize("name", ["imagenet", "imagenet127"])
def test_imagenet_and_imagenet127(tmp_path: Path, name: str) -> None:
    for wnid in ("n01", "n02"):
        paint(tmp_path / name / "train" / wnid / "a.JPEG", 1, (20, 12))
        paint(tmp_path / name / "val" / wnid / "b.JPEG", 2)
    (tmp_path / name / "LOC_synset_mapping.txt").write_text("n01 tench, Tinca tinca\nn02 goldfish\n")
    data = open_real(name, tmp_path)
    assert data.train.load(np.arange(2), data.spec.img_size, 3).shape == (2, 224, 224, 3)
    assert data.aliases == {"tench": 0, "Tinca tinca": 0, "goldfish": 1}
    assert data.proportional == (name == "imagenet127")


@pytest.mark.parametrize("name", ["imagenet", "tinyimagenet", "folder"])
def test_a_missing_folder_is_named_in_the_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="train"):
        open_real(name, tmp_path)
    paint(tmp_path / "train" / "x" / "images" / "a.png", 1)
    paint(tmp_path / "train" / "x" / "a.png", 1)
    with pytest.raises(UserError, match="val: no such folder"):
        open_real(name, tmp_path)


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_a_users_image_folders(tmp_path: Path, held_out: str) -> None:
    for c in ("b", "a"):
        for i in range(2):
            paint(tmp_path / "train" / c / f"{i}.bmp", 10 * ord(c) % 200 + i, (24, 20))
        paint(tmp_path / held_out / c / "t.png", ord(c))
    data = open_real("folder", tmp_path)
    assert (data.classes, data.spec.img_size, len(data.train)) == (("a", "b"), 20, 4)
    assert values(data.test) == [ord("a"), ord("b")]
    paint(tmp_path / held_out / "c" / "t.png", 1)
    with pytest.raises(UserError, match="folder 'c' is not one of the 2 training classes"):
        open_real("folder", tmp_path)


def test_a_users_npz_files(tmp_path: Path) -> None:
    for part, n in (("train", 12), ("test", 4)):
        images = RNG.integers(0, 256, (n, 8, 8), dtype=np.uint8)
        np.savez(tmp_path / f"{part}.npz", images=images, labels=np.arange(n) % 4)
    data = open_real("npz", tmp_path)
    assert (data.classes, data.spec.channels, data.spec.img_size) == (("0", "1", "2", "3"), 1, 8)
    np.savez(tmp_path / "test.npz", images=images, labels=np.arange(4) + 1)
    with pytest.raises(UserError, match="labels begin at 1"):
        open_real("npz", tmp_path)


@pytest.mark.parametrize("keys", [("x_{}", "y_{}"), ("{}_images", "{}_labels")])
def test_one_npz_file_with_the_keys_of_keras_or_medmnist(tmp_path: Path, keys: tuple[str, str]) -> None:
    arrays, expected = {}, {}
    for part, n in (("train", 12), ("test", 4)):
        arrays[keys[0].format(part)] = RNG.integers(0, 256, (n, 8, 8), dtype=np.uint8)
        expected[part] = np.arange(n) % 4
        arrays[keys[1].format(part)] = expected[part][:, None]
    np.savez(tmp_path / "own.npz", **arrays)
    for place in (tmp_path, tmp_path / "own.npz"):
        data = open_real("npz", place)
        assert data.train.labels.tolist() == expected["train"].tolist()
        assert data.test.labels.tolist() == expected["test"].tolist()


# --- torchvision's data sets, from generated files: torchvision is patched to expect their checksums


def write_cifar(root: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    from torchvision.datasets import CIFAR10, CIFAR100

    kind, folder, key, names = {
        "cifar10": (CIFAR10, "cifar-10-batches-py", "labels", [f"c{i}" for i in range(10)]),
        "cifar100": (CIFAR100, "cifar-100-python", "fine_labels", [f"c{i}" for i in range(100)]),
    }[name]
    base = root / folder
    base.mkdir(parents=True)

    def batch(file: str, content: dict[str, object]) -> tuple[str, str]:
        data = pickle.dumps(content)
        (base / file).write_bytes(data)
        return file, hashlib.md5(data).hexdigest()

    def images(n: int) -> dict[str, object]:
        return {
            "data": RNG.integers(0, 256, (n, 3072), dtype=np.uint8),
            key: [i % len(names) for i in range(n)],
        }

    monkeypatch.setattr(kind, "train_list", [list(batch("data_batch_1", images(200)))])
    monkeypatch.setattr(kind, "test_list", [list(batch("test_batch", images(100)))])
    meta = {"key": kind.meta["key"], "filename": "meta"}
    monkeypatch.setattr(kind, "meta", {**meta, "md5": batch("meta", {meta["key"]: names})[1]})


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("place", ["", "own"])
def test_cifar_from_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, place: str) -> None:
    write_cifar(tmp_path / (name if place else ""), monkeypatch, name)
    data = open_real(name, tmp_path)
    assert data.train.load(np.arange(200), 32, 3).shape == (200, 32, 32, 3)
    assert data.classes[:2] == ("c0", "c1") and len(data.test) == 100 and data.spec.flip


def test_svhn_includes_its_extra_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import SVHN

    listed = {}
    for part, n in (("train", 20), ("extra", 30), ("test", 10)):
        path = tmp_path / f"{part}_32x32.mat"
        labels = np.arange(n) % 10 + 1  # the files use label 10 for the digit 0
        savemat(path, {"X": RNG.integers(0, 256, (32, 32, 3, n), dtype=np.uint8), "y": labels[:, None]})
        listed[part] = ["", path.name, hashlib.md5(path.read_bytes()).hexdigest()]
    monkeypatch.setattr(SVHN, "split_list", listed)
    data = open_real("svhn", tmp_path)
    assert (len(data.train), len(data.test), data.classes) == (50, 10, tuple("0123456789"))


def test_stl10_includes_unlabelled_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import STL10

    base = tmp_path / "stl10" / "stl10_binary"
    base.mkdir(parents=True)
    sums = {}
    for file, n in (("train_X", 20), ("test_X", 10), ("unlabeled_X", 15)):
        sums[file] = RNG.integers(0, 256, (n, 3, 96, 96), dtype=np.uint8).tobytes()
    sums |= {"train_y": bytes(i % 10 + 1 for i in range(20)), "test_y": bytes(range(1, 11))}
    for file, content in sums.items():
        (base / f"{file}.bin").write_bytes(content)
    (base / "class_names.txt").write_text("\n".join(f"c{i}" for i in range(10)))

    def listed(*files: str) -> list[list[str]]:
        return [[f"{file}.bin", hashlib.md5(sums[file]).hexdigest()] for file in files]

    monkeypatch.setattr(STL10, "train_list", listed("train_X", "train_y", "unlabeled_X"))
    monkeypatch.setattr(STL10, "test_list", listed("test_X", "test_y"))
    data = open_real("stl10", tmp_path)
    assert (len(data.train), len(data.test)) == (20, 10)
    assert data.unlabeled is not None and data.unlabeled.labels.tolist() == [-1] * 15


def test_the_last_fifth_of_each_eurosat_class_is_the_test_set(tmp_path: Path) -> None:
    for c in ("Forest", "River"):
        for i in range(10):
            paint(tmp_path / "eurosat" / "2750" / c / f"{c}_{i}.jpg", i, (64, 64))
    data = open_real("eurosat", tmp_path)
    assert np.bincount(data.train.labels).tolist() == [8, 8] and values(data.test) == [8, 9, 8, 9]


def test_tissuemnist_from_its_npz_file(tmp_path: Path) -> None:
    arrays = {}
    for part, n in (("train", 16), ("val", 8), ("test", 8)):
        arrays[f"{part}_images"] = RNG.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        arrays[f"{part}_labels"] = (np.arange(n) % 8)[:, None]
    (tmp_path / "medmnist" / "tissuemnist").mkdir(parents=True)
    np.savez(tmp_path / "medmnist" / "tissuemnist" / "tissuemnist.npz", **arrays)
    data = open_real("tissuemnist", tmp_path)
    assert (len(data.train), len(data.test), len(data.classes)) == (16, 8, 8)
    with pytest.raises(UserError, match=r"tissuemnist.npz does not exist"):
        open_real("tissuemnist", tmp_path / "other")


@pytest.mark.parametrize("name", ["cifar10", "svhn", "stl10", "eurosat"])
def test_a_failed_download_is_a_one_line_error_and_leaves_no_files(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"cannot be downloaded .*copy it there or set data_dir") as caught:
        open_real(name, tmp_path / "data")
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "data").rglob("*")) == []


def test_a_file_with_a_wrong_checksum_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path, monkeypatch, "cifar10")
    path = tmp_path / "cifar-10-batches-py" / "data_batch_1"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="CIFAR10"):
        open_real("cifar10", tmp_path)


def test_unknown_data_sets_and_registered_ones() -> None:
    with pytest.raises(UserError, match="'cifar11' is unknown; known: cifar10, cifar100"):
        open_real("cifar11", ".")

    def opener(data_dir: Path) -> RealData:
        return digits.open_digits(data_dir)

    dataset_registry.register_dataset("mine-test", opener)
    dataset_registry.register_dataset("mine-test", opener)
    assert len(open_real("mine-test", ".").test) == 359
    with pytest.raises(ValueError, match="taken by"):
        dataset_registry.register_dataset("mine-test", class_folders.open_class_folders)


def test_all_training_images_of_semi_aves_are_labelled(tmp_path: Path) -> None:
    root = tmp_path / "semi_fgvc" / "semi_aves"
    for part, lines in {
        "l_train_val": [("a 1.png", 0), ("b.png", 1), ("c.png", 1), ("d.png", 2)],
        "test": [("e.png", 0), ("f.png", 2)],
        "u_train_in": [("g.png", 0), ("h.png", 1)],
        "u_train_out": [("i.png", 7)],
    }.items():
        for number, (name, _) in enumerate(lines):
            (root / part).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 16), (40 * number, len(part), 0)).save(root / part / name)
        (root / f"{part}.txt").write_text("".join(f"{part}/{name} {label}\n" for name, label in lines))
    keys = {"data_dir": str(tmp_path), "img_size": 16, "num_labels": 3959}
    pool = HybridPool.from_config({"dataset": "semi_aves", **keys})
    assert len(pool.classes) == 3 and sorted(pool.labeled.labels.tolist()) == [0, 1, 1, 2]
    assert len(pool) == 6 and sorted(pool.unlabeled.labels.tolist()) == [-1, -1, 0, 1, 1, 2] and len(pool.test) == 2
    assert len(HybridPool.from_config({"dataset": "semi_aves_out", **keys, "data_dir": str(root.parent.parent)})) == 5
    (root / "test.txt").write_text("no number\n")
    with pytest.raises(UserError, match=r"test\.txt: must contain a file and a class number"):
        HybridPool.from_config({"dataset": "semi_aves", **keys})
    with pytest.raises(UserError, match=r"semi_inat: no l_train_val\.txt in"):
        HybridPool.from_config({"dataset": "semi_inat", **keys})


def test_a_table_of_tinyimagenet_that_is_not_text_is_named_in_the_error(tmp_path: Path) -> None:
    root = tmp_path / "tiny-imagenet-200"
    paint(root / "train" / "n1" / "images" / "a.JPEG", 1)
    (root / "val").mkdir()
    (root / "val" / "val_annotations.txt").write_bytes(b"\xff\xfea.JPEG\tn1")
    with pytest.raises(UserError, match=r"val_annotations\.txt: is not UTF-8 text"):
        open_real("tinyimagenet", tmp_path)
