"""Shipped configurations are found by path or name, in the wheel as in a checkout; similar names are suggested."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from usb_rsmatch.errors import UserError
from usb_rsmatch.usb.shipped_configs import find_config, shipped_names, shipped_root

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
NAME = "classic_cv/rsmatch/rsmatch_cifar10_40_0"


def test_every_yaml_of_the_checkout_has_a_name() -> None:
    """Names are sorted paths below config/, without the suffix .yaml."""
    names = shipped_names()
    assert NAME in names and names == sorted(names)
    assert {f"{name}.yaml" for name in names} == {
        str(path.relative_to(ROOT / "config")) for path in (ROOT / "config").rglob("*.yaml")
    }


@pytest.mark.parametrize("given", [NAME, f"{NAME}.yaml", f"config/{NAME}.yaml", f"./config/{NAME}"])
def test_shipped_names_work_in_any_folder(given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name may also be written as its path in a checkout."""
    monkeypatch.chdir(tmp_path)
    assert find_config(given) == shipped_root() / f"{NAME}.yaml"
    assert find_config(given).is_file()


@pytest.mark.parametrize("given", ["mine", "mine.yaml", NAME])
def test_a_user_s_file_has_priority(given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's file is found with or without .yaml, also if a shipped one has the same name."""
    monkeypatch.chdir(tmp_path)
    own = tmp_path / f"{given.removesuffix('.yaml')}.yaml"
    own.parent.mkdir(parents=True, exist_ok=True)
    own.write_text("seed: 1\n")
    assert find_config(given).resolve() == own.resolve()
    assert find_config(own) == own


@pytest.mark.parametrize("given", [f"{NAME}0", NAME.replace("match", "macth"), "rsmatch_cifar10_40_0"])
def test_similar_names_are_suggested(given: str) -> None:
    """The one-line message about a wrong name contains the nearest shipped names."""
    with pytest.raises(UserError, match=NAME) as caught:
        find_config(given)
    assert "\n" not in str(caught.value) and given in str(caught.value)


@pytest.mark.parametrize("given", ["zzzz", "", "config", "classic_cv"])
def test_a_name_without_a_similar_one_lists_the_folders(given: str) -> None:
    """The message about an unknown name, or about a folder, names the folders of shipped configurations."""
    with pytest.raises(UserError, match=r"classic_cv/"):
        find_config(given)


def test_pyproject_lists_every_package() -> None:
    """The list is explicit, because config/ is mapped into the wheel."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent for path in (ROOT / "usb_rsmatch").rglob("*.py")}
    tree = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert set(listed) == tree | {"usb_rsmatch.config_data"}


def test_the_wheel_contains_the_shipped_configurations(tmp_path: Path) -> None:
    """From a wheel, every shipped configuration is found by name, with the same bytes as in the checkout."""
    copy, site = tmp_path / "copy", tmp_path / "site"
    for part in ("usb_rsmatch", "config"):
        shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / part, copy)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist")]
    done = subprocess.run([*build, str(copy)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    zipfile.ZipFile(wheel).extractall(site)
    assert not (site / "config").exists()
    code = "from usb_rsmatch.usb.shipped_configs import *; [print(n, find_config(n)) for n in shipped_names()]"
    env = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    found = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert sorted(found) == shipped_names(), done.stderr
    for name, path in found.items():
        assert Path(path).is_relative_to(site)
        assert Path(path).read_bytes() == find_config(name).read_bytes()
