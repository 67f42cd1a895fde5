"""The command `usb-rsmatch`: exit codes, one-line errors, and interrupted runs that resume."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from usb_rsmatch.cli import main
from usb_rsmatch.usb import checkpoint

ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def command(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "usb_rsmatch", *words]
    return subprocess.run(line, capture_output=True, text=True, timeout=120, env=ONE_THREAD, **options)


def run_cli(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code, output and error lines of a command in this process."""
    code = main(list(words))
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return code, out, err


@pytest.fixture
def config(tiny: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**tiny, "rs_loader": "batched"}))
    return path


# help and user errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["compare", "--help"], ["synthesize", "--help"]])
def test_help_is_fast_and_imports_no_large_package(words: list[str]) -> None:
    code = f"""
import sys
from usb_rsmatch.cli import main
try:
    main({words!r})
except SystemExit as left:
    assert left.code == 0
print([name for name in ("torch", "semilearn", "numpy", "sklearn") if name in sys.modules], file=sys.stderr)
"""
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    took = time.monotonic() - started
    assert done.returncode == 0 and done.stderr.strip() == "[]", done.stderr
    assert "usage: usb-rsmatch" in done.stdout
    assert took < 2, f"{took:.1f} s"


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    text = capsys.readouterr().out
    assert left.value.code == 0
    for name in ("train", "compare", "report", "pool", "eval", "predict", "audit", "export", "doctor"):
        assert f"\n    {name} " in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["trian", "--c", "x"], "invalid choice: 'trian'"),
        (["train"], "the following arguments are required: --c"),
        (["train", "--c", "nowhere.yaml"], "no configuration 'nowhere.yaml'"),
        (["train", "--c", "quickstart/rsmach"], "did you mean quickstart/rsmatch"),
        (["train", "--c", "quickstart/rsmatch", "--sed", "1"], "unknown key 'sed': did you mean 'seed'?"),
        (["train", "--c", "quickstart/rsmatch", "--seed"], "--seed needs a value"),
        (["train", "--c", "quickstart/rsmatch", "seed=1"], "unexpected argument 'seed=1'"),
        (["train", "--c", "quickstart/rsmatch", "--lr", "[1,"], "--lr line 1 is not valid YAML"),
        (["train", "--c", "quickstart/rsmatch", "--lr", "2024-13-45"], "--lr is not valid YAML"),
        (["train", "--c", "quickstart/rsmatch", "--device", "tpu"], "invalid choice: 'tpu'"),
        (["train", "--c", "quickstart/rsmatch", "--max-minutes", "soon"], "invalid float value: 'soon'"),
        (["train", "--c", "quickstart/rsmatch", "--max-minute", "1"], "unknown key 'max_minute'"),
        (["report", "nowhere"], "nowhere is not a folder"),
        (["report", "nowhere", "--colour"], "unknown argument '--colour'"),
        (["pool", "--c", "quickstart/rsmatch", "--synthetic_count", "-1"], "synthetic_count takes a number"),
        (["pool", "--c", "quickstart/fixmatch", "--synthetic_count", "0", "--out", "a.png"], "the manifest is JSON"),
        (["train", "--c", "quickstart/rsmatch", "--save_name", "../mine"], "save_name"),
        (["train", "--c", "quickstart/rsmatch", "--save_name", "/mine"], "save_name"),
        (["compare", "--c", "quickstart/grid", "--jobs", "0"], "--jobs takes a number of processes from 1"),
        (["compare", "--c", "quickstart/grid", "--shard", "5/4"], "not '5/4'"),
        (["compare", "--c", "quickstart/grid", "--seed", "1"], "--seed is an axis of quickstart/grid"),
        (["compare", "--c", "quickstart/grid", "--lr", "-1"], "quickstart/grid, FixMatch, real part only  seed=0: "),
        (["compare", "--c", "quickstart/grid", "--jobs", "many"], "invalid int value: 'many'"),
        (["compare", "--c", "quickstart/grid", "--dry-run", "--shard", "4/3"], "4/3"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_user_errors_are_one_line_with_exit_code_2(
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run_cli(capsys, *words)
    assert code == 2
    assert err.startswith("usb-rsmatch: ") and message in err and len(err.splitlines()) == 1
    assert out == "" and list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_reported(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (config.parent / "file").touch()
    code, _, err = run_cli(capsys, "train", "--c", str(config), "--save_dir", str(config.parent / "file"))
    assert code == 2 and str(config.parent / "file") in err and len(err.splitlines()) == 1


def test_text_keys_keep_the_typed_text(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """YAML would read 007 as seven and 1_0 as ten."""
    keys = ("--save_name", "007", "--num-labels=10", "--lb_imb_ratio", "1", "--lr", "1e-3", "--num_train_iter", "2")
    assert run_cli(capsys, "train", "--c", str(config), *keys)[0] == 0
    saved = yaml.safe_load((config.parent / "runs" / "007" / "config.yaml").read_text())
    assert (saved["save_name"], saved["num_labels"], saved["lr"]) == ("007", 10, 0.001)


# train --------------------------------------------------------------------------------------------------------------


def test_a_finished_run_is_not_repeated_and_another_configuration_is_refused(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run_cli(capsys, "train", "--c", str(config), "--clip", "1")
    assert code == 0 and out.splitlines()[-1].startswith("accuracy ")
    assert err.splitlines() == [
        "note: clip has no effect: USB reads clip_grad",
        "images: 8 x 8 px, grey, not mirrored (key flip)",
    ]
    folder = config.parent / "runs" / "run"
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    code, out, err = run_cli(capsys, "train", "--c", str(config), "--device", "cpu")
    assert code == 0 and "is done: accuracy" in err
    code, _, err = run_cli(capsys, "train", "--c", str(config), "--lr", "0.5")
    assert code == 2 and "holds a run with lr: 0.03, not 0.5" in err
    code, _, err = run_cli(capsys, "train", "--c", str(config), "--num_train_iter", "24")
    assert code == 2 and f"with start_from: {folder / 'latest_model.pth'}" in err
    code, _, err = run_cli(capsys, "train", "--c", str(config), "--eval_batch_size", "7", "--num_log_iter", "3")
    assert code == 0 and "is done: accuracy" in err
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_run_stopped_by_max_minutes_resumes(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run_cli(capsys, "train", "--c", str(config), "--max-minutes", "0")
    assert code == 130 and err.splitlines()[-1] == "usb-rsmatch: stopped after step 1 of 12; saved"
    code, _, err = run_cli(capsys, "train", "--c", str(config))
    assert code == 0 and "resuming after step 1 of 12" in err


def test_a_failed_run_has_exit_code_1(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(config.parent))
    (config.parent / "my_failing_net.py").write_text(
        "import semilearn, torch\n"
        "class Net(torch.nn.Linear):\n"
        "    num_features = 1\n"
        "    def forward(self, x, **options):\n"
        "        if self.training:\n"
        "            raise ValueError('too many dreams')\n"
        "        return {'logits': torch.zeros(len(x), 10)}\n"
        "semilearn.nets.my_net = lambda **options: Net(1, 1)\n"
    )
    code, _, err = run_cli(capsys, "train", "--c", str(config), "--plugins", "[my_failing_net]", "--net", "my_net")
    assert code == 1
    assert err.splitlines()[-1] == "usb-rsmatch: run: ValueError: too many dreams"


def test_a_network_that_cannot_be_built_is_reported_before_anything_is_written(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(config.parent))
    (config.parent / "my_narrow_net.py").write_text(
        "import semilearn\n"
        "def narrow_net(**options):\n"
        "    raise ValueError('images of 8 px are\\ntoo small')\n"
        "semilearn.nets.narrow_net = narrow_net\n"
    )
    keys = ("--plugins", "[my_narrow_net]", "--net", "narrow_net", "--use_tensorboard", "true")
    code, _, err = run_cli(capsys, "train", "--c", str(config), *keys)
    expected = "fixmatch with narrow_net on digits cannot be set up: ValueError: images of 8 px are too small"
    assert code == 2 and err == f"usb-rsmatch: {expected}\n"
    assert not (config.parent / "runs").exists()


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_a_checkpoint_and_exits(number: signal.Signals, config: Path) -> None:
    keys = ["--num_train_iter", "100000", "--num_eval_iter", "50000", "--num_log_iter", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "usb_rsmatch", "train", "--c", str(config), *keys],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ONE_THREAD,
    )
    folder = config.parent / "runs" / "run"
    try:
        deadline = time.monotonic() + 100
        while not ((folder / "metrics.jsonl").exists() and (folder / "metrics.jsonl").stat().st_size):
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()
            time.sleep(0.05)
        process.send_signal(number)
        _out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    images, stopped = err.splitlines()
    assert images.startswith("images: ") and stopped.startswith("usb-rsmatch: stopped after step ")
    step = int(stopped.split()[4])
    content, note = checkpoint.read_latest(folder)
    assert content is not None and note is None and content["it"] == step
    assert json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["it"] == step
    assert not (folder / "result.json").exists()


# pool, compare, report ----------------------------------------------------------------------------------------------


def test_pool_prints_and_writes_the_contents_of_a_pool(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out_file = config.parent / "manifest.json"
    code, out, _ = run_cli(capsys, "pool", "--c", str(config), "--out", str(out_file), "--check-shortcuts")
    assert code == 0 and "blend" in out
    manifest = json.loads(out_file.read_text())
    assert manifest["pool"] == {"real": 200, "synthetic": 200, "unknown": 0, "by_generator": {"blend": 200}}
    assert out_file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    written = out_file.read_bytes()
    code, _, err = run_cli(capsys, "pool", "--c", str(config), "--out", str(out_file))
    assert code == 2 and "nothing is overwritten" in err and out_file.read_bytes() == written
    code, out, _ = run_cli(capsys, "pool", "--c", str(config), "--synthetic_count", "0", "--check-shortcuts")
    assert code == 0 and "of one provenance only" in out


def test_pool_packs_image_files_into_the_cache_without_changing_the_pool(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("USB_RSMATCH_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for number in range(24):
        path = tmp_path / ("test" if number % 3 == 0 else "train") / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    keys = {"dataset": "folder", "data_dir": str(tmp_path), "num_labels": 4}
    (tmp_path / "pool.yaml").write_text(yaml.safe_dump(keys))
    outputs = [
        run_cli(capsys, "pool", "--c", str(tmp_path / "pool.yaml"), "--out", str(tmp_path / f"{name}.json"), *flags)
        for name, flags in (("plain", ()), ("packed", ("--pack",)), ("again", ()))
    ]
    assert [code for code, _, _ in outputs] == [0, 0, 0]
    manifests = [(tmp_path / f"{name}.json").read_bytes() for name in ("plain", "packed", "again")]
    assert len(set(manifests)) == 1
    assert len([path for path in (tmp_path / "cache" / "packs").glob("*x3.npy")]) == 2  # train and test


def test_compare_resumes_and_reports(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = config.parent / "grid.yaml"
    arms = {"FixMatch": {}, "RSMatch": {"algorithm": "rsmatch"}}
    content = yaml.safe_load(config.read_text())
    del content["save_name"], content["save_dir"]
    config.write_text(yaml.safe_dump(content))
    grid.write_text(yaml.safe_dump({"name": "two", "base": str(config), "arms": arms, "axes": {"seed": [0]}}))
    compare = ("compare", "--c", str(grid), "--save_dir", str(config.parent / "runs"))

    code, out, _ = run_cli(capsys, *compare, "--dry-run")
    assert code == 0 and out.count("to do") == 2 and not (config.parent / "runs").exists()
    code, out, _ = run_cli(capsys, *compare, "--shard", "1/2")
    assert code == 0 and out.count("done ") == 1
    code, out, _ = run_cli(capsys, *compare)
    assert code == 0 and out.count("  already") == 1 and "FixMatch" in out and "RSMatch" in out
    folder = config.parent / "runs" / "two"
    assert len(list(folder.rglob("result.json"))) == 2
    assert (folder / "report" / "report.md").exists()
    code, out, _ = run_cli(capsys, *compare)
    assert code == 0 and out.count("  already") == 2
    code, _, err = run_cli(capsys, *compare, "--save_name", "mine")
    assert code == 2 and "--save_name" in err

    code, out, _ = run_cli(capsys, "report", str(folder), "--out", str(config.parent / "again"))
    assert code == 0
    names = {Path(line).name for line in out.splitlines()}
    assert {"report.md", "index.html", "results.csv", "accuracy.png"} <= names
    again = (config.parent / "again" / "report.md").read_bytes()
    assert again == (folder / "report" / "report.md").read_bytes()


def test_a_closed_pipe_is_not_an_error() -> None:
    done = subprocess.run(
        f"{sys.executable} -m usb_rsmatch --help | head -1", shell=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.startswith("usage: ") and "Traceback" not in done.stderr


def test_version() -> None:
    done = command("--version")
    from usb_rsmatch import __version__

    assert done.returncode == 0 and done.stdout.strip() == f"usb-rsmatch {__version__}"
