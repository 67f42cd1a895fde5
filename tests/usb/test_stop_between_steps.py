"""Signals to real training processes, and time limits: a checkpoint, exit code 130, and the same final weights."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.faults.forked_commands import ForkedCommand
from usb_rsmatch.usb import checkpoint
from usb_rsmatch.usb.training import train


@pytest.fixture
def long(tiny: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """A run of some seconds that would save a checkpoint only at its end."""
    tiny |= {"num_train_iter": 60, "num_eval_iter": 60, "num_log_iter": 1, "rs_loader": "batched"}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(tiny))
    return tiny


def start(tmp_path: Path, name: str = "run", **flags: Any) -> ForkedCommand:
    extra = [f"--{key}={value}" for key, value in flags.items()]
    argv = ["train", "--c", str(tmp_path / "c.yaml"), "--save_name", name, *extra]
    return ForkedCommand(argv, tmp_path / f"{name}.log", lambda: os.chdir(tmp_path))


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_a_checkpoint_and_the_resumed_run_equals_the_uninterrupted_one(
    number: int, long: dict[str, Any], tmp_path: Path
) -> None:
    folder = Path(long["save_dir"]) / "run"
    with start(tmp_path) as child:
        assert child.wait_for(lambda: lines(folder / "metrics.jsonl") >= 5), child.output()
        child.send(number)
        assert child.wait() == 130, child.output()
    content, _ = checkpoint.read_latest(folder)
    assert content is not None and 5 <= content["it"] < 60
    assert f"usb-rsmatch: stopped after step {content['it']} of 60; saved" in child.output()
    assert "Traceback" not in child.output()
    stopped = train(long, note=lambda line: None)
    whole = train({**long, "save_name": "whole"}, note=lambda line: None)
    ends = [checkpoint.read(Path(long["save_dir"]) / name / "latest_model.pth") for name in ("run", "whole")]
    assert checkpoint.digest(ends[0]["model"]) == checkpoint.digest(ends[1]["model"])
    assert stopped["accuracy"] == whole["accuracy"]


def test_a_second_signal_stops_immediately(long: dict[str, Any], tmp_path: Path) -> None:
    """A plugin's network sleeps, so that the step does not end: no checkpoint and no incomplete file remains."""
    folder = Path(long["save_dir"]) / "run"
    (tmp_path / "sleepy.py").write_text(
        "import time\n"
        "from usb_rsmatch.algorithms import networks\n"
        "import semilearn.nets as nets\n"
        "def sleepy(**options):\n"
        "    net = nets.small_wrn_10_1(**options)\n"
        "    net.register_forward_hook(lambda *_: time.sleep(60) if net.training else None)\n"
        "    return net\n"
        "nets.sleepy = sleepy\n"
    )
    with start(tmp_path, plugins="[sleepy]", net="sleepy") as child:
        assert child.wait_for(lambda: (folder / "metrics.jsonl").exists()), child.output()
        child.send(signal.SIGTERM)
        time.sleep(0.3)
        assert child.poll() is None
        sent = time.monotonic()
        child.send(signal.SIGTERM)
        assert child.wait() == 130 and time.monotonic() - sent < 5
    assert child.output().endswith("usb-rsmatch: interrupted\n") and "Traceback" not in child.output()
    assert not (folder / "latest_model.pth").exists() and not list(folder.glob(".*.tmp"))


def test_a_signal_before_the_first_step_exits_with_130(long: dict[str, Any], tmp_path: Path) -> None:
    with start(tmp_path) as child:
        time.sleep(0.05)
        child.send(signal.SIGINT)
        assert child.wait() == 130, child.output()


def test_a_signal_stops_the_warm_up_immediately(long: dict[str, Any], tmp_path: Path) -> None:
    """Dash's warm-up can have any number of steps, and no checkpoints."""
    with start(tmp_path, algorithm="dash", num_wu_iter=10**6) as child:
        assert child.wait_for((Path(long["save_dir"]) / "run" / "log.txt").exists), child.output()
        time.sleep(0.5)
        child.send(signal.SIGTERM)
        assert child.wait(20) == 130, child.output()
    assert "Traceback" not in child.output()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_to_the_whole_process_group(number: int, long: dict[str, Any], tmp_path: Path) -> None:
    """Ctrl-C in a terminal and job schedulers send one; the loaders' worker processes receive it too."""
    folder = Path(long["save_dir"]) / "run"
    with start(tmp_path, rs_loader="pil", num_workers=1, num_eval_iter=20) as child:
        assert child.wait_for(lambda: lines(folder / "metrics.jsonl") >= 5), child.output()
        os.killpg(child.pid, number)
        assert child.wait() == (-9 if number == signal.SIGKILL else 130), child.output()
    with start(tmp_path, rs_loader="pil", num_workers=0, num_eval_iter=20) as child:
        assert child.wait() == 0, child.output()
    assert json.loads((folder / "result.json").read_text())["iterations"] == 60


def test_a_killed_worker_loses_no_step(long: dict[str, Any], tmp_path: Path) -> None:
    """As when memory is short: the run reports it and saves the state between two steps."""
    folder = Path(long["save_dir"]) / "run"
    with start(tmp_path, rs_loader="pil", num_workers=1) as child:
        assert child.wait_for(lambda: lines(folder / "metrics.jsonl") >= 5), child.output()
        workers = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
        assert len(workers) == 3
        os.kill(int(workers[0]), signal.SIGKILL)
        assert child.wait() == 1, child.output()
    assert "a worker process of the loader has ended" in child.output() and "Traceback" not in child.output()
    assert "; saved after step " in child.output() and checkpoint.read_latest(folder)[0] is not None
    with start(tmp_path, rs_loader="pil", num_workers=0) as child:
        assert child.wait() == 0, child.output()


def test_the_time_limit_saves_a_checkpoint_and_exits_with_130(long: dict[str, Any], tmp_path: Path) -> None:
    with start(tmp_path, **{"max-minutes": 1e-4}) as child:
        assert child.wait() == 130, child.output()
    content, _ = checkpoint.read_latest(Path(long["save_dir"]) / "run")
    assert content is not None and content["it"] == 1
