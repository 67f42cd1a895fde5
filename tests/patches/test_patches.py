"""Tests of the patches for USB's own train.py: they load plugins, only insert lines, check hashes, and revert."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PATCHES = ROOT / "patches"
WHEEL, HEAD = PATCHES / "semilearn-0.3.2-wheel", PATCHES / "usb-head-1ef4cbe"
ALL = sorted(PATCHES.glob("*/*.patch"))


def run(*command: object, cwd: Path | None = None, **env: object) -> subprocess.CompletedProcess[str]:
    """Run a command with captured output and with `env` added to this process's environment."""
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **{key: str(value) for key, value in env.items()}},
        capture_output=True,
        text=True,
        timeout=300,
    )


def apply(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the script as in its README, without site-packages: it only needs Python."""
    return run(sys.executable, "-I", "-S", PATCHES / "apply.py", *arguments)


def content(folder: Path) -> dict[str, bytes]:
    """Return {path: bytes} of all files in a folder, except Python's caches."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def copy_of(package: Path, target: Path) -> Path:
    """Copy a semilearn package to `target`/semilearn and return that folder."""
    return shutil.copytree(package, target / "semilearn", ignore=shutil.ignore_patterns("__pycache__"))


def clean_from_installed(target: Path) -> Path:
    """Copy the installed semilearn in its original state, even if the installed one is patched."""
    installed = importlib.metadata.distribution("semilearn").locate_file("semilearn")
    package = copy_of(Path(str(installed)), target)
    assert apply("--revert", package).returncode == 0
    return package


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A clean copy of the installed semilearn."""
    return clean_from_installed(tmp_path / "site")


@pytest.fixture
def head(tmp_path: Path) -> Path:
    """A copy of the USB checkout that the environment variable USB_HEAD names."""
    if "USB_HEAD" not in os.environ:
        pytest.skip("set USB_HEAD to a checkout of USB at 1ef4cbe to test its patches")
    return copy_of(Path(os.environ["USB_HEAD"]) / "semilearn", tmp_path / "head")


def install_entry_points(site: Path, name: str, lines: str) -> None:
    """Make a distribution with these entry points visible to importlib.metadata on `site`."""
    info = site / f"{name}-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0\n")
    (info / "entry_points.txt").write_text(f"[semilearn.plugins]\n{lines}\n")


SCRIPT = """
import sys

import torch
import torch.multiprocessing as mp
from semilearn.algorithms import name2alg  # as USB's train.py does; the plugin is not imported here


def child(rank, queue):
    queue.put("rsmatch" in name2alg)


def step(folder):
    from semilearn import Trainer, get_algorithm, get_config, get_data_loader, get_dataset, get_net_builder

    config = get_config({
        "algorithm": "rsmatch", "dataset": "digits", "num_classes": 10, "num_labels": 20, "img_size": 8,
        "net": "small_wrn_10_1", "net_from_name": False, "batch_size": 4, "uratio": 2, "eval_batch_size": 64,
        "epoch": 1, "num_train_iter": 1, "num_eval_iter": 1, "num_log_iter": 1, "num_workers": 0, "seed": 0,
        "data_dir": folder, "save_dir": folder, "save_name": "one_step", "distributed": False,
    })
    algorithm = get_algorithm(config, get_net_builder(config.net, from_name=False), tb_log=None, logger=None)
    data = get_dataset(config, config.algorithm, config.dataset, config.num_labels, config.num_classes,
                       data_dir=config.data_dir, include_lb_to_ulb=config.include_lb_to_ulb)
    one = {"num_epochs": 1, "num_iters": 1, "num_workers": 0}
    labelled = get_data_loader(config, data["train_lb"], config.batch_size, **one)
    unlabelled = get_data_loader(config, data["train_ulb"], config.batch_size * config.uratio, **one)
    evaluation = get_data_loader(config, data["eval"], config.eval_batch_size, data_sampler=None,
                                 num_workers=0, drop_last=False)
    before = [value.detach().clone() for value in algorithm.model.parameters()]
    Trainer(config, algorithm).fit(labelled, unlabelled, evaluation)
    return any(not torch.equal(old, new) for old, new in zip(before, algorithm.model.parameters()))


if __name__ == "__main__":
    assert "rsmatch" in name2alg, "not registered in a fresh interpreter"
    queue = mp.get_context("spawn").SimpleQueue()
    mp.spawn(child, args=(queue,), nprocs=1)
    assert queue.get(), "not registered in a spawned child"
    assert len(sys.argv) < 2 or step(sys.argv[1]), "a step of training moved no weight"
    print("done")
"""


@pytest.mark.parametrize("patch", ALL, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_hunks_only_insert(patch: Path) -> None:
    """A patch has no upstream lines: no context lines and no removed lines."""
    lines = patch.read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("@@"))
    hunks = [line for line in lines[first:] if line.startswith("@@")]
    assert hunks and all(line.split()[1].endswith(",0") for line in hunks)
    assert all(line.startswith(("+", "@@")) for line in lines[first:])


def test_wheel_patch_registers_everywhere_and_trains(package: Path, tmp_path: Path) -> None:
    """`rsmatch` is known in a fresh interpreter and a spawned child, trains a step, and the patch reverts."""
    before = content(package)
    assert apply(package).returncode == 0
    install_entry_points(package.parent, "usb_rsmatch", "usb_rsmatch = usb_rsmatch")
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    path = os.pathsep.join([str(package.parent), str(ROOT)])
    saved = tmp_path / "saved"
    done = run(sys.executable, script, saved, cwd=tmp_path, PYTHONPATH=path, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "done"
    assert content(package) != before
    assert apply("--revert", package).returncode == 0
    assert content(package) == before


def test_head_patches_register_everywhere(head: Path, tmp_path: Path) -> None:
    """A clone imports with current timm, knows `rsmatch` there and in a spawned child, and reverts."""
    before = content(head)
    done = apply(head.parent)
    assert done.stdout.count("patched: ") == 2, done.stderr
    install_entry_points(head.parent, "usb_rsmatch", "usb_rsmatch = usb_rsmatch")
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    path = os.pathsep.join([str(head.parent), str(ROOT)])
    done = run(sys.executable, script, cwd=tmp_path, PYTHONPATH=path, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    assert apply("--revert", head).returncode == 0
    assert content(head) == before


def plugin_loader(patch: Path, site: Path) -> Path:
    """Write a package `semilearn` that only contains the inserted lines of a patch."""
    package = site / "semilearn"
    package.mkdir(parents=True)
    _, *hunks = patch.read_text().split("@@ -")
    inserted = [line[1:] for hunk in hunks for line in hunk.splitlines()[1:]]
    (package / "__init__.py").write_text("\n".join([*inserted, ""]))
    return package


@pytest.mark.parametrize("folder", [WHEEL, HEAD], ids=lambda path: path.name)
def test_broken_plugin_warns_with_its_name(folder: Path, tmp_path: Path) -> None:
    """A warning names a plugin that cannot be imported; semilearn and the next plugin are loaded, once."""
    plugin_loader(folder / "plugins.patch", tmp_path)
    (tmp_path / "breaks.py").write_text("raise RuntimeError('on purpose')\n")
    (tmp_path / "works.py").write_text("print('loaded')\n")
    install_entry_points(tmp_path, "some", "a_breaks = breaks\nb_works = works\nc_absent = no_such_module")
    install_entry_points(tmp_path, "again", "b_works = works")
    code = "import importlib, semilearn; importlib.reload(semilearn)"
    done = run(sys.executable, "-S", "-c", code, cwd=tmp_path, PYTHONPATH=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("loaded") == 1
    for name, reason in [("a_breaks", "on purpose"), ("c_absent", "no_such_module")]:
        assert f"'{name}'" in done.stderr and reason in done.stderr


def test_plugin_may_be_imported_before_semilearn(tmp_path: Path) -> None:
    """A plugin that is imported first imports semilearn, which finds it partly imported: it loads without a warning."""
    plugin_loader(WHEEL / "plugins.patch", tmp_path)
    (tmp_path / "early.py").write_text("import semilearn\nprint('registered')\n")
    install_entry_points(tmp_path, "early", "early = early")
    done = run(sys.executable, "-S", "-W", "error", "-c", "import early", cwd=tmp_path, PYTHONPATH=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "registered\n", "")


def test_applying_and_reverting_twice_changes_nothing_more(package: Path) -> None:
    """Applying and reverting are idempotent, and `--check` writes nothing."""
    clean = content(package)
    assert apply("--check", package).stdout.startswith("clean: ") and content(package) == clean
    apply(package)
    patched = content(package)
    assert apply("--check", package).stdout.startswith("patched: ")
    assert apply(package).returncode == 0 and content(package) == patched != clean
    for _ in range(2):
        assert apply("--revert", package).returncode == 0 and content(package) == clean
    mode = (package / "__init__.py").stat().st_mode
    assert mode == (package / "algorithms" / "__init__.py").stat().st_mode


@pytest.mark.parametrize("arguments", [(), ("--revert",), ("--check",)])
@pytest.mark.parametrize("patched_first", [False, True])
def test_refuses_a_shifted_file(package: Path, arguments: tuple[str, ...], patched_first: bool) -> None:
    """A clean or patched file with an additional line is refused: one line of output, exit code 2, no change."""
    if patched_first:
        apply(package)
    target = package / "__init__.py"
    target.write_bytes(b"# shifted\n" + target.read_bytes())
    before = content(package)
    done = apply(*arguments, package)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and str(target) in done.stderr
    assert content(package) == before


def test_refuses_a_folder_without_semilearn(tmp_path: Path) -> None:
    """The message is one line that names the folder."""
    done = apply(tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and str(tmp_path) in done.stderr


PATCH = ["patch", "-p1", "-i"]
GIT = ["git", "apply", "--unidiff-zero"]


@pytest.mark.parametrize(
    ("forth", "back"), [(PATCH, [*PATCH[:2], "-R", "-i"]), (GIT, [*GIT, "-R"])], ids=["patch", "git"]
)
def test_patch_and_git_apply_do_the_same(package: Path, forth: list[str], back: list[str]) -> None:
    """`patch` and `git apply` produce the same bytes as the script, for applying and reverting."""
    if shutil.which(forth[0]) is None:
        pytest.skip(f"{forth[0]} is not installed")
    clean = content(package)
    apply(package)
    patched = content(package)
    apply("--revert", package)
    for command, wanted in [(forth, patched), (back, clean)]:
        site = package.parent
        done = run(*command, WHEEL / "plugins.patch", cwd=site, GIT_CEILING_DIRECTORIES=site.parent)
        assert done.returncode == 0, done.stderr
        assert content(package) == wanted


def test_lines_for_forks_in_the_readme_load_a_plugin(tmp_path: Path) -> None:
    """The three lines in patches/README.md load a plugin."""
    lines = (PATCHES / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert len([line for line in lines.splitlines() if line]) == 3
    (tmp_path / "semilearn").mkdir()
    (tmp_path / "semilearn" / "__init__.py").write_text(lines)
    (tmp_path / "works.py").write_text("print('loaded')\n")
    install_entry_points(tmp_path, "some", "works = works")
    done = run(sys.executable, "-S", "-c", "import semilearn", cwd=tmp_path, PYTHONPATH=tmp_path)
    assert (done.returncode, done.stdout) == (0, "loaded\n"), done.stderr
