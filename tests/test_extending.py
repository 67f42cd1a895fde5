"""docs/extending.md: a user's own source, data set, detector, algorithm, generator and plot, outside of the package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from documents import write_files_of
from PIL import Image
from sklearn.datasets import load_digits

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ("my_config.yaml", "ramp.yaml", "stripes.yaml")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder with the page's module, after training the page's configurations."""
    folder = tmp_path_factory.mktemp("extending")
    written = write_files_of(ROOT / "docs" / "extending.md", folder)
    assert sorted(path.name for path in written) == sorted([*CONFIGS, "my_module.py", "my_plot.py"])
    digits = load_digits()
    for label in range(10):
        images = folder / "images" / "mirror" / str(label)
        images.mkdir(parents=True)
        for number, image in enumerate(digits.images[digits.target == label][:3]):
            Image.fromarray(np.round(255 - image * 255 / 16).astype(np.uint8)).save(images / f"{number}.png")
    code = "import sys; from usb_rsmatch import cli; sys.exit(max(cli.main(['train', '--c', c]) for c in sys.argv[1:]))"
    done = run(folder, "-c", code, *CONFIGS)
    assert done.returncode == 0, done.stderr
    return folder


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=180, env=env)


def result_of(folder: Path, algorithm: str, dataset: str = "digits") -> dict[str, Any]:
    results = [json.loads(path.read_text()) for path in folder.rglob("result.json")]
    return next(r for r in results if (r["algorithm"], r["dataset"]) == (algorithm, dataset))


def saved_configs(folder: Path) -> list[dict[str, Any]]:
    return [yaml.safe_load(path.read_text()) for path in folder.rglob("config.yaml")]


def test_a_source_and_a_layout(folder: Path) -> None:
    result = result_of(folder, "rsmatch")
    assert result["pool"]["by_generator"].keys() == {"noise", "mirror"}
    assert result["pool"]["by_generator"]["mirror"] == 30


def test_a_detector_and_a_network(folder: Path) -> None:
    result = result_of(folder, "rsmatch")
    assert set(result["detection"]["by_generator"]) == {"noise", "mirror"}
    (config,) = [config for config in saved_configs(folder) if config["algorithm"] == "rsmatch"]
    assert (config["plugins"], config["net"], config["rs_detector_input"]) == (["my_module"], "flat_net", "high_pass")


def test_an_algorithm_with_a_key(folder: Path) -> None:
    assert result_of(folder, "rampmatch")["iterations"] == 20
    assert any(config.get("ramp") == 0.5 for config in saved_configs(folder))


def test_a_data_set_and_a_generator(folder: Path) -> None:
    result = result_of(folder, "fixmatch", "stripes")
    assert result["pool"] == {"real": 200, "synthetic": 60, "unknown": 0, "by_generator": {"gaussian": 60}}


def test_a_plot(folder: Path) -> None:
    results = ROOT / "results" / "method" / "harm"
    done = run(folder, "my_plot.py", str(results), "accuracy.png")
    assert done.returncode == 0, done.stderr
    with Image.open(folder / "accuracy.png") as image:
        assert image.width > 300 and len(image.convert("RGB").getcolors(1 << 24) or []) > 10


def test_contributing_matches_the_package() -> None:
    """The registries that CONTRIBUTING.md names are in those files, and its tree contains every package."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    adding = text.split("## Adding something")[1].split("## Rules")[0]
    for place, name in (
        ("data/sources/registry.py", "_OPENERS"),
        ("data/sources/folder.py", "LAYOUTS"),
        ("data/sources/dataset_registry.py", "_DATASETS"),
        ("detection/detector.py", "register_detector"),
        ("usb/registration.py", "register"),
        ("synthesis/engine.py", "Engine"),
        ("synthesis/arguments.py", "--engine"),
        ("synthesis/command.py", "Engine"),
        ("report/command.py", "_plots"),
        ("report/html_page.py", "CAPTIONS"),
    ):
        assert f"`{place}`" in adding and f"`{name}`" in adding, (place, name)
        assert name in (ROOT / "usb_rsmatch" / place).read_text(encoding="utf-8"), (place, name)
    tree = text.split("## The packages")[1].split("Imports point")[0]
    for package in sorted(path.parent.name for path in (ROOT / "usb_rsmatch").rglob("__init__.py")):
        assert f"{package}/" in tree, package
