"""The code, configurations and commands of the documents run; the long ones with --runslow."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from documents import blocks, write_files_of
from PIL import Image
from sklearn.datasets import load_digits

from usb_rsmatch.compare.grid import plan, read_grid
from usb_rsmatch.usb import config
from usb_rsmatch.usb.config import resolve
from usb_rsmatch.usb.shipped_configs import find_config

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "patches" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = ("train", "compare", "report", "pool", "eval", "predict", "synthesize", "audit", "export", "doctor")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_code_parses_and_configurations_have_known_keys_only(page: Path, tmp_path: Path) -> None:
    for body in blocks(page, "python"):
        ast.parse(body)
    for body in blocks(page, "yaml"):
        content = yaml.safe_load(body)
        assert isinstance(content, dict)
        if "arms" in content:
            (tmp_path / "grid.yaml").write_text(body, encoding="utf-8")
            known = {**config.all_keys(), **dict.fromkeys(config.DEAD)}
            grid = read_grid(tmp_path / "grid.yaml", known, lambda base: config.read_yaml(find_config(base)))
            assert len(plan(grid)) == 3 * 3 * 2 * 3 - 3 * 2  # three axes and arms, minus the excluded combinations
        elif "plugins" not in content:  # test_extending.py runs the others, with their plugin
            assert resolve(content)[1] == []


@pytest.mark.slow
def test_the_quickstart_command_sets_everything_up_and_makes_the_table(tmp_path: Path) -> None:
    """On a copy without build outputs, as on a fresh clone."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    command = readme.split("<!-- quickstart command -->\n```bash\n")[1].split("\n```")[0]
    ignored = shutil.ignore_patterns(".git", ".venv*", "saved_models", "__pycache__", ".*_cache", "build", "*.egg-info")
    shutil.copytree(ROOT, tmp_path / "clone", ignore=ignored)
    done = subprocess.run(
        command, shell=True, cwd=tmp_path / "clone", capture_output=True, text=True, timeout=3600, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    for arm in ("FixMatch, real part only", "FixMatch, whole pool", "RSMatch, whole pool"):
        assert arm in done.stdout
    assert len(list((tmp_path / "clone" / "saved_models" / "photos").glob("*/result.json"))) == 9


def run_commands(body: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a page's shell block in `folder`, with this environment's commands first on the path."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", **variables}
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", body], cwd=folder, env=env, capture_output=True, text=True, timeout=1800
    )


