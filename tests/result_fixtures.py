"""Result files of the real schema, and a stand-in for training that writes them."""

from __future__ import annotations

import hashlib
import json
import sys
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from usb_rsmatch.compare.grid import Run, parse_grid, plan
from usb_rsmatch.compare.runner import prepare


def result_content(**changes: Any) -> dict[str, Any]:
    """A whole `result.json`; `changes` may reach in with dotted names: {"accuracy.last": 0.5}."""
    content: dict[str, Any] = {
        "algorithm": "fixmatch",
        "dataset": "digits",
        "seed": 0,
        "num_labels": 20,
        "iterations": 1200,
        "pool": {"real": 600, "synthetic": 600, "by_generator": {"flow": 600}},
        "accuracy": {"last": 0.9, "best": 0.95, "best_iteration": 600, "validation": None},
        "detection": None,
        "time": {"train_seconds": 12.5, "images_per_second": 900.0},
        "peak_memory_mib": 412.0,
        "versions": {"usb_rsmatch": "0.1.0", "semilearn": "0.3.2", "torch": "2.14.1"},
        "finished": "2026-01-02T03:04:05+00:00",
        "threads": 2,
        "device": "cpu",
        "config_sha256": hashlib.sha256(repr(sorted(changes.items())).encode()).hexdigest(),
    }
    for name, value in changes.items():
        *path, last = name.split("__")
        place = content
        for part in path:
            place = place[part]
        place[last] = value
    content["accuracy"]["best"] = max(content["accuracy"]["best"], content["accuracy"]["last"])
    return content


def detection(auroc: float) -> dict[str, Any]:
    """The detection part of a result."""
    figures = {"auroc": auroc, "ap": auroc, "fpr95": 1 - auroc}
    return {**figures, "by_generator": {"flow": dict(figures)}}


@pytest.fixture
def write_result(tmp_path: Path) -> Callable[..., Path]:
    """`write_result("name", accuracy__last=0.5)` writes `results/name/result.json` and gives its path."""

    def write(name: str, **changes: Any) -> Path:
        path = tmp_path / "results" / name / "result.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(result_content(**changes)))
        return path

    return write


STAND_IN = """
    import hashlib, json, os, signal, sys, time
    from pathlib import Path
    import yaml

    sys.path.insert(0, {here!r})
    from result_fixtures import detection, result_content

    config = yaml.safe_load(Path(sys.argv[-1]).read_text())
    folder = Path(config["save_dir"], config["save_name"])
    folder.mkdir(exist_ok=True)
    print("threads", os.environ["OMP_NUM_THREADS"], flush=True)

    def interrupted(*_):
        (folder / "checkpoint").write_text("saved")
        sys.exit(130)

    signal.signal(signal.SIGINT, interrupted)
    signal.signal(signal.SIGTERM, interrupted)
    (folder / "parent").write_text(str(os.getppid()))
    with open(folder / "starts", "a") as starts:
        starts.write("started" + chr(10))
    if config.get("lr") == 13:
        print("step 1/100\\rstep 2/100", flush=True)
        raise SystemExit("the loss is not finite at step 2")
    time.sleep(float(config.get("momentum", 0)))
    identity = {{key: value for key, value in config.items() if not key.startswith("save_")}}
    content = result_content(
        algorithm=config["algorithm"],
        seed=config["seed"],
        num_labels=config.get("num_labels", 20),
        accuracy__last=0.8 + 0.01 * config["seed"] + (0.05 if config["algorithm"] == "rsmatch" else 0),
        detection=detection(0.9) if config["algorithm"] == "rsmatch" else None,
        config_sha256=hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest(),
    )
    if config.get("synthetic_count") == 0:
        content["pool"] = {{"real": 600, "synthetic": 0, "by_generator": {{}}}}
    (folder / "result.json").write_text(json.dumps(content))
"""


