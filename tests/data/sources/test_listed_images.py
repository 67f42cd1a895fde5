"""`labels:` with `dataset: folder`: flat images of real digits, their classes and splits in tables of every form."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from sklearn.datasets import load_digits

from usb_rsmatch.cli import main
from usb_rsmatch.data.pool.pool import HybridPool
from usb_rsmatch.data.sources.dataset_registry import RealData, open_real
from usb_rsmatch.errors import UserError

DIGITS = load_digits()
PIXELS = np.round(DIGITS.images * 255 / 16).astype(np.uint8)
N = 120  # 100 training images and 20 test images
TRAIN, TEST = range(100), range(100, N)


def name_of(number: int) -> str:
    return f"ISIC_{number:04d}"


def part_of(number: int) -> str:
    return "train" if number < 100 else "test"


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """Digits in two flat folders, without a table."""
    for number in range(N):
        path = tmp_path / "mine" / f"images{number % 2}" / f"{name_of(number)}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(PIXELS[number]).save(path)
    return tmp_path / "mine"


def write(path: Path, head: Sequence[str], rows: Iterable[Sequence[object]], separator: str = ",") -> str:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=separator).writerows([head, *rows])
    return path.name


def images_with_classes(data: RealData, part: str = "train") -> list[tuple[bytes, str]]:
    """Each image of a part and the name of its class, sorted."""
    source = data.train if part == "train" else data.test
    pixels = source.load(np.arange(len(source)), 8, 1)
    return sorted((image.tobytes(), data.classes[c]) for image, c in zip(pixels, source.labels, strict=True))


def expected(numbers: Iterable[int], name: str = "{}") -> list[tuple[bytes, str]]:
    return sorted((PIXELS[i].tobytes(), name.format(DIGITS.target[i])) for i in numbers)


def refuse(mine: Path, labels: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        open_real("folder", mine, labels)
    assert "\n" not in str(caught.value)


# forms of tables ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("written", ["{name}", "{name}.png", "images{odd}/{name}.png", "{mine}/images{odd}/{name}.png"])
@pytest.mark.parametrize("column", ["file_name", "Image", "image_id", "ID"])
def test_files_with_and_without_suffix_and_folder(mine: Path, written: str, column: str) -> None:
    rows = [
        (written.format(name=name_of(i), odd=i % 2, mine=mine), f"digit {DIGITS.target[i]}", part_of(i))
        for i in range(N)
    ]
    labels = write(mine / "labels.csv", (column, "class", "split"), rows)
    data = open_real("folder", mine, labels)
    assert data.classes == tuple(f"digit {c}" for c in range(10)) and data.spec.img_size == 8
    assert images_with_classes(data) == expected(TRAIN, "digit {}")
    assert images_with_classes(data, "test") == expected(TEST, "digit {}")
    assert data.collected is None and data.train.notes == []


def test_one_hot_columns_as_in_isic(mine: Path) -> None:
    """The layout of ISIC_2019_Training_GroundTruth.csv, with its column of a class that no image has."""
    names = [f"C{c}" for c in range(10)]
    rows = [(name_of(i), *(float(DIGITS.target[i] == c) for c in range(10)), 0.0) for i in range(N)]
    train = write(mine / "train.csv", ("image", *names, "UNK"), rows[:100])
    test = write(mine / "test.csv", ("image", *names, "UNK"), rows[100:])
    data = open_real("folder", mine, {"train": train, "test": test})
    assert data.classes == tuple(names)
    assert images_with_classes(data) == expected(TRAIN, "C{}")
    assert images_with_classes(data, "test") == expected(TEST, "C{}")
    assert data.train.notes == ["labels: no row has the class 'UNK'; it is left out"]


def test_named_columns_among_others(mine: Path) -> None:
    """One-hot columns beside another column of 0 and 1, and a class under an unusual name."""
    head = ("picture", "left", "age", "dx", *"0123456789")
    rows = [
        (name_of(i), i % 2, 40 + i, f"d{DIGITS.target[i]}", *(int(DIGITS.target[i] == c) for c in range(10)))
        for i in range(N)
    ]
    train, test = write(mine / "a.csv", head, rows[:100]), write(mine / "b.csv", head, rows[100:])
    tables = {"train": train, "test": test, "file_column": "picture"}
    data = open_real("folder", mine, {**tables, "class_column": list("0123456789")})
    assert images_with_classes(data) == expected(TRAIN)
    data = open_real("folder", mine, {**tables, "class_column": "dx"})
    assert images_with_classes(data, "test") == expected(TEST, "d{}")
    refuse(mine, {**tables, "class_column": "age of"}, r"a\.csv: has no column 'age of', its columns are picture, left")
    refuse(mine, tables, r"a\.csv: rows with several of the classes left, 0, 1, 2, ...: 50, the first: row 2 \(ISIC")
    refuse(mine, {**tables, "class_column": ["left", "0"]}, r"rows with several of the classes left, 0: \d+, the first")
    refuse(
        mine, {**tables, "class_column": ["age", "0"]}, "rows with other values than 0 and 1 in columns of classes: 100"
    )


def test_class_numbers_as_pandas_writes_them_beside_empty_cells(mine: Path) -> None:
    """Numbers 0.0 to 9.0 are the classes 0 to 9; an empty cell, in a table of numbers also -1, is no class."""
    rows = [(name_of(i), {0: "", 1: -1.0}.get(i, float(DIGITS.target[i])), part_of(i)) for i in range(N)]
    data = open_real("folder", mine, write(mine / "labels.csv", ("image", "label", "split"), rows, ";"))
    assert data.classes == tuple("0123456789") and data.collected is not None
    assert images_with_classes(data) == expected(range(2, 100)) and data.collected.labels.tolist() == [-1, -1]
    many = [(name_of(i), i % 12, part_of(i)) for i in range(N)]
    data = open_real("folder", mine, write(mine / "many.csv", ("image", "label", "split"), many))
    assert data.classes == tuple(map(str, range(12)))  # by value, not as text


def test_jsonl_in_which_val_is_the_test_set(mine: Path) -> None:
    lines = [
        {"file_name": f"images{i % 2}/{name_of(i)}.png", "label": int(DIGITS.target[i]), "split": part}
        for i, part in [(i, "train" if i < 100 else "Validation") for i in range(N)]
    ]
    (mine / "labels.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert images_with_classes(open_real("folder", mine, "labels.jsonl"), "test") == expected(TEST)
    lines[100]["split"] = "test"
    (mine / "labels.jsonl").write_text("\n".join(map(json.dumps, lines)))
    data = open_real("folder", mine, "labels.jsonl")
    assert images_with_classes(data, "test") == expected([100])
    assert [note for note in data.train.notes if "rows of val that are not read: 19" in note]
    lines[0]["label"] = ["a", "b"]  # type: ignore[assignment]
    (mine / "labels.jsonl").write_text("\n".join(map(json.dumps, lines)))
    refuse(mine, "labels.jsonl", "row 1 has a list as label; it must be text or a number")


def test_three_tables_of_which_one_has_no_classes(mine: Path) -> None:
    rows = [(name_of(i), DIGITS.target[i]) for i in range(N)]
    tables = {
        "train": write(mine / "train.csv", ("image", "label"), rows[:60]),
        "unlabeled": write(mine / "more.csv", ("image", "label"), rows[60:100]),
        "test": write(mine / "test.csv", ("image", "label"), rows[100:]),
    }
    data = open_real("folder", mine, tables)
    assert images_with_classes(data) == expected(range(60)) and data.collected is not None
    assert data.collected.labels.tolist() == [-1] * 40, "the classes of that table are not read"
    write(mine / "more.csv", ("image",), [row[:1] for row in rows[60:100]])
    again = open_real("folder", mine, tables)
    assert again.collected is not None and len(again.collected) == 40


def test_the_order_of_rows_does_not_matter(mine: Path) -> None:
    rows = [(name_of(i), DIGITS.target[i], part_of(i)) for i in range(N)]
    keys = {"dataset": "folder", "data_dir": str(mine), "num_labels": 20, "labels": "labels.csv"}
    hashes = []
    for ordered in (rows, rows[::-1]):
        write(mine / "labels.csv", ("image", "label", "split"), ordered)
        hashes.append(HybridPool.from_config(keys).manifest()["parts"])
    assert hashes[0] == hashes[1]


# refusals -----------------------------------------------------------------------------------------------------------

HEAD = ("image", "label", "split")


def rows_of_all() -> list[list[Any]]:
    return [[name_of(i), int(DIGITS.target[i]), part_of(i)] for i in range(N)]


def test_every_wrong_row_is_counted_in_one_line(mine: Path) -> None:
    rows = rows_of_all()
    rows[1][0] = rows[2][0] = "gone"
    rows[3][0] = f"{name_of(4)}.png"  # the same image with its suffix
    rows[101][1] = ""
    rows[102][1] = "eleven"
    write(mine / "labels.csv", HEAD, rows)
    refuse(
        mine,
        "labels.csv",
        r"labels\.csv: rows that name a missing image: 2, the first: row 2 \('gone'\); "
        r"rows that name an image again: 1, the first: row 5 \('ISIC_0004'\); "
        r"rows of the test set with no class: 1, the first: row 102; "
        r"rows of the test set with a class of no training row: 1, the first: row 103 \('eleven'\); correct the table",
    )


def test_images_without_a_row_are_counted_and_not_used(mine: Path) -> None:
    write(mine / "labels.csv", HEAD, rows_of_all()[3:])
    data = open_real("folder", mine, "labels.csv")
    assert len(data.train) == 97
    (note,) = data.train.notes
    assert "3 of 120 images in" in note and "have no row, the first: images0/ISIC_0000.png; they are not used" in note


def test_rows_without_a_file_or_with_another_split(mine: Path) -> None:
    rows = rows_of_all()
    rows[0][0], rows[5][2], rows[6][2] = " ", "dev", "dev"
    write(mine / "labels.csv", HEAD, rows)
    refuse(
        mine,
        "labels.csv",
        r"labels\.csv: rows without image: 1, the first: row 1; rows with a split other than train, test, val, "
        r"unlabeled: 2, the first: row 6 \('dev'\); correct the table, or name its columns",
    )


def test_a_name_of_two_images_asks_for_more_of_the_path(mine: Path) -> None:
    Image.fromarray(PIXELS[0]).save(mine / "images1" / f"{name_of(0)}.jpg")
    write(mine / "labels.csv", HEAD, rows_of_all())
    refuse(mine, "labels.csv", r"labels\.csv, row 1: ISIC_0000 matches .*; give more of the path")


@pytest.mark.parametrize(
    ("content", "labels", "message"),
    [
        (
            "image,label\nISIC_0000,1\n",
            "t.csv",
            r"t\.csv: no row is a test image with a class; mark such rows in a col",
        ),
        ("image,label,split\nISIC_0000,,train\n", "t.csv", "no row is a training image with a class"),
        ("image,label,split\n", "t.csv", "t.csv: has no column of files"),
        ("ISIC_0000,1\nISIC_0001,0\n", "t.csv", "has no column of files .*, its columns are ISIC_0000, 1; name one by"),
        ("image,label\nISIC_0000,1,2,3\n", "t.csv", "row 1 has more cells than the first line"),
        ("image,label\n\0", "t.csv", "t.csv: "),
        ("", "gone.csv", "gone.csv is neither in the working directory nor in"),
        ("", "images0", "images0: is not a file"),
        ("", {}, "labels: names no table of training images; give train: FILE"),
        ("", {"train": "t.csv", "tset": "t.csv"}, "unknown key 'tset': did you mean 'test'"),
        ("", {"train": ["t.csv"]}, "labels: train takes a name"),
        ("", {"train": "t.csv", "class_column": []}, "labels: class_column takes a name, or a list of them"),
    ],
)
def test_a_table_that_cannot_be_read_is_one_line(mine: Path, content: str, labels: Any, message: str) -> None:
    (mine / "t.csv").write_text(content)
    refuse(mine, labels, message)


def test_two_tables_of_one_name_are_refused(mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in (mine, tmp_path):
        write(folder / "labels.csv", HEAD, rows_of_all())
    refuse(mine, "labels.csv", "labels: there are labels.csv and .*mine/labels.csv; give the longer path")
    assert len(open_real("folder", Path("mine"), "mine/labels.csv").test) == 20
    with pytest.raises(UserError, match="labels: is for dataset: folder, digits has its own"):
        open_real("digits", mine, "mine/labels.csv")


# the command line ---------------------------------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = main(list(words))
    out, err = capsys.readouterr()
    return code, out + err


def test_from_a_table_to_an_evaluated_run(
    mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pool, training, evaluation and prediction, with labels named as a flag or as a mapping in the configuration."""
    monkeypatch.chdir(tmp_path)
    rows = rows_of_all()
    for row in rows[80:100]:
        row[1] = ""
    write(mine / "labels.csv", HEAD, rows)
    config = {
        "algorithm": "rsmatch",
        "dataset": "folder",
        "data_dir": "mine",
        "num_labels": 20,
        "net": "small_wrn_10_1",
        "batch_size": 4,
        "num_train_iter": 4,
        "num_eval_iter": 4,
        "num_workers": 0,
        "device": "cpu",
        "rs_loader": "batched",
        "save_name": "run",
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    code, text = run(capsys, "pool", "--c", "c.yaml", "--labels", "labels.csv", "--out", "pool.json")
    assert code == 0, text
    parts = json.loads((tmp_path / "pool.json").read_text())["parts"]
    assert {name: part["count"] for name, part in parts.items()} == {"labeled": 20, "unlabeled": 100, "test": 20}
    assert parts["unlabeled"]["by_class"]["unknown"] == 20
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({**config, "labels": {"train": "labels.csv"}}))
    code, text = run(capsys, "train", "--c", "c.yaml")
    assert code == 0, text
    result = json.loads((tmp_path / "saved_models" / "run" / "result.json").read_text())
    code, text = run(capsys, "eval", "saved_models/run")
    assert code == 0 and f"top-1-acc      {result['accuracy']['last']:.4f}" in text, text
    code, text = run(capsys, "eval", "saved_models/run", "--data", "folder")
    assert code == 0 and f"top-1-acc      {result['accuracy']['last']:.4f}" in text, text
    code, text = run(capsys, "predict", "mine/images0", "--run", "saved_models/run", "--out", "p.csv")
    assert code == 0 and len((tmp_path / "p.csv").read_text().splitlines()) == 61, text
    flow = "synthesize --engine flow --dataset folder --data-dir mine --labels labels.csv --train-steps 2 --steps 2"
    code, text = run(capsys, *flow.split(), "--count", "20", "--width", "8", "--cache", "cache", "--out", "made")
    assert code == 0 and len(list((tmp_path / "made").rglob("*.png"))) >= 20, text
    assert {path.name for path in (tmp_path / "made").iterdir() if path.is_dir()} >= set("0123456789")
    write(mine / "labels.csv", HEAD[:2], [row[:2] for row in rows])
    code, text = run(capsys, "pool", "--c", "c.yaml")
    assert code == 2 and "no row is a test image" in text and text.count("\n") == 1


def test_an_npz_file_with_one_hot_labels_is_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for part, numbers in (("train", TRAIN), ("test", TEST)):
        np.savez(tmp_path / f"{part}.npz", images=PIXELS[numbers], labels=np.eye(10)[DIGITS.target[numbers]])
    data = open_real("npz", tmp_path)
    assert images_with_classes(data) == expected(TRAIN) and images_with_classes(data, "test") == expected(TEST)
    code, text = run(capsys, "pool", "--c", "quickstart/fixmatch", "--dataset", "npz", "--data_dir", ".")
    assert code == 2 and "real_count" in text  # the quickstart asks for more images than these