@pytest.mark.slow
def test_the_tutorial_from_top_to_bottom(tmp_path: Path) -> None:
    page = ROOT / "docs" / "tutorial.md"
    written = write_files_of(page, tmp_path)
    assert sorted(path.name for path in written) == ["make_folders.py", "tutorial.yaml"]
    for body in blocks(page, "bash"):
        done = run_commands(body, tmp_path, USB_RSMATCH_CACHE=str(tmp_path / "cache"))
        assert done.returncode == 0, f"{body}{done.stdout[-2000:]}{done.stderr[-2000:]}"
    (python,) = [body for body in blocks(page, "python") if not body.startswith("# ")]
    done = subprocess.run([sys.executable, "-c", python], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "saved_models" / "tutorial"
    for table in (tmp_path / "audit.csv", tmp_path / "predictions.csv", run / "unlabeled.csv"):
        assert len(table.read_text().splitlines()) == 1001
    result = json.loads((run / "result.json").read_text())
    assert result["pool"]["unknown"] == result["detection"]["unknown"]["images"] == 1000
    page = (tmp_path / "saved_models" / "report" / "index.html").read_text()
    assert f"{100 * result['detection']['unknown']['estimate']:.1f}" in page and "Lowest scores" in page
    assert 0 < json.loads((tmp_path / "eval.json").read_text())["metrics"]["top-1-acc"] <= 1
    for name in ("audit.html", "audit.detector.pt", "by_run.csv", "model.pt2", "model.pt2.json", "model.pt2.md"):
        assert (tmp_path / name).stat().st_size > 0


def test_the_page_on_labels_from_top_to_bottom(tmp_path: Path) -> None:
    """Its table, configuration and command, on four images of digits."""
    page = ROOT / "docs" / "labels.md"
    assert [path.name for path in write_files_of(page, tmp_path)] == ["labels.yaml"]
    (tmp_path / "photos" / "images").mkdir(parents=True)
    for number in range(1, 5):
        pixels = np.round(load_digits().images[number] * 255 / 16).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / "images" / f"img_{number:04d}.jpg")
    (tmp_path / "photos" / "labels.csv").write_text(*blocks(page, "csv"), encoding="utf-8")
    (command,) = blocks(page, "bash")
    done = run_commands(command, tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["labeled", "2", "1"] in rows and ["unlabeled", "3", "1", "1"] in rows, done.stdout


@pytest.mark.slow
def test_the_page_on_backbones_from_top_to_bottom(tmp_path: Path) -> None:
    """Its configuration, weights and commands, on a pool of real digits."""
    page = ROOT / "docs" / "backbones.md"
    assert sorted(path.name for path in write_files_of(page, tmp_path)) == ["backbones.yaml", "make_weights.py"]
    for body in blocks(page, "bash"):
        done = run_commands(body, tmp_path, USB_RSMATCH_CACHE=str(tmp_path / "cache"))
        assert done.returncode == 0, f"{body}{done.stdout[-2000:]}{done.stderr[-2000:]}"
        assert "images are resized from 32 to 64 px (bicubic)" in done.stderr
        assert "network has 0 BatchNorm layers" in done.stderr
    assert (tmp_path / "saved_models" / "vit" / "result.json").exists() and (tmp_path / "vit.safetensors").exists()


def test_the_command_that_uploads_a_folder_exists(tmp_path: Path) -> None:
    """`hf` of huggingface_hub, without a network; it takes the repository and the folder in the README's order."""
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    assert "`hf upload OWNER/NAME FOLDER`" in (ROOT / "README.md").read_text(encoding="utf-8")
    done = run_commands("hf upload --help", tmp_path, NO_COLOR="1")
    usage = " ".join(done.stdout.split())
    assert done.returncode == 0 and usage.index("REPO_ID") < usage.index("LOCAL_PATH"), done.stderr


def notebook_cells() -> list[str]:
    content = json.loads((ROOT / "docs" / "quickstart.ipynb").read_text(encoding="utf-8"))
    assert content["nbformat"] == 4
    for cell in content["cells"]:
        assert cell["cell_type"] != "code" or (cell["outputs"] == [] and cell["execution_count"] is None)
    return ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_is_clean_and_its_code_parses() -> None:
    assert len(notebook_cells()) >= 5
    for source in notebook_cells():
        ast.parse(source)


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path) -> None:
    """Run its cells in order in one new process, without Jupyter."""
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    (tmp_path / "notebook.py").write_text("\n\n".join(notebook_cells()), encoding="utf-8")
    env = {**os.environ, "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1", "USB_RSMATCH_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "notebook.py"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "of 1200 images look synthetic" in done.stdout and "true share: 50.0 %" in done.stdout
    assert (tmp_path / "notebook.pt2.md").exists()


@pytest.mark.slow
def test_every_command_of_the_readmes_table_runs(tiny: dict[str, Any], tmp_path: Path) -> None:
    """With files in place of the table's words in capitals; an unknown word fails."""
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| `(usb-rsmatch [^`]+)` \|", page, re.MULTILINE)
    assert {line.split()[1] for line in table} == set(COMMANDS)
    config = {key: value for key, value in tiny.items() if key not in ("save_dir", "save_name")}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**config, "algorithm": "rsmatch", "save_name": "run"}))
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(config))
    grid = {"name": "two", "base": "base.yaml", "arms": {"FixMatch": {}}, "axes": {"seed": [0]}}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid))
    digits = load_digits()
    for number in range(100):
        for folder in ("images", "real"):
            path = tmp_path / folder / f"{number}.png"
            path.parent.mkdir(exist_ok=True)
            pixels = digits.images[number + 100 * (folder == "real")]
            Image.fromarray(np.round(pixels * 255 / 16).astype(np.uint8)).save(path)
    words = {
        "CONFIG": "tiny.yaml",
        "GRID": "grid.yaml",
        "RESULTS": "saved_models/two",
        "RUN": "saved_models/run",
        "IMAGES": "images",
        "FOLDER": "real",
        r"flow\|diffusers": "flow --dataset digits --count 20 --train-steps 20 --steps 2 --out made",
    }
    pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install 'usb-rsmatch[onnx]'")
    for number, line in enumerate(table):
        known = {**words, "FILE.csv": f"{number}.csv", "FILE": f"{number}.bin"}
        typed = [known.get(word, word) for word in line.split()]
        assert not [word for word in typed if word.isupper()], line
        done = run_commands(" ".join(typed), tmp_path)
        assert done.returncode == 0, f"{line}\n{done.stdout[-1500:]}{done.stderr[-1500:]}"


@pytest.mark.slow
def test_the_three_lines_extend_a_config_of_usb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The README's three lines, added to a configuration with USB's keys, on images in folders."""
    from usb_rsmatch.cli import main

    (lines,) = blocks(ROOT / "README.md", "yaml")
    usb = {
        "save_dir": "./saved_models/classic_cv",
        "save_name": "mine",
        "resume": True,
        "overwrite": True,
        "load_path": "./saved_models/classic_cv/mine/latest_model.pth",
        "use_tensorboard": True,
        "epoch": 2,
        "num_train_iter": 20,
        "num_eval_iter": 10,
        "num_labels": 20,
        "batch_size": 8,
        "eval_batch_size": 256,
        "hard_label": True,
        "T": 0.5,
        "p_cutoff": 0.95,
        "ulb_loss_ratio": 1.0,
        "uratio": 3,
        "ema_m": 0.999,
        "crop_ratio": 0.875,
        "img_size": 8,
        "optim": "SGD",
        "lr": 0.03,
        "momentum": 0.9,
        "weight_decay": 0.0005,
        "layer_decay": 1.0,
        "amp": False,
        "clip": 0.0,
        "use_cat": True,
        "net": "wrn_28_2",
        "net_from_name": False,
        "data_dir": "./data",
        "dataset": "digits",
        "train_sampler": "RandomSampler",
        "num_classes": 10,
        "num_workers": 1,
        "seed": 0,
        "world_size": 1,
        "rank": 0,
        "multiprocessing_distributed": True,
        "dist_url": "tcp://127.0.0.1:10001",
        "dist_backend": "nccl",
        "gpu": "None",
    }
    monkeypatch.chdir(tmp_path)
    digits = load_digits()
    for number in range(100):
        folder = tmp_path / "synthetic" / "sd14" / str(digits.target[number])
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.roll(np.round(digits.images[number] * 255 / 16), 1, axis=1).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (tmp_path / "my_config.yaml").write_text(yaml.safe_dump({**usb, **yaml.safe_load(lines)}))
    assert main(["train", "--c", "my_config.yaml"]) == 0
    result = json.loads((tmp_path / "saved_models" / "classic_cv" / "mine" / "result.json").read_text())
    assert result["algorithm"] == "rsmatch" and result["pool"]["by_generator"] == {"sd14": 100}
    assert list((tmp_path / "saved_models" / "classic_cv" / "mine").rglob("events.out.tfevents*"))
