"""`usb-rsmatch synthesize --engine flow`: the same bytes however a run is cut, and a clear line for every mistake."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from PIL import Image

from usb_rsmatch.cli import main
from usb_rsmatch.data.pool.pool import HybridPool

Capture = pytest.CaptureFixture[str]
FAST = ["--train-steps", "4", "--width", "8", "--train-batch-size", "8", "--steps", "2"]
COUNT = 70


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all these runs keep their one generator."""
    return tmp_path_factory.mktemp("cache")


def words(out: Path, cache: Path, *more: str) -> list[str]:
    flow = ["synthesize", "--engine", "flow", "--dataset", "digits", "--cache", str(cache), "--device", "cpu", *FAST]
    return [*flow, "--count", str(COUNT), "--batch-size", "16", "--out", str(out), *more]


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of a folder but the lock, by its path."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """The output of one run in one go."""
    out = tmp_path_factory.mktemp("whole") / "flow"
    assert main(words(out, cache)) == 0
    return out


def rows_of(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def pool_of(*entries: dict[str, object]) -> object:
    return HybridPool.from_config(SimpleNamespace(dataset="digits", num_labels=20, synthetic=list(entries), seed=0))


# what comes out ----------------------------------------------------------------------------------------------------


def test_the_output_is_an_imagefolder_that_says_how_each_image_was_made(whole: Path) -> None:
    rows = rows_of(whole)
    assert len(rows) == COUNT
    for row in rows:
        folder, _, name = str(row["file_name"]).partition("/")
        assert folder == row["label"] and name.endswith(".png")
        assert {"prompt", "seed", "engine", "model", "revision", "guidance", "steps"} <= row.keys()
        assert row["generator"] == "flow" and row["steps"] == 2 and row["guidance"] == 1.25
        with Image.open(whole / folder / name) as image:
            assert image.size == (8, 8) and image.mode == "L"
    assert len({row["seed"] for row in rows}) == COUNT
    card = (whole / "README.md").read_text()
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["tags"] == ["synthetic", "flow"] and "| sampler_steps | `2` |" in card and "| 9 | 7 |" in card
    with Image.open(whole / ".card" / "contact_sheet.png") as sheet:
        assert sheet.height == 10 * 66
    assert not (whole / ".parts").exists()


def test_a_recorded_seed_is_that_of_the_images_noise(whole: Path) -> None:
    from usb_rsmatch.counter_rng import generator

    row = next(row for row in rows_of(whole) if row["file_name"] == "3/5.png")
    draws = np.random.Generator(np.random.Philox(key=row["seed"])).standard_normal(4)
    np.testing.assert_array_equal(draws, generator(0, "flow", "noise", 3, 5).standard_normal(4))


def test_a_pool_reads_it_with_its_classes_and_the_generators_name(whole: Path) -> None:
    pool = pool_of({"source": f"folder:{whole}"})
    synthetic = pool.unlabeled.take(pool.unlabeled.is_synthetic)  # type: ignore[attr-defined]
    assert synthetic.by_generator() == {"flow": COUNT}
    assert set(synthetic.by_class(pool.classes).values()) == {7}  # type: ignore[attr-defined]


def test_the_datasets_library_reads_it(whole: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")
    read = datasets.load_dataset("imagefolder", data_dir=str(whole), cache_dir=str(tmp_path))["train"]
    assert len(read) == COUNT and set(read["label"]) == set("0123456789") and read[0]["generator"] == "flow"


def test_the_same_command_again_changes_nothing(whole: Path, cache: Path, capsys: Capture) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.name != ".lock"}
    assert main(words(whole, cache)) == 0
    assert "already done" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.name != ".lock"} == before


@pytest.mark.parametrize("kind", ["png", "npz"])
def test_shards_in_one_folder_or_merged_give_the_same_bytes(
    kind: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("usb_rsmatch.synthesis.command.IMAGES_PER_FILE", 32)
    assert main(words(tmp_path / "whole", cache, "--format", kind)) == 0
    expected = tree(tmp_path / "whole")
    for part in ("3/3", "1/3", "2/3"):
        assert main(words(tmp_path / "one", cache, "--format", kind, "--shard", part)) == 0
    assert tree(tmp_path / "one") == expected
    for part in ("1/2", "2/2"):
        assert main(words(tmp_path / part[0], cache, "--format", kind, "--shard", part)) == 0
        shutil.copytree(tmp_path / part[0], tmp_path / "merged", dirs_exist_ok=True)
    assert main(words(tmp_path / "merged", cache, "--format", kind)) == 0
    assert tree(tmp_path / "merged") == expected


def test_an_image_that_got_lost_is_made_again(whole: Path, tmp_path: Path, cache: Path) -> None:
    shutil.copytree(whole, tmp_path / "copy")
    (tmp_path / "copy" / "4" / "2.png").unlink()
    assert main(words(tmp_path / "copy", cache)) == 0
    assert tree(tmp_path / "copy") == tree(whole)


def test_a_stopped_run_goes_on_to_the_same_bytes(tmp_path: Path, cache: Path) -> None:
    many = ["--count", "900", "--steps", "3", "--batch-size", "30"]
    line = [sys.executable, "-m", "usb_rsmatch", *words(tmp_path / "stopped", cache, *many)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            deadline = time.monotonic() + 100
            while not (tmp_path / "stopped" / "9" / "9.png").exists():
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.01)
            process.send_signal(signal.SIGTERM)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    told = err.splitlines()[-1]
    assert told.startswith("usb-rsmatch: stopped with ") and "of 900 images; the same command resumes" in told
    done = int(told.split()[3])
    assert 0 < done < 900 and done % 30 == 0
    assert not list((tmp_path / "stopped").rglob("*.tmp"))
    assert main(words(tmp_path / "stopped", cache, *many)) == 0
    assert main(words(tmp_path / "straight", cache, *many)) == 0
    assert tree(tmp_path / "stopped") == tree(tmp_path / "straight")


def test_packed_images_are_read_with_classes_and_generator(whole: Path, tmp_path: Path, cache: Path) -> None:
    out = tmp_path / "packed"
    assert main(words(out, cache, "--format", "npz")) == 0
    with np.load(out / "images-00000.npz") as shard:
        for row in rows_of(out):
            pixels = shard["images"][row["index"], ..., 0]
            np.testing.assert_array_equal(pixels, np.asarray(Image.open(whole / str(row["image"]))))
            assert str(shard["labels"][row["index"]]) == row["label"]
    packed, loose = pool_of({"source": f"npz:{out}"}), pool_of({"source": f"folder:{whole}"})
    sets = [pool.unlabeled.take(pool.unlabeled.is_synthetic) for pool in (packed, loose)]  # type: ignore[attr-defined]
    assert sets[0].by_generator() == {"flow": COUNT}
    pairs = [sorted((i.tobytes(), int(l)) for i, l in zip(s.images, s.labels, strict=True)) for s in sets]
    assert pairs[0] == pairs[1]


def test_classes_size_part_and_name_are_the_users_choice(tmp_path: Path, cache: Path) -> None:
    more = ["--classes", "3", "7", "--size", "12", "--part", "train[:50%]", "--name", "mine", "--count", "6"]
    assert main(words(tmp_path / "out", cache, *more)) == 0
    assert {row["file_name"] for row in rows_of(tmp_path / "out")} == {f"{c}/{n}.png" for c in (3, 7) for n in range(3)}
    assert Image.open(tmp_path / "out" / "3" / "0.png").size == (12, 12)
    run = json.loads((tmp_path / "out" / "synthesis.json").read_text())
    assert run["generator"] == "mine" and run["settings"]["trained_on_images"] == 719


def test_the_report_judges_the_images_by_the_real_ones(
    whole: Path, tmp_path: Path, cache: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from usb_rsmatch.synthesis import quality

    monkeypatch.setattr(quality.measure, "__kwdefaults__", {**quality.measure.__kwdefaults__, "steps": 60})
    shutil.copytree(whole, tmp_path / "out")
    assert main(words(tmp_path / "out", cache, "--report")) == 0
    assert "classifier Frechet distance" in capsys.readouterr().out
    figures = json.loads((tmp_path / "out" / "quality.json").read_text())
    assert figures["real_class_accuracy"] > 0.8 > figures["class_accuracy"]  # a generator of four steps makes noise
    assert figures["classifier_frechet"] > 3 * figures["real_classifier_frechet"]
    assert "not an Inception FID" in (tmp_path / "out" / "README.md").read_text()


def test_every_command_that_is_shown_has_flags_that_there_are() -> None:
    from usb_rsmatch.cli import _parser
    from usb_rsmatch.synthesis.arguments import EPILOG

    page = (Path(__file__).resolve().parents[2] / "docs" / "synthesis.md").read_text(encoding="utf-8")
    shown = [line.split() for line in (EPILOG + page).splitlines() if line.strip().startswith("usb-rsmatch synthesize")]
    assert len(shown) >= 7
    for line in shown:
        assert _parser().parse_args(line[1:]).command == "synthesize"


# mistakes -------------------------------------------------------------------------------------------------------------


def refused(capsys: Capture, line: list[str]) -> str:
    """The one line that tells a user's mistake."""
    assert main(line) == 2
    out, err = capsys.readouterr()
    lines = [text for text in err.splitlines() if text.startswith("usb-rsmatch: ")]
    assert out == "" and len(lines) == 1 and "Traceback" not in err
    return lines[0]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--classes", "3", "12"], "--classes: '12' is not a class"),
        (["--per-class", "3"], "either --count N or --per-class N"),
        (["--count", "0"], "--count 0"),
        (["--shard", "4/3"], "--shard 4/3"),
        (["--model", "x"], "--model cannot be combined with --engine flow"),
        (["--prompt", "a {name}"], "--prompt cannot be combined with --engine flow"),
        (["--size", "65"], "8 to 64 px, not 65"),
        (["--size", "big"], "--size big"),
        (["--size", "full"], "--size full"),
        (["--part", "test"], "--part test"),
        (["--part", "train[9000:]"], "is empty"),
        (["--part", "labeled:7"], "not divisible"),
        (["--dtype", "float16"], "float32 or bfloat16"),
        (["--dataset", "digit"], "digit"),
        (["--ema", "2"], "ema"),
        (["--device", "cuda"], "no CUDA device"),
        (["--engine", "glide"], "--engine"),
        (["--stepps", "3"], "--stepps"),
    ],
)
def test_mistakes_are_told_in_one_line_before_anything_is_written(
    more: list[str], message: str, tmp_path: Path, cache: Path, capsys: Capture
) -> None:
    import torch

    if "cuda" in more and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert message in refused(capsys, words(tmp_path / "out", cache, *more))
    assert not (tmp_path / "out").exists()


