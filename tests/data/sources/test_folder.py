"""Image folders in every layout, and Hugging Face metadata, are written to a temporary folder and read back."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from usb_rsmatch.data.images.file_index import file_index
from usb_rsmatch.data.sources.class_names import ClassIndex
from usb_rsmatch.data.sources.folder import LAYOUTS, match
from usb_rsmatch.data.sources.registry import SourceRequest, open_source
from usb_rsmatch.data.sources.source import Source
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


def generators_of(source: Source) -> list[str]:
    return [source.generators[g] for g in source.generator]


# --- layouts


def test_class_folders_of_any_depth_and_with_unusual_names(tmp_path: Path) -> None:
    paint(tmp_path / "Cat" / "a b.png", 10)
    paint(tmp_path / "dog" / "deep" / "ér.bmp", 20)
    paint(tmp_path / "t_shirt_top" / "日本.webp", 30)
    paint(tmp_path / "zebra" / "z.png", 40)
    (tmp_path / "dog" / "notes.txt").write_text("not an image")
    paint(tmp_path / ".hidden" / "h.png", 50)
    source = open_source(f"folder:{tmp_path}", request())
    assert source.labels.tolist() == [0, 1, 2, -1]
    assert np.abs(np.array(values(source)) - [10, 20, 30, 40]).max() <= 2
    assert generators_of(source) == ["gen"] * 4


def test_a_flat_folder_has_no_classes(tmp_path: Path) -> None:
    for i in range(3):
        paint(tmp_path / f"{i}.png", i)
    source = open_source(f"folder:{tmp_path}", request())
    assert source.labels.tolist() == [-1, -1, -1] and values(source) == [0, 1, 2]


def test_flat_folders_ignore_folder_names(tmp_path: Path) -> None:
    paint(tmp_path / "images" / "part-000001" / "u.png", 1)
    assert open_source(f"flat:{tmp_path}", request()).labels.tolist() == [-1]


def test_cifake_reads_the_synthetic_images_of_one_split(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for kind in ("REAL", "FAKE"):
            paint(tmp_path / split / kind / "0001 (2).png", len(split) * 10 + len(kind) + (kind == "FAKE"))
    source = open_source(f"cifake:{tmp_path}", request())
    assert (values(source), source.labels.tolist()) == ([55], [-1])
    assert values(open_source(f"cifake:{tmp_path}", request(split="test"))) == [45]


def test_genimage_reads_the_generators(tmp_path: Path) -> None:
    for value, place in enumerate(
        ("ADM/train/ai", "ADM/train/nature", "ADM/val/ai", "BigGAN/train/ai", "BigGAN/train/nature")
    ):
        paint(tmp_path / place / "x.png", value)
    source = open_source(f"genimage:{tmp_path}", request())
    assert (values(source), generators_of(source)) == ([0, 3], ["ADM", "BigGAN"])


def test_cnndetection_with_and_without_classes(tmp_path: Path) -> None:
    paint(tmp_path / "progan" / "cat" / "1_fake" / "a.png", 1)
    paint(tmp_path / "progan" / "cat" / "0_real" / "a.png", 2)
    paint(tmp_path / "biggan" / "1_fake" / "a.png", 3)
    paint(tmp_path / "biggan" / "0_real" / "a.png", 4)
    progan = open_source(f"cnndetection:{tmp_path / 'progan'}", request())
    assert (values(progan), progan.labels.tolist()) == ([1], [0])
    biggan = open_source(f"cnndetection:{tmp_path / 'biggan'}", request())
    assert (values(biggan), biggan.labels.tolist()) == ([3], [-1])


def test_a_layout_from_the_config(tmp_path: Path) -> None:
    paint(tmp_path / "v1" / "out_cat" / "0001 (2).png", 1)
    paint(tmp_path / "v1" / "photos" / "0001 (2).png", 2)
    paint(tmp_path / "v1" / "out_cat" / "0001.png", 3)
    row = {
        "patterns": ["{generator}/{provenance}/{file}"],
        "real": ["photos"],
        "synthetic": "out_cat",
        "file_class": r"\((\d+)\)$",
    }
    source = open_source(f"mine:{tmp_path}", request(layouts={"mine": row}, mapping={"2": "dog"}))
    assert (values(source), source.labels.tolist(), generators_of(source)) == ([1, 3], [1, -1], ["v1", "v1"])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "needs `patterns`"),
        ({"patterns": ["{class}/x"]}, "must contain {file}"),
        ({"patterns": ["{klass}/{file}"]}, "must contain {file}"),
        ({"patterns": ["{file}"], "sintetic": ["x"]}, "unknown key 'sintetic'"),
        ({"patterns": ["{file}"], "file_class": "("}, "is not a regular expression"),
        ({"patterns": ["{file}"], "file_class": "abc"}, "no group"),
        ({"patterns": ["{file}"], "file_class": 5}, "no group"),
        ({"patterns": 5}, "must contain {file}"),
        ({"patterns": ["{class}/{class}/{file}"]}, "each once"),
    ],
)
def test_an_invalid_layout_is_named_in_the_error(tmp_path: Path, row: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message.replace("{", r"\{")) as caught:
        open_source(f"mine:{tmp_path}", request(layouts={"mine": row}))
    assert "'mine'" in str(caught.value)


def test_a_layout_may_contain_single_values_and_nulls(tmp_path: Path) -> None:
    paint(tmp_path / "1" / "a.png", 1)
    paint(tmp_path / "0" / "a.png", 2)
    row = {"patterns": "{provenance}/{file}", "synthetic": 1, "real": None, "split": None, "file_class": None}
    assert values(open_source(f"mine:{tmp_path}", request(layouts={"mine": row}))) == [1]


def test_an_unknown_provenance_is_named_in_the_error(tmp_path: Path) -> None:
    for place in ("train/FAKE", "train/REAL", "test/other"):
        paint(tmp_path / place / "a.png", 1)
    assert len(open_source(f"cifake:{tmp_path}", request())) == 1
    paint(tmp_path / "train" / "FAKE2" / "a.png", 1)
    with pytest.raises(UserError, match=r"'FAKE2' is neither one of synthetic images \(FAKE\) nor of real"):
        open_source(f"cifake:{tmp_path}", request())


def test_a_layout_cannot_use_a_registered_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'npz' is taken"):
        open_source(f"npz:{tmp_path}", request(layouts={"npz": {"patterns": ["{file}"]}}))


def test_patterns_match_whole_paths() -> None:
    assert match(LAYOUTS["folder"], "cat/a/b/c.png") == {"class": "cat", "file": "c.png"}
    assert match(LAYOUTS["folder"], "c.png") == {"file": "c.png"}
    assert match(LAYOUTS["genimage"], "ADM/val/ai/x/c.png") is None


def test_a_layout_that_matches_no_image_is_named_in_the_error(tmp_path: Path) -> None:
    paint(tmp_path / "cat" / "a.png", 1)
    with pytest.raises(UserError, match=r"none of its 1 images .*\{split\}/\{provenance\}/\{file\}"):
        open_source(f"cifake:{tmp_path}", request())
    for argument in (tmp_path / "gone", "", "~no such user/x", "a" * 5000):
        with pytest.raises(UserError, match="no such folder"):
            open_source(f"folder:{argument}", request())
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="contains no images"):
        open_source(f"folder:{tmp_path / 'empty'}", request())


def test_images_are_ordered_by_name_not_by_creation(tmp_path: Path) -> None:
    names = [f"cat/{i:02}.png" for i in range(20)]
    for root, order in ((tmp_path / "a", names), (tmp_path / "b", names[::-1])):
        for name in order:
            paint(root / name, int(name[4:6]))
    assert values(open_source(f"folder:{tmp_path / 'a'}", request())) == list(range(20))
    a, b = (file_index(tmp_path / name) for name in "ab")
    assert [a.place(i) for i in range(len(a))] == [b.place(i) for i in range(len(b))] == names


def test_links_are_followed_and_loops_are_rejected(tmp_path: Path) -> None:
    paint(tmp_path / "elsewhere" / "a.png", 7)
    root = tmp_path / "root"
    root.mkdir()
    (root / "cat").symlink_to(tmp_path / "elsewhere")
    (root / "dog").symlink_to(tmp_path / "elsewhere")
    assert values(open_source(f"folder:{root}", request())) == [7, 7]
    (tmp_path / "elsewhere" / "back").symlink_to(root)
    with pytest.raises(UserError, match=r"back.*leads back"):
        open_source(f"folder:{root}", request())


def test_a_link_to_itself_is_named_in_the_error(tmp_path: Path) -> None:
    paint(tmp_path / "cat" / "a.png", 7)
    (tmp_path / "cat" / "self.png").symlink_to("self.png")
    source = open_source(f"folder:{tmp_path}", request())
    with pytest.raises(UserError, match=r"self\.png: cannot be read .*on_error: skip"):
        values(source)
    (tmp_path / "dog").symlink_to("dog")
    with pytest.raises(UserError, match=r"/dog: cannot be followed .*remove it"):
        open_source(f"folder:{tmp_path}", request())


# --- Hugging Face's imagefolder


def test_metadata_csv_with_class_names(tmp_path: Path) -> None:
    paint(tmp_path / "b.png", 1)
    paint(tmp_path / "sub" / "a.png", 2)
    (tmp_path / "metadata.csv").write_text("file_name,label,text\nsub/a.png,Dog,x\nb.png,,y\n")
    source = open_source(f"folder:{tmp_path}", request())
    assert (values(source), source.labels.tolist()) == ([1, 2], [-1, 1])
    (tmp_path / "metadata.csv").write_text("File;Label\nsub/a.png;Dog\nb.png;cat\n")
    assert open_source(f"folder:{tmp_path}", request()).labels.tolist() == [0, 1]
    paint(tmp_path / "unlisted.png", 3)
    with pytest.raises(UserError, match=r"1 of 3 images are not listed, the first: unlisted\.png"):
        open_source(f"folder:{tmp_path}", request())


def test_metadata_that_contradicts_the_class_folder_is_refused(tmp_path: Path) -> None:
    paint(tmp_path / "cat" / "a.png", 1)
    (tmp_path / "metadata.csv").write_text("file_name,label\ncat/a.png,dog\n")
    with pytest.raises(UserError, match=r"cat/a\.png has the class 'dog' in the metadata and lies in the folder 'cat'"):
        open_source(f"folder:{tmp_path}", request())
    (tmp_path / "metadata.csv").write_text("file_name,label\ncat/a.png,cat\ncat/a.png,cat\n")
    with pytest.raises(UserError, match=r"entry 2 names cat/a\.png again"):
        open_source(f"folder:{tmp_path}", request())


def test_metadata_without_a_class_column_is_noted(tmp_path: Path) -> None:
    paint(tmp_path / "a.png", 1)
    (tmp_path / "metadata.csv").write_text("file_name,kind\na.png,dog\n")
    source = open_source(f"folder:{tmp_path}", request())
    assert source.labels.tolist() == [-1] and "gives no classes: its columns are file_name, kind" in source.notes[0]


@pytest.mark.parametrize("name", ["images.zip", "images.tar.gz"])
def test_an_archive_is_read_like_its_folder(tmp_path: Path, name: str) -> None:
    for place, value in (("cat/b.png", 10), ("dog/a.png", 20), ("@eaDir/dog/a.png", 30), (".hidden/c.png", 40)):
        paint(tmp_path / "files" / place, value)
    kind = {"images.zip": "zip", "images.tar.gz": "gztar"}[name]
    shutil.make_archive(str(tmp_path / "images"), kind, tmp_path / "files")
    packed = open_source(f"folder:{tmp_path / name}", request())
    plain = open_source(f"folder:{tmp_path / 'files'}", request())
    assert values(packed) == values(plain) == [10, 20]
    assert packed.labels.tolist() == plain.labels.tolist() == [0, 1]
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:100])
    with pytest.raises(UserError, match="cannot be read"):
        open_source(f"folder:{tmp_path / name}", request())
    (tmp_path / "files" / "metadata.csv").write_text("file_name,label\ncat/b.png,dog\n")
    shutil.make_archive(str(tmp_path / "images"), kind, tmp_path / "files")
    with pytest.raises(UserError, match=r"contains metadata\.csv, which is only read from a folder"):
        open_source(f"folder:{tmp_path / name}", request())


def test_files_that_are_not_read_are_counted(tmp_path: Path) -> None:
    paint(tmp_path / "cat" / "a.png", 10)
    for name in ("b.HEIC", "c.jpg_large", "d", "notes.txt"):
        (tmp_path / "cat" / name).write_bytes(b"x")
    (note,) = open_source(f"folder:{tmp_path}", request()).notes
    assert "3 files are not read as images: 1 without suffix, 1 .heic, 1 .jpg_large" in note


def test_a_named_pipe_is_refused_and_does_not_wait(tmp_path: Path) -> None:
    paint(tmp_path / "cat" / "a.png", 10)
    os.mkfifo(tmp_path / "cat" / "b.png")
    with pytest.raises(UserError, match=r"b\.png: cannot be read \(not a regular file\)"):
        values(open_source(f"folder:{tmp_path}", request()))


def test_metadata_jsonl_with_class_numbers(tmp_path: Path) -> None:
    for i in range(3):
        paint(tmp_path / f"{i}.png", i)
    lines = [{"file_name": f"{i}.png", "label": label} for i, label in enumerate((2, 0, None))]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    assert open_source(f"folder:{tmp_path}", request()).labels.tolist() == [2, 0, -1]


def test_metadata_numbers_may_be_mapped_and_must_be_in_range(tmp_path: Path) -> None:
    for i in range(4):
        paint(tmp_path / f"{i}.png", i)
    lines = [{"file_name": f"{i}.png", "label": i} for i in range(4)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(UserError, match="label 3 is out of range, the classes are 0 to 2"):
        open_source(f"folder:{tmp_path}", request())
    mapped = open_source(f"folder:{tmp_path}", request(mapping={"3": None, "1": None, "0": "dog"}))
    assert mapped.labels.tolist() == [1, -1, 2, -1]


def test_metadata_lines_are_split_only_at_line_feeds(tmp_path: Path) -> None:
    paint(tmp_path / "0.png", 0)
    line = {"file_name": "0.png", "label": "dog", "text": "a\u2028separator and a \x85"}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(line, ensure_ascii=False), encoding="utf-8")
    assert open_source(f"folder:{tmp_path}", request()).labels.tolist() == [1]


def test_metadata_with_generators(tmp_path: Path) -> None:
    for i in range(3):
        paint(tmp_path / f"{i}.png", i)
    given = ("sd14", "glide", None)
    lines = [{"file_name": f"{i}.png", "label": "cat", "generator": name} for i, name in enumerate(given)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    source = open_source(f"folder:{tmp_path}", request())
    assert generators_of(source) == ["sd14", "glide", request().generator]


def test_a_folder_of_npz_files_is_not_a_folder_of_images(tmp_path: Path) -> None:
    (tmp_path / "images-00000.npz").write_bytes(b"")
    with pytest.raises(UserError, match="npz:"):
        open_source(f"folder:{tmp_path}", request())


def test_metadata_without_classes_keeps_the_classes_of_the_folders(tmp_path: Path) -> None:
    paint(tmp_path / "dog" / "0.png", 0)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "dog/0.png", "text": "a dog"}\n')
    assert open_source(f"folder:{tmp_path}", request()).labels.tolist() == [1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"file_name": "0.png", "label": "cat"}\n{"label": "cat"}', "entry 2 has no file_name"),
        ('{"file_name": "gone.png", "label": "cat"}', "gone.png, which does not exist"),
        ('{"file_name": "../0.png", "label": "cat"}', "outside of the folder"),
        ("{", "cannot be read"),
        ("[1]", "must be an object"),
    ],
)
def test_invalid_metadata_is_named_in_the_error(tmp_path: Path, text: str, message: str) -> None:
    paint(tmp_path / "0.png", 0)
    (tmp_path / "metadata.jsonl").write_text(text)
    with pytest.raises(UserError, match=rf"metadata\.jsonl: .*{message}"):
        open_source(f"folder:{tmp_path}", request())
