"""`usb-rsmatch predict` and `eval`: they agree with the run's own metrics and do not need the run's data."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, f1_score

from usb_rsmatch import load_run
from usb_rsmatch.cli import main
from usb_rsmatch.errors import UserError
from usb_rsmatch.inference.evaluate import evaluate
from usb_rsmatch.inference.input_images import open_images
from usb_rsmatch.inference.predict import predict
from usb_rsmatch.usb import checkpoint


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# predict ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rsmatch", "fixmatch"])
def test_predictions_from_files_equal_those_from_the_test_set(
    name: str, runs: dict[str, Any], digit_files: Path, tmp_path: Path
) -> None:
    run = runs[name]
    assert predict(run, open_images([digit_files]), tmp_path / "a.csv", batch_size=16).written == 60
    rows = sorted(rows_of(tmp_path / "a.csv"), key=lambda row: Path(row["file"]).name)
    expected = run.predict(run.test.images[:60])
    assert [row["class"] for row in rows] == [run.classes[c] for c in expected.argmax(1)]
    np.testing.assert_allclose([float(row["confidence"]) for row in rows], expected.max(1), atol=2e-5)
    if name == "rsmatch":
        scores = run.synthetic_score(run.test.images[:60])
        np.testing.assert_allclose([float(row["synthetic"]) for row in rows], scores, atol=2e-5)
    else:
        assert {row["synthetic"] for row in rows} == {""}


def test_unreadable_files_have_a_row_with_the_reason(runs: dict[str, Any], digit_files: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    shutil.copytree(digit_files / "0", folder)
    (folder / "0_broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    Image.new("RGB", (33, 21), "red").save(folder / "=1+1.png")
    predicted = predict(runs["rsmatch"], open_images([folder]), tmp_path / "a.csv")
    rows = {Path(row["file"].removeprefix("'")).name: row for row in rows_of(tmp_path / "a.csv")}
    assert len(rows) == predicted.written + 1 == len(list(folder.iterdir()))
    assert rows["0_broken.png"]["error"] and not rows["0_broken.png"]["class"]
    assert rows["=1+1.png"]["class"] and not rows["=1+1.png"]["error"]


def test_predict_writes_nothing_if_no_image_can_be_read(
    finished: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "b.png").touch()
    out = tmp_path / "out" / "a.csv"
    assert main(["predict", str(tmp_path), "--run", str(finished["fixmatch"]), "--out", str(out)]) == 2
    err = capsys.readouterr().err
    assert "none of the 2 images can be read; the first is" in err and len(err.splitlines()) == 1
    assert not out.exists()


def test_predict_does_not_read_the_data_of_the_run(
    finished: dict[str, Path], digit_files: Path, tmp_path: Path, without_data: None, capsys: Any
) -> None:
    words = ["predict", str(digit_files), "--run", str(finished["rsmatch"]), "--out", str(tmp_path / "a.csv")]
    assert main([*words, "--device", "cpu"]) == 0
    assert capsys.readouterr().out == f"60 images: {tmp_path / 'a.csv'}\n"
    assert main(words) == 2
    assert "nothing is overwritten" in capsys.readouterr().err


# eval ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rsmatch", "fixmatch"])
def test_eval_returns_the_metrics_of_the_run(
    name: str, finished: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(finished[name]), "--out", str(tmp_path / "eval.json")]) == 0
    written = json.loads((tmp_path / "eval.json").read_text())
    lines = (finished[name] / "metrics.jsonl").read_text().splitlines()
    logged = {key[5:]: value for key, value in json.loads(lines[-1]).items() if key.startswith("eval/")}
    assert written["metrics"].keys() <= logged.keys()
    for key, value in written["metrics"].items():
        assert value == pytest.approx(logged[key], abs=1e-6), key
    assert f"top-1-acc      {logged['top-1-acc']:.4f}" in capsys.readouterr().out


def test_eval_of_folders_with_missing_and_unknown_classes(
    runs: dict[str, Any], digit_files: Path, tmp_path: Path
) -> None:
    run = runs["fixmatch"]
    for label in ("0", "3", "7"):
        shutil.copytree(digit_files / label, tmp_path / "few" / label)
    shutil.copytree(digit_files / "1", tmp_path / "few" / "elephants")
    (tmp_path / "few" / "0" / "bad.png").touch()
    evaluation = evaluate(run, str(tmp_path / "few"), batch_size=4)
    rows = np.flatnonzero(np.isin(run.test.labels[:60], [0, 3, 7]))
    labels, found = run.test.labels[rows], run.predict(run.test.images[rows]).argmax(1)
    assert evaluation.count == len(rows) and len(evaluation.unreadable) == 1
    assert evaluation.unknown == len(list((tmp_path / "few" / "elephants").iterdir()))
    assert evaluation.metrics["top-1-acc"] == pytest.approx(float((found == labels).mean()))
    assert evaluation.metrics["balanced_acc"] == pytest.approx(balanced_accuracy_score(labels, found))
    seen = sorted({*labels.tolist(), *found.tolist()})
    assert evaluation.metrics["F1"] == pytest.approx(f1_score(labels, found, labels=seen, average="macro"))
    assert evaluation.recall["1"] is None and evaluation.recall["3"] is not None


def test_eval_of_npz_and_of_a_data_set(runs: dict[str, Any], tmp_path: Path) -> None:
    run = runs["fixmatch"]
    np.savez(tmp_path / "a.npz", image=run.test.images, label=run.test.labels)
    own = evaluate(run)
    for data in (str(tmp_path / "a.npz"), f"npz:{tmp_path / 'a.npz'}", "digits"):
        assert evaluate(run, data).metrics == pytest.approx(own.metrics, abs=1e-5)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("nowhere", "no such folder, npz file or data set"),
        ("nothing:here", "unknown source"),
        ("fashionmnist", "no class matches"),
        ("{run}/log.txt", "a labelled source is"),
        ("{empty}", "contains no images"),
    ],
)
def test_invalid_labelled_sources_are_refused(
    data: str, message: str, finished: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if data == "fashionmnist" and not Path("/usr/share/datasets/fashion-mnist").exists():
        pytest.skip("Fashion-MNIST is not installed")
    (tmp_path / "empty").mkdir()
    place = data.format(run=finished["fixmatch"], empty=tmp_path / "empty")
    assert main(["eval", str(finished["fixmatch"]), "--data", place]) == 2
    err = capsys.readouterr().err
    assert message in err and len(err.splitlines()) == 1


# loading the run ----------------------------------------------------------------------------------------------------


def test_a_checkpoint_of_usb_itself(finished: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    """A checkpoint as semilearn's own classes save it, with the prefix of data-parallel training."""
    own = torch.load(finished["fixmatch"] / "latest_model.pth", weights_only=True)
    theirs = {key: value for key, value in own.items() if key != checkpoint.KEY}
    theirs["ema_model"] = {f"module.{key}": value for key, value in own["ema_model"].items()}
    (tmp_path / "usb").mkdir()
    torch.save(theirs, tmp_path / "usb" / "latest_model.pth")
    config = yaml.safe_load((finished["fixmatch"] / "config.yaml").read_text())
    (tmp_path / "usb.yaml").write_text(yaml.safe_dump({**config, "resume": True, "gpu": "None"}))
    assert main(["eval", str(tmp_path / "usb")]) == 2
    assert "give it by --c CONFIG" in capsys.readouterr().err
    for place in (tmp_path / "usb", tmp_path / "usb" / "latest_model.pth"):
        loaded = load_run(place, device="cpu", config=tmp_path / "usb.yaml", note=lambda line: None)
        assert evaluate(loaded).metrics == pytest.approx(evaluate(load_run(finished["fixmatch"])).metrics, abs=1e-6)