def write_analysis(folder: Path, detector: bool, seed: int = 0) -> None:
    """An `analysis.npz` as a run leaves it, of embedded digits: two generators, the first easier to tell."""
    rng, digits = np.random.default_rng(seed), load_digits()
    images = np.round(digits.images * 255 / 16).astype(np.uint8)[..., None]
    confusion = 30 * np.eye(10, dtype=np.int64) + rng.integers(0, 4, (10, 10))
    content: dict[str, Any] = {
        "format": 1,
        "classes": [str(label) for label in range(10)],
        "generators": ["real", "flow", "blur"],
        "confusion": confusion,
        "features": digits.data[:90].astype(np.float16),
        "features_class": digits.target[:90],
        "features_generator": (np.arange(90) % 3).astype(np.int16),
    }
    if detector:
        generators = rng.integers(0, 3, 300).astype(np.int16)
        shift = np.array([0.0, 1.5, 0.5])[generators]
        scores = (1 / (1 + np.exp(-rng.normal(shift)))).astype(np.float32)
        order = np.argsort(scores)
        content |= {"scores": scores, "scores_generator": generators}
        for name, index in (("lowest", order[:5]), ("highest", order[::-1][:5]), ("queued", order[-7:])):
            content[f"{name}_images"] = images[index]
            content[f"{name}_scores"] = scores[index]
            content[f"{name}_generator"] = generators[index]
        content["queue_class"] = content["queued_class"] = digits.target[order[-7:]]
        content["queue_generator"] = generators[order[-7:]]
    np.savez_compressed(folder / "analysis.npz", **content)


@pytest.fixture
def leave_analysis() -> Callable[..., None]:
    """`leave_analysis(folder, detector=True)` writes one."""
    return write_analysis


@pytest.fixture
def stand_in(tmp_path: Path) -> list[str]:
    """A command that "trains" a run's YAML in an instant; lr 13 makes it fail, momentum is its seconds."""
    script = tmp_path / "stand_in.py"
    script.write_text(textwrap.dedent(STAND_IN).format(here=str(Path(__file__).parent)))
    return [sys.executable, str(script)]


def configuration_hash(config: Mapping[str, Any]) -> str:
    """The hash that the stand-in writes."""
    identity = {key: value for key, value in config.items() if not key.startswith("save_")}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


@pytest.fixture
def fingerprint() -> Callable[[Mapping[str, Any]], str]:
    """`configuration_hash`."""
    return configuration_hash


@pytest.fixture
def finished_grid(tmp_path: Path) -> Callable[..., Path]:
    """A grid with a result for each run, as `compare` leaves it; `accuracy(run)` is each one's share of 1."""

    def make(accuracy: Callable[[Run], float], curves: int = 0, **content: Any) -> Path:
        known = {
            "algorithm",
            "seed",
            "num_labels",
            "synthetic_count",
            "synthetic_ratio",
            "lr",
        }
        content = {
            "config": {"algorithm": "fixmatch", "num_labels": 20},
            "save_dir": str(tmp_path),
            **content,
        }
        grid = parse_grid(content, "grid.yaml", "grid", known, lambda name: {})
        runs = plan(grid)
        hashes = prepare(grid, runs, configuration_hash)
        for run in runs:
            config = run.config
            ratio = config.get("synthetic_ratio", 0.5)
            synthetic = config.get("synthetic_count", round(600 * ratio / (1 - ratio)))
            write(run.folder, config, accuracy(run), synthetic, hashes[run.name], curves)
        return grid.folder

    def write(folder: Path, config: Any, accuracy: float, synthetic: int, sha256: str, curves: int) -> None:
        detector = detection(0.9 + 0.01 * config["seed"]) if config["algorithm"] == "rsmatch" else None
        pool = {"real": 600, "synthetic": synthetic, "by_generator": {"flow": synthetic} if synthetic else {}}
        content = result_content(
            algorithm=config["algorithm"], seed=config["seed"], num_labels=config["num_labels"], pool=pool,
            accuracy__last=accuracy, detection=detector, config_sha256=sha256,
        )  # fmt: skip
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(content))
        lines = []
        for step in range(1, curves + 1):
            figures = {"eval/top-1-acc": accuracy * step / curves, "detection/auroc": 0.9} if step % 10 == 0 else {}
            lines.append(json.dumps({"it": step * 10, "train/total_loss": 1 / step, **figures}))
        (folder / "metrics.jsonl").write_text("\n".join(lines))

    return make
