"""Tests of the generated configurations: up to date, valid, and with the same settings as USB's FixMatch."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from usb_rsmatch.compare.grid import plan, read_grid
from usb_rsmatch.data.pool.settings import PoolConfig
from usb_rsmatch.data.sources.dataset_registry import dataset_names
from usb_rsmatch.usb.config import DEAD, KEYS, all_keys, import_semilearn, resolve
from usb_rsmatch.usb.network import find_net

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "config" / "make_configs.py"
FILES = sorted((ROOT / "config" / "classic_cv" / "rsmatch").glob("*.yaml"))
GRIDS = sorted((ROOT / "config" / "paper").glob("*.yaml"))
USB_CV = sorted((ROOT / "config" / "usb_cv").glob("*/*.yaml"))
OPEN_SET = sorted(set((ROOT / "config" / "classic_cv").glob("*/*.yaml")) - set(FILES))


def make(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the generator."""
    return subprocess.run([sys.executable, str(SCRIPT), *map(str, arguments)], capture_output=True, text=True)


def test_committed_files_are_what_the_generator_writes(tmp_path: Path) -> None:
    """`--check` finds no difference here, lists missing files in another folder, and writes nothing."""
    assert make("--check").returncode == 0
    missing = make("--check", "--out", tmp_path)
    assert missing.returncode == 1
    assert missing.stdout.count("out of date") == len(FILES + OPEN_SET + USB_CV + GRIDS) == 36 + 12 + 63 + 4
    assert list(tmp_path.iterdir()) == []
    assert make("--out", tmp_path).returncode == 0
    assert {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.yaml")} == {
        path.relative_to(ROOT / "config"): path.read_bytes() for path in FILES + OPEN_SET + USB_CV + GRIDS
    }


def test_a_changed_file_is_found(tmp_path: Path) -> None:
    """An edited file is reported, and restored by the script."""
    make("--out", tmp_path)
    edited = tmp_path / "classic_cv" / "rsmatch" / FILES[7].name
    edited.write_text(edited.read_text().replace("lr: 0.03", "lr: 0.3"))
    check = make("--check", "--out", tmp_path)
    assert check.returncode == 1 and check.stdout == f"out of date: {edited}\n"
    assert make("--out", tmp_path).stdout == f"wrote: {edited}\n"
    assert edited.read_bytes() == FILES[7].read_bytes()


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100", "svhn", "stl10"])
def test_each_resolves_without_a_note(dataset: str) -> None:
    """No key is unknown, without effect or of the wrong type, and the file name matches the content."""
    files = [path for path in FILES if path.stem.split("_")[1] == dataset]
    assert len(files) == 9
    for path in files:
        config, notes = resolve(path)
        assert notes == []
        assert path.stem == config.save_name == f"rsmatch_{config.dataset}_{config.num_labels}_{config.seed}"


@pytest.mark.parametrize("algorithm", ["openmatch", "iomatch", "scomatch", "uasd"])
def test_each_open_set_file_resolves_without_a_note(algorithm: str) -> None:
    """They differ from RSMatch's in the algorithm, its keys and the training length, a multiple of the interval."""
    files = [path for path in OPEN_SET if path.parent.name == algorithm]
    assert [path.stem.split("_")[2] for path in files] == ["250", "4000", "40"]
    for path in files:
        config, notes = resolve(path)
        assert notes == [] and path.stem == config.save_name == f"{algorithm}_cifar10_{config.num_labels}_0"
        ours = yaml.safe_load(path.read_text())
        twin = path.parents[1] / "rsmatch" / path.name.replace(algorithm, "rsmatch")
        theirs = yaml.safe_load(twin.read_text())
        different = {key for key in ours.keys() & theirs.keys() if ours[key] != theirs[key]}
        length = {"epoch", "num_train_iter", "num_eval_iter", "uratio"}
        assert different <= {"algorithm", "save_name", "p_cutoff", "T"} | length
        assert config.num_train_iter % config.num_eval_iter == 0


@pytest.mark.parametrize("algorithm", ["rsmatch", "openmatch", "iomatch", "scomatch", "uasd"])
def test_each_file_on_a_pretrained_vit_resolves_without_a_note(algorithm: str) -> None:
    """Nine pairs of data set and label count, as USB has them; ViTs that exist, and no split of BatchNorm they lack."""
    files = [path for path in USB_CV if path.parent.name == algorithm]
    assert len(files) == 9 * (3 if algorithm == "rsmatch" else 1)
    for path in files:
        config, notes = resolve(path)
        assert notes == [] and path.stem == config.save_name
        assert config.save_name == f"{algorithm}_{config.dataset}_{config.num_labels}_{config.seed}"
        assert config.num_labels >= config.num_classes and config.dataset in dataset_names()
        network = find_net(config)(num_classes=config.num_classes) if config.seed == 0 else None
        norms = [] if network is None else [type(m) for m in network.modules() if "Norm" in type(m).__name__]
        assert config.use_pretrain and config.rs_norm == ("shared" if algorithm == "rsmatch" else "split")
        assert network is None or (norms and set(norms) == {torch.nn.LayerNorm})
        assert network is None or network.patch_embed.img_size == (config.img_size, config.img_size)


