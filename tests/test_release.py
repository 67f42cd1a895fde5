"""Tests of the release: wheel and sdist build and pass their checks, and the wheel runs outside of the repository."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(*words: str, **options: object) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=900, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    return str(done.stdout)


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sdist from a copy of the tree, and the wheel from the sdist; return their folder."""
    pytest.importorskip("build", reason="build is not installed: no wheel and sdist are made")
    folder = tmp_path_factory.mktemp("release")
    ignored = shutil.ignore_patterns(".git", ".venv*", "saved_models", "__pycache__", ".*_cache", "build", "*.egg-info")
    shutil.copytree(ROOT, folder / "tree", ignore=ignored)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist"), str(folder / "tree"))
    return folder / "dist"


def test_wheel_and_sdist_pass_their_checks(dist: Path) -> None:
    assert sorted(path.name.split("-")[0] for path in dist.iterdir()) == ["usb_rsmatch"] * 2
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    names = zipfile.ZipFile(wheel).namelist()
    assert "usb_rsmatch/py.typed" in names and "usb_rsmatch/inference/audit.py" in names
    assert not [name for name in names if name.startswith(("tests/", "docs/", "results/", "patches/"))]
    assert not [name for name in names if "benchmarks" in name]
    campaigns = {path.name for path in (ROOT / "benchmarks").rglob("*.py") if not path.name.startswith("__")}
    modules = {name for name in names if name.endswith(".py") and Path(name).name in campaigns}
    own = {"usb_rsmatch/inference/audit.py", "usb_rsmatch/data/sources/photos.py"}  # campaigns have these names too
    assert modules == own
    with tarfile.open(sdist) as archive:
        assert any(name.endswith("/pyproject.toml") for name in archive.getnames())
    if importlib.util.find_spec("twine") is None:
        pytest.skip("twine is not installed: no check of the metadata")
    assert run(sys.executable, "-m", "twine", "check", "--strict", *map(str, dist.iterdir())).count("PASSED") == 2


@pytest.mark.slow
def test_the_wheel_alone_runs_anywhere(dist: Path, tmp_path: Path) -> None:
    """In a new environment with the wheel and, by path, the other packages of this environment."""
    venv.create(tmp_path / "env", with_pip=True, symlinks=os.name == "posix")
    binaries = tmp_path / "env" / ("Scripts" if os.name == "nt" else "bin")
    python = str(binaries / "python")
    (wheel,) = dist.glob("*.whl")
    run(python, "-m", "pip", "install", "--no-deps", "--no-index", str(wheel))
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    others = [path for path in sys.path if path.endswith("site-packages")]  # a line in a .pth runs no other .pth file
    (Path(site) / "others.pth").write_text("\n".join(others))
    work, env = tmp_path / "work", {**os.environ, "OMP_NUM_THREADS": "1", "USB_RSMATCH_CACHE": str(tmp_path / "cache")}
    env.pop("PYTHONPATH", None)
    work.mkdir()
    found = run(python, "-c", "import usb_rsmatch; print(usb_rsmatch.__file__)", cwd=work, env=env).strip()
    assert Path(found).is_relative_to(tmp_path)
    source = "[{source: flow, generator: tiny, steps: 20, sampler_steps: 2, solver: euler}]"
    keys = ["--num_train_iter", "20", "--num_eval_iter", "10", "--num_log_iter", "10", "--synthetic", source]
    command = str(binaries / "usb-rsmatch")
    run(command, "train", "--c", "quickstart/rsmatch", *keys, "--save_name", "run", cwd=work, env=env)
    result = json.loads((work / "saved_models" / "run" / "result.json").read_text())
    assert result["pool"] == {"real": 600, "synthetic": 600, "unknown": 0, "by_generator": {"tiny": 600}}
    assert "top-1-acc" in run(command, "eval", "saved_models/run", cwd=work, env=env)
    assert sorted(path.name for path in work.iterdir()) == ["saved_models"]


def test_the_workflow_does_what_ci_run_does() -> None:
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert "run: bash .ci/run" in workflow and (ROOT / ".ci" / "run").exists()
