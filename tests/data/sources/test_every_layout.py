"""A property of all readers: (image, class) pairs written in any layout are read equal, or one line refuses them."""

from __future__ import annotations

import csv
import io
import json
import tarfile
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from PIL import Image

from usb_rsmatch.data.pool.pool import HybridPool
from usb_rsmatch.data.sources.class_names import ClassIndex
from usb_rsmatch.data.sources.dataset_registry import open_real
from usb_rsmatch.data.sources.registry import SourceRequest, open_source
from usb_rsmatch.data.sources.source import Source
from usb_rsmatch.errors import UserError

Pair = tuple[bytes, str | None]  # pixels as RGB, and the class's name


@dataclass(frozen=True, repr=False)
class Written:
    """Images uint8 [N, side, side, C] of one size, and the class number of each."""

    classes: tuple[str, ...]
    images: np.ndarray
    labels: tuple[int, ...]

    def pairs(self, with_classes: bool = True) -> Counter[Pair]:
        colour = np.broadcast_to(self.images, (*self.images.shape[:3], 3))
        names = [self.classes[label] if with_classes else None for label in self.labels]
        return Counter((pixels.tobytes(), name) for pixels, name in zip(colour, names, strict=True))

    def __repr__(self) -> str:
        return f"{self.classes}, images {self.images.shape}, labels {self.labels}"

    def files(self) -> list[tuple[str, str, bytes]]:
        """Class, file name and content of each image as PNG."""
        rows = []
        for number, (pixels, label) in enumerate(zip(self.images, self.labels, strict=True)):
            stream = io.BytesIO()
            Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(stream, "PNG")
            rows.append((self.classes[label], f"{number}.png", stream.getvalue()))
        return rows


ODD = ["C", "C++", "c", "0.5", "05", "5", "B+", "B-", "é", "e\u0301", "T-shirt/top", "a b", "train", "unknown", "-1",
       "None", "nan", "真", "1.0", "01", "x,y", 'q"q', "label", "real", "=1", "ß", "SS", "a;b"]  # fmt: skip
NAMES = st.one_of(
    st.lists(st.sampled_from(ODD), min_size=2, max_size=4, unique=True),
    st.integers(2, 12).map(lambda n: [str(i) for i in range(n)]),
    st.lists(st.integers(0, 300).map(str), min_size=2, max_size=4, unique=True),
    st.lists(st.from_regex(r"[aAbB_ é1][aAbB_ \-.é1]{0,3}", fullmatch=True), min_size=2, max_size=4, unique=True),
)


@st.composite
def sets(draw: st.DrawFn) -> Written:
    """2 to 12 classes in the order of class folders, each with at least one image, no two images alike."""
    classes = tuple(sorted(draw(NAMES)))
    labels = [*range(len(classes)), *draw(st.lists(st.integers(0, len(classes) - 1), max_size=4))]
    side, channels = draw(st.integers(4, 9)), draw(st.sampled_from([1, 3]))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    images = rng.integers(0, 256, (len(labels), side, side, channels), dtype=np.uint8)
    return Written(classes, images, tuple(draw(st.permutations(labels))))


def read(source: Source, classes: tuple[str, ...], side: int) -> Counter[Pair]:
    images = source.load(np.arange(len(source)), side, 3)
    names = [None if label < 0 else classes[label] for label in source.labels.tolist()]
    return Counter((pixels.tobytes(), name) for pixels, name in zip(images, names, strict=True))


def refuse_folder_names(data: Written) -> None:
    if any("/" in name for name in data.classes):
        raise UserError("no folder can have this name")


def write_folders(root: Path, data: Written) -> None:
    refuse_folder_names(data)
    for name, file, content in data.files():
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name / file).write_bytes(content)


# the layouts --------------------------------------------------------------------------------------------------------
# Each writes a set and returns the source that should read it, and whether the layout has classes.


def class_folders(root: Path, data: Written) -> tuple[str, bool]:
    write_folders(root / "set", data)
    return f"folder:{root / 'set'}", True


def flat(root: Path, data: Written) -> tuple[str, bool]:
    write_folders(root / "set", data)
    return f"flat:{root / 'set'}", False


def own_layout(root: Path, data: Written) -> tuple[str, bool]:
    write_folders(root / "set" / "gen", data)
    return f"by_generator:{root / 'set'}", True


