"""Without W&B and Aim everything else works, and `doctor` reports any missing package; in new processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from usb_rsmatch.usb import doctor

# None in sys.modules: importing the module fails, and find_spec does not find it.
BLOCK = "import sys\nsys.modules.update(dict.fromkeys({names!r}))\n"
MAIN = "from usb_rsmatch.cli import main\nsys.exit(main({words!r}))"


def run(blocked: tuple[str, ...], program: str, before: str = "") -> subprocess.CompletedProcess[str]:
    code = BLOCK.format(names=blocked) + before + program
    return subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=300)


def command(blocked: tuple[str, ...], *words: str, before: str = "") -> subprocess.CompletedProcess[str]:
    return run(blocked, MAIN.format(words=list(words)), before)


TRUTHFUL = """
import importlib.util
import usb_rsmatch, semilearn
from semilearn.core.hooks import AimHook, WANDBHook
from usb_rsmatch.errors import UserError
for name, hook in (("aim", AimHook), ("wandb", WANDBHook)):
    assert importlib.util.find_spec(name) is None and sys.modules.get(name) is None
    try:
        __import__(name)
    except ImportError:
        pass
    else:
        raise AssertionError(name)
    try:
        hook()
    except UserError as error:
        assert str(error) == f"use_{name} needs the package {name}: pip install {name}"
    else:
        raise AssertionError(name)
"""


def test_no_other_code_is_led_to_believe_that_a_missing_tracker_exists() -> None:
    found = run(("aim", "wandb"), TRUTHFUL)
    assert found.returncode == 0, found.stderr


def test_a_run_without_trackers_trains_and_one_that_asks_for_one_gets_one_line(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({**tiny, "algorithm": "rsmatch", "save_dir": str(tmp_path), "save_name": "run"}))
    found = command(("aim", "wandb"), "train", "--c", str(config))
    assert found.returncode == 0, found.stderr
    assert json.loads((tmp_path / "run" / "result.json").read_text())["algorithm"] == "rsmatch"
    for name in ("aim", "wandb"):
        found = command(
            ("aim", "wandb"), "train", "--c", str(config), f"--use_{name}", "true", "--save_name", f"with_{name}"
        )
        assert found.returncode == 2 and "Traceback" not in found.stderr
        assert found.stderr.splitlines()[-1] == f"usb-rsmatch: use_{name} needs the package {name}: pip install {name}"
        assert not (tmp_path / f"with_{name}").exists()


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("semilearn", "missing       semilearn, which is required: pip install --no-deps semilearn"),
        ("torch", "missing       torch, which is required: pip install torch"),
        ("torchvision", "missing       torchvision, which is required: pip install torchvision"),
        ("PIL", "missing       PIL, which is required: pip install pillow"),
        ("yaml", "missing       yaml, which is required: pip install pyyaml"),
        ("numpy", "missing       numpy, which is required: pip install numpy"),
        ("aim", "missing       aim, for use_aim: pip install 'aim'"),
    ],
)
def test_doctor_reports_a_missing_package(module: str, line: str) -> None:
    found = command((module,), "doctor")
    assert found.returncode == 0 and "Traceback" not in found.stderr, found.stderr
    lines = found.stdout.splitlines()
    assert line in lines
    assert any(line.startswith("cache ") for line in lines) and any(line.startswith("extras ") for line in lines)


BROKEN = """
import importlib.abc, importlib.machinery
class Broken(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        return importlib.machinery.ModuleSpec(name, self) if name == "torch" else None
    def exec_module(self, module):
        raise OSError("libtorch_cpu.so: cannot open shared object file")
sys.meta_path.insert(0, Broken())
"""


def test_doctor_reports_a_torch_that_cannot_be_loaded() -> None:
    found = command((), "doctor", before=BROKEN)
    assert found.returncode == 0 and "Traceback" not in found.stderr, found.stderr
    assert "broken        machine: OSError: libtorch_cpu.so: cannot open shared object file" in found.stdout
    assert "python  " in found.stdout and "torchvision  " in found.stdout


def test_the_readmes_installation_without_trackers_names_every_required_package() -> None:
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
    commands = [line.split()[2:] for line in readme.splitlines() if line.startswith("    pip install ")]
    packages = {word for words in commands for word in words if not word.startswith("-")}
    needed = {package.split()[-1] for package in doctor.REQUIRED.values()}
    assert packages == needed | {"usb-rsmatch"}
