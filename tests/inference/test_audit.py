"""`usb-rsmatch audit`: share, probabilities and written files with each kind of detector; the images are only read."""

from __future__ import annotations

import csv
import hashlib
import html
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from usb_rsmatch.cli import main
from usb_rsmatch.data.sources.dataset_registry import open_real
from usb_rsmatch.detection.audit_detector import LinearDetector
from usb_rsmatch.detection.metrics import auroc
from usb_rsmatch.errors import UserError
from usb_rsmatch.inference import audit as audits
from usb_rsmatch.inference import audit_gallery as galleries
from usb_rsmatch.inference.audit import audit_with_detector, audit_with_real, audit_with_run
from usb_rsmatch.inference.audit_gallery import gallery
from usb_rsmatch.inference.audit_report import exit_code
from usb_rsmatch.inference.detector_file import SavedDetector, load_detector, save_detector
from usb_rsmatch.inference.input_images import ImageList, open_images
from usb_rsmatch.inference.patches import Patches


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Trusted digits, and a folder of 150 others with 50 blurred ones, whose names begin with "b"."""
    root = tmp_path_factory.mktemp("audit")
    real = np.rint(load_digits().images * (255 / 16)).astype(np.uint8)[np.random.default_rng(1).permutation(1797)]
    blurred = real[400:450].astype(np.float64)
    for axis in (1, 2):
        blurred = (blurred + np.roll(blurred, 1, axis=axis)) / 2
    for folder, name, images in (
        ("real", "r", real[:150]),
        ("mixed", "a", real[200:300]),
        ("mixed", "b", np.rint(blurred).astype(np.uint8)),
    ):
        (root / folder).mkdir(exist_ok=True)
        for number, pixels in enumerate(images):
            Image.fromarray(pixels).save(root / folder / f"{name}{number:03d}.png")
    return {name: root / name for name in ("real", "mixed")}


def file_states(root: Path) -> dict[str, tuple[str, int]]:
    return {
        str(path): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def open_photos_images() -> np.ndarray:
    """The shipped photographs uint8 [n, 32, 32, 3], real ones only."""
    data = open_real("photos", Path())
    return np.concatenate([part.load(np.arange(len(part)), 32, 3) for part in (data.train, data.test)])


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def blurred(images: Any) -> np.ndarray:
    return np.array([Path(name).name.startswith("b") for name in images.names])


# the three kinds of detectors ---------------------------------------------------------------------------------------


def test_audit_with_trusted_images(folders: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    before = file_states(folders["mixed"].parent)
    out = tmp_path / "audit.csv"
    words = ["audit", str(folders["mixed"]), "--real", str(folders["real"]), "--out", str(out)]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "of 150 images look synthetic (95 %" in said and "patches of 8 px" in said and "The share assumes" in said
    names = ("audit.csv", "audit.html", "audit.json", "audit.detector.pt")
    assert said.splitlines()[-4:] == [str(tmp_path / name) for name in names]
    summary = json.loads((tmp_path / "audit.json").read_text())
    assert summary["said"] == "share" and 0 < summary["low"] <= summary["share"] <= summary["high"] < 1
    assert file_states(folders["mixed"].parent) == before
    rows = rows_of(out)
    truth = np.array([Path(row["file"]).name.startswith("b") for row in rows])
    found = auroc(np.array([float(row["score"]) for row in rows]), truth)
    assert len(rows) == 150 and found is not None and found > 0.8
    probability = np.array([float(row["probability"]) for row in rows])
    assert probability[truth].mean() > probability[~truth].mean() and {row["error"] for row in rows} == {""}

    assert main([*words[:4], "--out", str(tmp_path / "audit.html")]) == 2  # the name of the gallery
    assert main(words) == 2
    assert "nothing is overwritten" in capsys.readouterr().err
    again = tmp_path / "again.csv"
    assert (
        main(["audit", str(folders["mixed"]), "--detector", f"{tmp_path}/audit.detector.pt", "--out", str(again)]) == 0
    )
    assert len(rows_of(again)) == 150 and not (tmp_path / "again.detector.pt").exists()


def test_the_same_seed_and_a_saved_detector_give_the_same_scores(folders: dict[str, Path], tmp_path: Path) -> None:
    real, mixed = open_images([folders["real"]]), open_images([folders["mixed"]])
    first, saved = audit_with_real(real, mixed, seed=3)
    second, _ = audit_with_real(real, mixed, seed=3)
    np.testing.assert_array_equal(first.score, second.score)
    assert first.share == second.share and first.share.low <= first.share.estimate <= first.share.high
    save_detector(saved, tmp_path / "d.pt")
    loaded = load_detector(tmp_path / "d.pt")
    assert loaded.patches == saved.patches and loaded.tables == saved.tables == [""]
    direct, reread = (audit_with_detector(d, mixed) for d in (saved, loaded))
    np.testing.assert_array_equal(direct.score, reread.score)
    assert (auroc(direct.score, blurred(mixed)) or 0) > 0.8


def test_images_outside_the_training_sample_are_scored(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audits, "MAX_TRAINING_IMAGES", 100)
    audit, saved = audit_with_real(open_images([folders["real"]]), open_images([folders["mixed"]]))
    assert np.isfinite(audit.score).all() and sum(map(len, saved.trainings[0][1])) == 100
    for parts in audit.trainings:
        assert sorted(np.concatenate([part.rows for part in parts]).tolist()) == list(range(150))
    assert (auroc(audit.score, blurred(audit.images)) or 0) > 0.75


def test_images_on_both_sides_and_too_few_images_are_reported(
    runs: dict[str, Any], folders: dict[str, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    both = [str(folders["mixed"]), str(folders["real"] / "r00*.png")]
    assert main(["audit", *both, "--real", str(folders["real"]), "--out", str(tmp_path / "a.csv")]) == 0
    assert "10 of the audited images are also trusted ones" in capsys.readouterr().err
    few = ImageList.of_array(runs["rsmatch"].test.images[:5], "digit")
    assert few.names == [f"digit#{number}" for number in range(5)]
    audit = audit_with_run(runs["rsmatch"], few)
    assert np.isfinite(audit.score).all() and "5 images are too few" in audit.warnings[0]


def test_audit_with_a_trained_run(runs: dict[str, Any], folders: dict[str, Path]) -> None:
    run, images = runs["rsmatch"], open_images([folders["mixed"]])
    audit = audit_with_run(run, images, batch_size=64)
    batch = np.concatenate([b.images for b in images.batches(run.pipeline)])
    score = run.synthetic_score(batch)
    assert (np.diff(score[np.argsort(audit.score, kind="stable")]) >= -1e-6).all()
    assert "359 test images of digits" in audit.reference
    with pytest.raises(UserError, match="trained no detector"):
        audit_with_run(runs["fixmatch"], images)


# different formats and unreadable files -----------------------------------------------------------------------------


def test_files_of_another_jpeg_quality_are_aligned_and_edited_ones_refused(tmp_path: Path) -> None:
    """Real photographs saved once more are like trusted ones; enlarged and reduced ones get no share."""
    photos = open_photos_images()
    photos = photos[np.random.default_rng(0).permutation(len(photos))]
    for number, pixels in enumerate(photos[:500]):
        image = Image.fromarray(pixels)
        (tmp_path / "real").mkdir(exist_ok=True)
        image.save(tmp_path / "real" / f"{number:03d}.jpg", quality=75)
    for number, pixels in enumerate(photos[500:1000]):
        image = Image.fromarray(pixels)
        for name, again in (("saved", image), ("resized", image.resize((22, 22)).resize((32, 32)))):
            (tmp_path / name).mkdir(exist_ok=True)
            again.save(tmp_path / name / f"{number:03d}.jpg", quality=40 if name == "saved" else 75)
    saved, _ = audit_with_real(open_images([tmp_path / "real"]), open_images([tmp_path / "saved"]), trainings=1)
    assert saved.verdict.said != "histories differ" and saved.share.low == 0 and saved.share.estimate < 0.2
    assert 0.44 < saved.verdict.apart < 0.56 and "JPEG tables of the audited files" in saved.warnings[0]
    resized, detector = audit_with_real(
        open_images([tmp_path / "real"]), open_images([tmp_path / "resized"]), trainings=1
    )
    assert resized.verdict.said == "histories differ" and "histories may differ" in resized.headline()
    assert np.isfinite(resized.score).all() and exit_code(resized, 0.1) == 4 and exit_code(resized, None) == 0
    again = audit_with_detector(detector, open_images([tmp_path / "saved"]))
    assert again.verdict.said == "histories differ" and "JPEG tables" in str(again.reason)


def test_unreadable_files_are_listed_and_do_not_stop_the_audit(
    folders: dict[str, Path], tmp_path: Path, capsys: Any
) -> None:
    shutil.copytree(folders["mixed"], tmp_path / "mixed")
    (tmp_path / "mixed" / "c<b>.png").write_bytes(b"no image")
    (tmp_path / "mixed" / "=d.png").touch()
    words = ["audit", str(tmp_path / "mixed"), "--real", str(folders["real"]), "--out", str(tmp_path / "a.csv")]
    assert main([*words, "--jpeg", "off", "--quick", "--false-positive-rate", "0.1"]) == 0
    assert capsys.readouterr().err.count("cannot be read") == 2
    rows = {row["file"]: row for row in rows_of(tmp_path / "a.csv")}
    bad = [row for row in rows.values() if row["error"]]
    assert {row["flagged"] for row in rows.values()} == {"0", "1", ""}
    assert len(rows) == 152 and len(bad) == 2 and all(not row["score"] for row in bad)
    page = (tmp_path / "a.html").read_text()
    assert "c&lt;b&gt;.png" in page and "c<b>.png" not in page


# gallery ------------------------------------------------------------------------------------------------------------


class LoadedResources(HTMLParser):
    """The tags of a page, and all addresses that a browser would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]