def metadata_csv(root: Path, data: Written, separator: str = ",") -> tuple[str, bool]:
    (root / "set").mkdir()
    with open(root / "set" / "metadata.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=separator)
        writer.writerow(["file_name", "Label"])
        for name, place, content in data.files():
            (root / "set" / place).write_bytes(content)
            writer.writerow([place, name])
    return f"folder:{root / 'set'}", True


def metadata_semicolons(root: Path, data: Written) -> tuple[str, bool]:
    return metadata_csv(root, data, ";")


def metadata_jsonl(root: Path, data: Written) -> tuple[str, bool]:
    (root / "set").mkdir()
    lines = []
    for name, place, content in data.files():
        (root / "set" / place).write_bytes(content)
        lines.append(json.dumps({"file_name": place, "label": name}))
    (root / "set" / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return f"folder:{root / 'set'}", True


def zipped(root: Path, data: Written) -> tuple[str, bool]:
    refuse_folder_names(data)
    with zipfile.ZipFile(root / "set.zip", "w") as archive:
        for name, file, content in data.files():
            archive.writestr(f"{name}/{file}", content)
    return f"folder:{root / 'set.zip'}", True


def tarred(root: Path, data: Written) -> tuple[str, bool]:
    refuse_folder_names(data)
    with tarfile.open(root / "set.tar.gz", "w:gz") as archive:
        for name, file, content in data.files():
            entry = tarfile.TarInfo(f"{name}/{file}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return f"folder:{root / 'set.tar.gz'}", True


def npz(
    images: str, labels: str, change: Callable[[Written], tuple[np.ndarray, np.ndarray]]
) -> Callable[[Path, Written], tuple[str, bool]]:
    def write(root: Path, data: Written) -> tuple[str, bool]:
        pixels, numbers = change(data)
        np.savez(root / "set.npz", **{images: pixels, labels: numbers})
        return f"npz:{root / 'set.npz'}", True

    return write


def numbers(data: Written) -> np.ndarray:
    """The labels as whole numbers: the names of the classes if all of them are whole numbers, else positions."""
    names = [int(name) if name.isdecimal() and str(int(name)) == name else None for name in data.classes]
    return np.array(data.labels if None in names else [names[label] for label in data.labels])


def plain(data: Written) -> tuple[np.ndarray, np.ndarray]:
    return data.images, numbers(data)


def one_hot(data: Written) -> tuple[np.ndarray, np.ndarray]:
    columns = numbers(data)
    return data.images, np.eye(max(2, columns.max() + 1), dtype=np.float32)[columns]


def channels_first(data: Written) -> tuple[np.ndarray, np.ndarray]:
    return data.images.transpose(0, 3, 1, 2), numbers(data).astype(np.int16)[:, None]


def npy(root: Path, data: Written) -> tuple[str, bool]:
    np.save(root / "set.npy", data.images)
    return f"npz:{root / 'set.npy'}", False


def packed_by_synthesize(root: Path, data: Written) -> tuple[str, bool]:
    (root / "set").mkdir()
    half = len(data.labels) // 2
    for number, rows in enumerate((slice(0, half), slice(half, None))):
        arrays = {"images": data.images[rows], "labels": np.array(data.labels[rows], dtype=np.int64)}
        np.savez(root / "set" / f"images-{number:05}.npz", **arrays)
    run = {"label_names": list(data.classes), "generator": "flow"}
    (root / "set" / "synthesis.json").write_text(json.dumps(run), encoding="utf-8")
    return f"npz:{root / 'set'}", True


LAYOUTS = {
    "class folders": class_folders,
    "flat": flat,
    "own layout": own_layout,
    "metadata.csv": metadata_csv,
    "metadata.csv with semicolons": metadata_semicolons,
    "metadata.jsonl": metadata_jsonl,
    "zip": zipped,
    "tar.gz": tarred,
    "npz": npz("image", "label", plain),
    "npz, one-hot": npz("images", "labels", one_hot),
    "npz of ADM": npz("arr_0", "arr_1", plain),
    "npz of Keras": npz("x_train", "y_train", plain),
    "npz of MedMNIST": npz("train_images", "train_labels", channels_first),
    "npy": npy,
    "npz shards": packed_by_synthesize,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=sets())
def test_a_source_reads_what_was_written_or_refuses(layout: str, data: Written) -> None:
    with tempfile.TemporaryDirectory() as root:
        try:
            text, has_classes = LAYOUTS[layout](Path(root), data)
            layouts = {"by_generator": {"patterns": ["{generator}/{class}/{file}"]}}
            source = open_source(text, SourceRequest(ClassIndex(data.classes), "made", layouts=layouts))
            found = read(source, data.classes, data.images.shape[1])
        except UserError as error:
            event("refused")
            assert "\n" not in str(error)
            return
        event("read")
        assert found == data.pairs(has_classes)


@pytest.mark.parametrize("layout", ["class folders", "metadata.csv", "metadata.jsonl", "npz"])
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=sets())
def test_a_real_data_set_reads_what_was_written_or_refuses(layout: str, data: Written) -> None:
    with tempfile.TemporaryDirectory() as root:
        base = Path(root) / "data"
        base.mkdir()
        try:
            for part in ("train", "test"):
                (Path(root) / part).mkdir()
                LAYOUTS[layout](Path(root) / part, data)
                made = Path(root) / part / ("set.npz" if layout == "npz" else "set")
                made.rename(base / f"{part}.npz" if layout == "npz" else base / part)
            real = open_real("npz" if layout == "npz" else "folder", base)
            found = [read(source, real.classes, data.images.shape[1]) for source in (real.train, real.test)]
        except UserError as error:
            event("refused")
            assert "\n" not in str(error)
            return
        event("read")
        named = data if layout != "npz" else Written(real.classes, data.images, tuple(numbers(data).tolist()))
        assert found == [named.pairs(), named.pairs()]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=sets())
def test_a_pack_holds_what_was_written(data: Written) -> None:
    with tempfile.TemporaryDirectory() as root:
        try:
            for part in ("train", "test"):
                write_folders(Path(root) / part, data)
            config = {"dataset": "folder", "data_dir": root, "num_labels": "all", "img_size": 8}
            plain, packed, again = (HybridPool.from_config(config, pack=pack) for pack in (False, True, True))
        except UserError as error:
            assert "\n" not in str(error)
            return
        for pool in (packed, again):
            assert np.array_equal(pool.labeled.images[:], plain.labeled.images[:])
            assert pool.manifest()["parts"] == plain.manifest()["parts"]