def test_a_run_of_another_version_is_read_with_notes(
    finished: dict[str, Path], digit_files: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "old"
    shutil.copytree(finished["rsmatch"], folder)
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    del saved["rs_compile"], saved["amp"]
    saved.update(use_amp=False, rs_spell="abracadabra")
    (folder / "config.yaml").write_text(yaml.safe_dump(saved))
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["view"]
    manifest["versions"]["usb_rsmatch"] = "0.0.1"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    notes: list[str] = []
    run = load_run(folder, device="cpu", note=notes.append)
    said = "\n".join(notes)
    assert "made by usb_rsmatch 0.0.1" in said and "use_amp is called amp now" in said
    assert "rs_spell is ignored" in said and len(notes) == 3
    now, images = load_run(finished["rsmatch"], device="cpu"), run.test.images[:5]
    np.testing.assert_array_equal(run.predict(images), now.predict(images))


def test_weights_of_another_network_are_refused(finished: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(finished["fixmatch"], folder)
    text = (folder / "config.yaml").read_text().replace("small_wrn_10_1", "small_wrn_10_2")
    (folder / "config.yaml").write_text(text)
    with pytest.raises(UserError, match="do not fit its configuration") as caught:
        load_run(folder, device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["predict", "{empty}", "--run", "{run}", "--out", "{tmp}/a.csv"], "contains no images"),
        (["predict", "{tmp}/no", "--run", "{run}", "--out", "{tmp}/a.csv"], "no such file or folder"),
        (["predict", "{images}", "--run", "{tmp}/no", "--out", "{tmp}/a.csv"], "no such run folder"),
        (["predict", "{images}", "--run", "{empty}", "--out", "{tmp}/a.csv"], "is not a run folder"),
        (["predict", "{images}", "--run", "{run}", "--out", "{run}/log.txt/a.csv"], "is not a folder"),
        (["predict", "{images}", "--run", "{run}", "--out", "{tmp}/a.csv", "--c", "x"], "has its own config.yaml"),
        (
            ["predict", "{images}", "--run", "{run}", "--out", "{tmp}/a.csv", "--batch-size", "0"],
            "is not a positive whole number",
        ),
        (["eval", "{tmp}/no"], "no such run folder"),
        (["eval", "{images}"], "is not a run folder"),
        (["eval", "{run}/config.yaml"], "cannot be read"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_user_errors_are_one_line(
    words: list[str], message: str, finished: dict[str, Path], digit_files: Path, tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "empty").mkdir()
    places = {"run": finished["fixmatch"], "tmp": tmp_path, "images": digit_files, "empty": tmp_path / "empty"}
    assert main([word.format(**places) for word in words]) == 2
    err = capsys.readouterr().err
    assert message in err and len(err.splitlines()) == 1 and "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
