"""Class names and mappings, the registry of sources, and unreadable images."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from usb_rsmatch.data.sources.class_names import ClassIndex, read_mapping
from usb_rsmatch.data.sources.dataset_registry import is_known_dataset
from usb_rsmatch.data.sources.registry import SourceRequest, open_source, register_source
from usb_rsmatch.data.sources.source import ArraySource, FileSource, Source
from usb_rsmatch.errors import UserError

CLASSES = ("cat", "dog", "T-shirt/top")


def request(**options: object) -> SourceRequest:
    fields = {key: options.pop(key) for key in ("layouts", "count", "real") if key in options}
    mapping = options.pop("mapping", None)
    return SourceRequest(ClassIndex(CLASSES, mapping=mapping), "gen", options=options, **fields)  # type: ignore[arg-type]


def paint(path: Path, value: int, size: tuple[int, int] = (8, 8)) -> Path:
    """Save an image of one value, which identifies the file when it is read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)
    return path


def values(source: Source) -> list[int]:
    return source.load(np.arange(len(source)), 8, 1)[:, 0, 0, 0].tolist()


# --- classes


def test_classes_that_do_not_match_need_a_mapping(tmp_path: Path) -> None:
    paint(tmp_path / "feline" / "a.png", 1)
    paint(tmp_path / "canine" / "a.png", 2)
    with pytest.raises(UserError, match=r"no class matches.*'canine', 'feline'.*'cat'.*mapping"):
        open_source(f"folder:{tmp_path}", request())
    (tmp_path / "map.json").write_text('{"Feline": "CAT", "canine": null}')
    source = open_source(f"folder:{tmp_path}", request(mapping=read_mapping(tmp_path / "map.json")))
    assert (values(source), source.labels.tolist()) == ([2, 1], [-1, 0])


def test_a_mapping_also_applies_to_class_numbers(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.arange(2 * 64, dtype=np.uint8).reshape(2, 8, 8), labels=np.array([7, 0]))
    source = open_source(f"npz:{tmp_path / 'a.npz'}", request(mapping={"7": 2}))
    assert sorted(source.labels) == [0, 2]


@pytest.mark.parametrize("target", ["lion", 3, -2, True, 1.5])
def test_a_mapping_to_an_unknown_class_is_named_in_the_error(target: object) -> None:
    with pytest.raises(UserError, match=r"'feline' points to .*not a class"):
        ClassIndex(CLASSES, mapping={"feline": target})


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not valid JSON"), ("[" * 10**5, "not valid JSON"), ("[]", "must be an object"), (None, "No such")],
)
def test_an_invalid_mapping_file_is_named_in_the_error(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "m.json").write_text(text)
    with pytest.raises(UserError, match=rf"m\.json: {message}"):
        read_mapping(tmp_path / "m.json")


# --- the registry, and unreadable images


def test_unknown_prefixes_and_options_are_named_in_the_error(tmp_path: Path) -> None:
    paint(tmp_path / "a.png", 1)
    with pytest.raises(UserError, match=r"unknown source 'zip:x'.*folder.*npz"):
        open_source("zip:x", request())
    with pytest.raises(UserError, match="unknown key 'splitt'"):
        open_source(f"folder:{tmp_path}", request(splitt="train"))


def test_a_user_registers_a_source_as_one_function() -> None:
    def open_stripes(argument: str, asked: SourceRequest) -> Source:
        images = np.full((int(argument), 8, 8, 1), 9, dtype=np.uint8)
        return ArraySource("stripes", images, np.zeros(len(images)), (asked.generator,))

    register_source("stripes-test", open_stripes)
    register_source("stripes-test", open_stripes)
    assert values(open_source("stripes-test:3", request())) == [9, 9, 9]
    with pytest.raises(ValueError, match="taken by"):
        register_source("stripes-test", lambda argument, asked: open_stripes(argument, asked))


def test_flow_needs_the_number_of_images() -> None:
    with pytest.raises(UserError, match="give the number of images"):
        open_source("flow", request())
    with pytest.raises(UserError, match="unknown key 'stepps'"):
        open_source("flow", request(stepps=1))
    with pytest.raises(UserError, match="nothing after the colon"):
        open_source("flow:./here", request(count=1))
    with pytest.raises(UserError, match="wrong type"):
        real = np.zeros((2, 8, 8, 1), dtype=np.uint8), np.arange(2)
        open_source("flow:", request(count=1, real=lambda: real, steps="many"))


def test_unreadable_images_raise_or_are_skipped_and_listed(tmp_path: Path) -> None:
    for i in range(200):
        paint(tmp_path / f"{i:03}.png", i)
    (tmp_path / "007.png").write_bytes(b"")
    (tmp_path / "070.png").unlink()
    os.symlink("nowhere", tmp_path / "070.png")
    source = open_source(f"folder:{tmp_path}", request())
    with pytest.raises(UserError, match=r"007\.png: cannot be read \(it is empty"):
        values(source)
    rest = source.without_unreadable()
    assert [Path(name).name for name in rest.skipped] == ["007.png", "070.png"]
    assert values(rest) == [i for i in range(200) if i not in (7, 70)]
    (tmp_path / "100.png").write_bytes(b"text")
    message = (
        r"3 of 200 images cannot be read, more than skip_limit: 0\.01; the first: .*007\.png \(it is empty, 0 bytes\)"
    )
    with pytest.raises(UserError, match=message):
        open_source(f"folder:{tmp_path}", request()).without_unreadable()


def test_image_bytes_are_read_like_files(tmp_path: Path) -> None:
    path = paint(tmp_path / "a.png", 5)
    source = FileSource("memory", [path.read_bytes(), b"no image"], np.zeros(2))
    assert source.load(np.array([0]), 8, 1)[0, 0, 0, 0] == 5
    with pytest.raises(UserError, match="memory, image 1: cannot be read"):
        source.load(np.array([1]), 8, 1)


def test_built_in_data_sets_are_known() -> None:
    known = "digits fashionmnist cifar10 cifar100 svhn stl10 eurosat tinyimagenet imagenet folder npz"
    assert all(map(is_known_dataset, known.split()))
    assert not is_known_dataset("cifar11") and not is_known_dataset("")


def test_data_sets_saved_by_hugging_face_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="the package `datasets` is not installed")
    pictures = [Image.new("L", (8, 8), value) for value in (1, 2, 3)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["dog", "cat"])})
    rows = {"image": pictures, "label": [0, 1, -1]}
    split = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": split}).save_to_disk(str(tmp_path / "d"))
    source = open_source(f"hf:{tmp_path / 'd'}", request())
    assert dict(zip(values(source), source.labels.tolist(), strict=True)) == {1: 1, 2: 0, 3: -1}
    features = datasets.Features({"image": datasets.Image()})
    rows = {"image": [*pictures, None, pictures[0]]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "gap"))
    gap = open_source(f"hf:{tmp_path / 'gap'}", request())
    with pytest.raises(UserError, match="gap, image 3: cannot be read"):
        values(gap)
    with pytest.raises(UserError, match="no split 'test'"):
        open_source(f"hf:{tmp_path / 'd'}", request(split="test"))