@pytest.mark.skipif("USB_HEAD" not in os.environ, reason="set USB_HEAD to a checkout of USB to compare")
def test_settings_on_vits_are_those_of_usbs_fixmatch() -> None:
    """All keys that have an effect equal those of USB's FixMatch on the same data and label count."""
    upstream = Path(os.environ["USB_HEAD"]) / "config" / "usb_cv" / "fixmatch"
    files = [path for path in USB_CV if path.parent.name == "rsmatch" and path.stem.endswith("_0")]
    found = {path.name.replace("fixmatch", "rsmatch") for path in upstream.glob("*.yaml")}
    assert {path.name for path in files} == found
    for path in files:
        theirs = yaml.safe_load((upstream / path.name.replace("rsmatch", "fixmatch")).read_text())
        ours = yaml.safe_load(path.read_text())
        live = {name for name in theirs if name not in DEAD} - {"use_wandb"}
        assert {name for name in ours if not name.startswith("rs_")} == live | {"synthetic"}
        for name in live - {"algorithm", "save_name", "save_dir"}:
            assert ours[name] == (float(theirs[name]) if isinstance(ours[name], float) else theirs[name]), name


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_each_grid_of_the_paper_plans_runs_that_resolve_without_a_note(path: Path) -> None:
    """Data set, generators, label counts, shares and seeds are as expected; the supervised arm has a fixed share."""
    import_semilearn()
    grid = read_grid(path, all_keys(), lambda name: {})
    runs = plan(grid)
    spread = len(grid.axes["num_labels"]) * len(grid.axes["seed"])
    assert len(runs) == spread * (1 + (len(grid.arms) - 1) * len(grid.axes["synthetic_ratio"]))
    assert {run.config["dataset"] for run in runs} == {path.stem} and path.stem in dataset_names()
    assert [entry["generator"] for entry in grid.base["synthetic"]] == ["glide", "sd14", "sdxl_lightning"]
    text = path.read_text()
    assert "our settings" in text and "NOT YET RUN HERE" in text and f"--c paper/{path.stem} --dry-run" in text
    found = re.search(r"Cost: (\d+) runs of ([\d,]+) steps\. At (\d+) steps[^#]*# ([\d,]+) GPU hours", text)
    assert found is not None
    count, steps, pace, hours = (int(number.replace(",", "")) for number in found.groups())
    assert count == len(runs) and {run.config["num_train_iter"] for run in runs} == {steps}
    assert hours == pytest.approx(count * steps / pace / 3600, abs=1)
    assert {"openmatch", "iomatch", "scomatch", "uasd", "rsmatch"} < {run.config["algorithm"] for run in runs}
    authors = {run.config["lambda_socr"] for run in runs if run.arm == "OpenMatch"}
    aligned = {run.config["dist_align"] for run in runs if run.arm == "IOMatch"}
    assert (authors, aligned) == (({0.5}, {False}) if path.stem == "cifar10" else ({1.0}, {True}))
    for run in (run for run in runs if run.axes["seed"] == 0):
        config, notes = resolve(run.config)
        assert notes == [] and config.num_labels % config.num_classes == 0, run.label
        PoolConfig.read(config)


def test_all_rsmatch_keys_are_present_with_their_defaults() -> None:
    """The shipped files contain every key of RSMatch with its default value."""
    defaults = {name: key.default for name, key in KEYS.items() if name.startswith("rs_")}
    for path in FILES:
        content = yaml.safe_load(path.read_text())
        assert {name: value for name, value in content.items() if name.startswith("rs_")} == defaults


@pytest.mark.skipif("USB_HEAD" not in os.environ, reason="set USB_HEAD to a checkout of USB to compare")
def test_settings_are_those_of_usbs_fixmatch() -> None:
    """With seed 0, all keys that have an effect equal those of USB's FixMatch on the same data and label count."""
    upstream = Path(os.environ["USB_HEAD"]) / "config" / "classic_cv" / "fixmatch"
    for path in (path for path in FILES if path.stem.endswith("_0")):
        theirs = yaml.safe_load((upstream / path.name.replace("rsmatch", "fixmatch")).read_text())
        ours = yaml.safe_load(path.read_text())
        live = {name for name in theirs if name not in DEAD} - {"use_wandb"}
        assert {name for name in ours if not name.startswith("rs_")} == live | {"synthetic"}
        for name in live - {"algorithm", "save_name"}:
            assert ours[name] == theirs[name] and type(ours[name]) is type(theirs[name])