def test_the_gallery_is_self_contained_and_sorted(
    runs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, name in enumerate(["<script>alert(1)</script>.png".replace("/", "_"), 'quote".png', "&amp;.png"]):
        Image.fromarray(runs["rsmatch"].test.images[number, ..., 0]).save(tmp_path / name)
    for number in range(3, 30):
        Image.fromarray(runs["rsmatch"].test.images[number, ..., 0]).save(tmp_path / f"{number}.png")
    audit = audit_with_run(runs["rsmatch"], open_images([tmp_path]))
    text = gallery(audit)
    page = LoadedResources(text)
    assert len(page.sources) == 30 and all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert "script" not in page.tags and "default-src 'none'" in text
    shown = [html.unescape(name) for name in re.findall(r'alt="([^"]*)"', text)]
    assert shown == [audit.images.names[row] for row in audit.order()]
    scores = [float(score) for score in re.findall(r"score (-?[\d.]+)", text)]
    assert scores == sorted(scores, reverse=True)
    monkeypatch.setattr(galleries, "TOP_COUNT", 4)
    monkeypatch.setattr(galleries, "BOTTOM_COUNT", 2)
    short = gallery(audit)
    assert short.count("<figure>") == 6 and "The 4 that look most synthetic" in short


# user errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{mixed}", "--out", "{tmp}/a.csv"], "one of the arguments --run --real --detector is required"),
        (["{mixed}", "--real", "{real}", "--run", "x", "--out", "{tmp}/a.csv"], "not allowed with"),
        (["{empty}", "--real", "{real}", "--out", "{tmp}/a.csv"], "contains no images"),
        (["{mixed}", "--real", "{empty}", "--out", "{tmp}/a.csv"], "contains no images"),
        (["{mixed}", "--real", "{real}/r00*.png", "--out", "{tmp}/a.csv"], "10 trusted real images are too few"),
        (["{mixed}", "--real", "{real}", "--size", "4", "--out", "{tmp}/a.csv"], "8 to 512 pixels, not 4"),
        (["{mixed}", "--real", "{real}", "--size", "0", "--out", "{tmp}/a.csv"], "8 to 512 pixels, not 0"),
        (["{mixed}", "--real", "{real}", "--size", "-5", "--out", "{tmp}/a.csv"], "8 to 512 pixels, not -5"),
        (["{mixed}", "--real", "{real}", "--out", "{tmp}/a.html"], "names the CSV: give another extension"),
        (["{mixed}", "--real", "{real}", "--fail-above", "2", "--out", "{tmp}/a.csv"], "not a share from 0 to 1"),
        (["{mixed}", "--pool", "x", "--out", "{tmp}/a.csv"], "either IMAGES or --pool"),
        (["{mixed}", "--real", "{real}", "--size", "64", "--out", "{tmp}/a.csv"], "nothing is enlarged"),
        (["{mixed}", "--real", "{real}", "--size", "x", "--out", "{tmp}/a.csv"], "invalid"),
        (["{mixed}", "--real", "{real}", "--jpeg", "101", "--out", "{tmp}/a.csv"], "--jpeg takes"),
        (["{mixed}", "--run", "{tmp}/no", "--out", "{tmp}/a.csv"], "no such run folder"),
        (["{mixed}", "--run", "{fixmatch}", "--out", "{tmp}/a.csv"], "trained no detector"),
        (
            ["{mixed}", "--detector", "{real}/r000.png", "--out", "{tmp}/a.csv"],
            "not a detector saved by `audit --real`",
        ),
        (["{mixed}", "--detector", "{tmp}/no.pt", "--out", "{tmp}/a.csv"], "no such file"),
        (["{mixed}", "--real", "{real}", "--out", "{real}/r000.png/a.csv"], "is not a folder"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_user_errors_are_one_line(
    words: list[str],
    message: str,
    folders: dict[str, Path],
    finished: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    places = {**folders, **finished, "tmp": tmp_path, "empty": tmp_path / "empty"}
    assert main(["audit", *(word.format(**places) for word in words)]) == 2
    err = capsys.readouterr().err
    assert message in err and len(err.splitlines()) == 1 and "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_damaged_and_foreign_detector_files_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    detector = LinearDetector(np.array([1.0, 2.0]), 0.5)
    save_detector(SavedDetector(Patches(8, 1, 1), [([detector], [np.zeros(3)])], [""], [], 0), tmp_path / "d.pt")
    content = torch.load(tmp_path / "d.pt", weights_only=True)
    torch.save({**content, "seed": 7}, tmp_path / "changed.pt")
    with pytest.raises(UserError, match="is damaged"):
        load_detector(tmp_path / "changed.pt")
    torch.save({**content, "usb_rsmatch_detector": 99}, tmp_path / "later.pt")
    with pytest.raises(UserError, match="in format 99"):
        load_detector(tmp_path / "later.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "d.pt").read_bytes()[:500])
    with pytest.raises(UserError, match="not a detector saved by `audit --real`"):
        load_detector(tmp_path / "cut.pt")
