"""Shipped configurations: found by path or name, near misses named, in the wheel as in the checkout."""

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
    """Names are paths below config/ without the ending, sorted."""
    names = shipped_names()
    assert NAME in names and names == sorted(names)
    assert {f"{name}.yaml" for name in names} == {
        str(path.relative_to(ROOT / "config")) for path in (ROOT / "config").rglob("*.yaml")
    }


@pytest.mark.parametrize("given", [NAME, f"{NAME}.yaml", f"config/{NAME}.yaml", f"./config/{NAME}"])
def test_shipped_names_from_any_folder(given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name works anywhere, with or without what the path in a checkout has around it."""
    monkeypatch.chdir(tmp_path)
    assert find_config(given) == shipped_root() / f"{NAME}.yaml"
    assert find_config(given).is_file()


@pytest.mark.parametrize("given", ["mine", "mine.yaml", NAME])
def test_own_files_go_first(given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's file is found with or without its ending, also where it is called like a shipped one."""
    monkeypatch.chdir(tmp_path)
    own = tmp_path / f"{given.removesuffix('.yaml')}.yaml"
    own.parent.mkdir(parents=True, exist_ok=True)
    own.write_text("seed: 1\n")
    assert find_config(given).resolve() == own.resolve()
    assert find_config(own) == own


@pytest.mark.parametrize("given", [f"{NAME}0", NAME.replace("match", "macth"), "rsmatch_cifar10_40_0"])
def test_near_misses_are_named(given: str) -> None:
    """A wrong name is answered in one line with the nearest right ones."""
    with pytest.raises(UserError, match=NAME) as caught:
        find_config(given)
    assert "\n" not in str(caught.value) and given in str(caught.value)


@pytest.mark.parametrize("given", ["zzzz", "", "config", "classic_cv"])
def test_what_is_near_nothing_is_told_what_there_is(given: str) -> None:
    """Neither an alien name nor a folder is a configuration; the folders to choose from are named."""
    with pytest.raises(UserError, match=r"classic_cv/rsmatch/"):
        find_config(given)


def test_packages_of_pyproject_are_those_of_the_tree() -> None:
    """The explicit list of packages, which mapping config/ into the wheel needs, lacks none."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent for path in (ROOT / "usb_rsmatch").rglob("*.py")}
    tree = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert set(listed) == tree | {"usb_rsmatch.config_data"}


def test_wheel_holds_what_the_checkout_holds(tmp_path: Path) -> None:
    """A wheel built from a copy finds every shipped configuration by name, with its bytes, anywhere."""
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