def test_a_folder_of_another_run_or_of_other_things_is_left_alone(
    whole: Path, tmp_path: Path, cache: Path, capsys: Capture
) -> None:
    before = tree(whole)
    told = refused(capsys, words(whole, cache, "--seed", "1"))
    assert "seed is 0, not 1" in told
    assert "sampler_steps" in refused(capsys, words(whole, cache, "--steps", "3"))
    assert tree(whole) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    assert "thesis.tex" in refused(capsys, words(tmp_path / "mine", cache))
    assert "is a file" in refused(capsys, words(tmp_path / "mine" / "thesis.tex", cache))
    assert tree(tmp_path / "mine") == {"thesis.tex": b"years of work"}


def test_damaged_records_are_named(whole: Path, tmp_path: Path, cache: Path, capsys: Capture) -> None:
    for name in ("synthesis.json", "metadata.jsonl"):
        shutil.copytree(whole, tmp_path / name)
        (tmp_path / name / name).write_text('{"file')
        assert f"{name} is damaged" in refused(capsys, words(tmp_path / name, cache))


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The operating system refuses larger files, as a full disk would."""
    resource = pytest.importorskip("resource", reason="Windows has no limits on file sizes")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_takes_no_more_loses_nothing(whole: Path, tmp_path: Path, cache: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    assert main(words(out, cache, "--shard", "1/2")) == 0
    capsys.readouterr()
    with files_of_at_most(30):
        told = refused(capsys, words(out, cache))
    assert "38 of 70 images" in told and "the same command resumes" in told
    assert not list(out.rglob("*.tmp"))
    assert main(words(out, cache)) == 0
    assert tree(out) == tree(whole)


def test_what_a_killed_process_left_does_no_harm(whole: Path, tmp_path: Path, cache: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    leftover = ".synthesis.json.abcd1234.tmp"
    (out / leftover).write_text('{"eng')
    assert main(words(out, cache, "--shard", "1/2")) == 0  # the folder is no one else's for that
    (out / "3" / ".0.png.abcd1234.tmp").write_bytes(b"half")
    assert main(words(out, cache)) == 0
    assert tree(out) == tree(whole)


def test_a_folder_that_cannot_be_written_is_not_called_full(tmp_path: Path, cache: Path, capsys: Capture) -> None:
    (tmp_path / "file").write_text("")
    told = refused(capsys, words(tmp_path / "file" / "out", cache))
    assert "Not a directory" in told and "make it writable" in told and "room" not in told


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, capsys: Capture) -> None:
    with files_of_at_most(1000):
        assert "--cache" in refused(capsys, words(tmp_path / "out", tmp_path / "cache"))
    assert not (tmp_path / "out").exists() and not list(tmp_path.rglob("*.tmp"))


@pytest.mark.skipif(sys.platform != "linux", reason="limits on memory are Linux's")
def test_out_of_memory_says_which_batch_size_fits_and_leaves_nothing(
    tmp_path: Path, cache: Path, capsys: Capture
) -> None:
    """A real limit on the process's memory, in a process of its own."""
    large = ["--size", "64", "--solver", "euler", "--guidance", "1", "--steps", "1", "--count", "2048"]
    line = words(tmp_path / "out", cache, *large, "--batch-size", "2048")
    code = f"""
import resource, sys, torch
from usb_rsmatch.cli import main
torch.set_num_threads(1)
main({words(tmp_path / "first", cache, *large, "--count", "1")!r})
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 200 * 2**20,) * 2)
sys.exit(main({line!r}))
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, env=environment)
    assert done.returncode == 2, done.stderr
    told = done.stderr.splitlines()[-1]
    assert told.startswith("usb-rsmatch: out of memory with 2048 images at once; ")
    fits = int(told.split("--batch-size ")[1])
    assert 0 < fits < 2048 and not (tmp_path / "out").exists()
