"""Jobs by submitit's own local executor: done, failed, preempted and submitted again, refused."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from usb_rsmatch.compare.cluster import Submission, Training, options_of
from usb_rsmatch.compare.grid import Run, parse_grid, plan
from usb_rsmatch.compare.runner import prepare
from usb_rsmatch.errors import UserError

submitit = pytest.importorskip("submitit", reason="needs submitit: pip install 'usb_rsmatch[submitit]'")
Fingerprint = Callable[[Mapping[str, Any]], str]
SLOW = {"algorithm": "fixmatch", "momentum": 8}  # seconds that the stand-in takes
KNOWN = {"algorithm", "seed", "lr", "momentum"}


def make_runs(tmp_path: Path, fingerprint: Fingerprint, **content: Any) -> tuple[list[Run], dict[str, str]]:
    content = {"config": {"algorithm": "fixmatch"}, "axes": {"seed": [0, 1]}, "save_dir": str(tmp_path), **content}
    grid = parse_grid(content, "grid.yaml", "demo", KNOWN, lambda name: {})
    runs = plan(grid)
    return runs, prepare(grid, runs, fingerprint)


def test_jobs_are_done_or_fail_apart_and_done_ones_are_not_sent(
    tmp_path: Path, stand_in: list[str], fingerprint: Fingerprint
) -> None:
    runs, hashes = make_runs(tmp_path, fingerprint, arms={"good": {}, "bad": {"lr": 13}})
    out = io.StringIO()
    options = {"timeout_min": 2}
    assert Submission(runs, hashes, "local", options, jobs=2, out=out, command=stand_in).train() == 1
    lines = out.getvalue().splitlines()
    assert sum(line.startswith("sent ") for line in lines) == 4
    assert sum(line.startswith("done ") and "acc " in line for line in lines) == 2
    assert sum(line.startswith("failed ") and "exit code 1" in line for line in lines) == 2
    assert sum("the loss is not finite at step 2" in line for line in lines) == 2
    out = io.StringIO()
    good = [run for run in runs if run.arm == "good"]
    assert Submission(good, hashes, "local", options, out=out, command=stand_in).train() == 0
    assert out.getvalue().count("already") == 2 and "sent" not in out.getvalue()


def test_a_preempted_job_saves_and_goes_on(tmp_path: Path, stand_in: list[str], fingerprint: Fingerprint) -> None:
    """By submitit's signal for preemption; the stand-in writes `checkpoint` on SIGTERM and counts its starts."""
    runs, hashes = make_runs(tmp_path, fingerprint, axes={"seed": [0]}, config=SLOW)
    submission = Submission(runs, hashes, "local", {"timeout_min": 2}, out=io.StringIO(), command=stand_in)
    executor = submission._executor(tmp_path / "jobs", "demo")
    (sent,) = submission._send(executor, runs, 1)
    starts = runs[0].folder / "starts"
    wait_for(lambda: starts.exists())
    os.kill(int((runs[0].folder / "parent").read_text()), signal.SIGUSR2)  # as SLURM sends it to the job's process
    wait_for(lambda: (runs[0].folder / "checkpoint").exists())
    assert sent.job.result() == 0
    assert starts.read_text().count("started") == 2 and (runs[0].folder / "result.json").exists()


def wait_for(happened: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_checkpoint_waits_for_the_training_to_end(tmp_path: Path) -> None:
    script = "import signal, sys, time, pathlib\n"
    script += "def save(*_):\n    time.sleep(0.5); pathlib.Path(sys.argv[1]).write_text('saved'); sys.exit(130)\n"
    script += "signal.signal(signal.SIGTERM, save); print('ready', flush=True); time.sleep(60)"
    log, saved = tmp_path / "log", tmp_path / "saved"
    training = Training([sys.executable, "-c", script, str(saved)], log, 1)
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(training()))
    thread.start()
    wait_for(lambda: log.exists() and b"ready" in log.read_bytes())
    again = training.checkpoint()
    assert saved.read_text() == "saved", "it has saved before the job is given back"
    thread.join(30)
    assert codes == [130] and again.function.command == training.command and again.function.pid is None


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_an_interrupt_stops_local_jobs(tmp_path: Path, stand_in: list[str], fingerprint: Fingerprint) -> None:
    runs, hashes = make_runs(tmp_path, fingerprint, axes={"seed": [0]}, config=SLOW)
    out = io.StringIO()
    starts = runs[0].folder / "starts"

    def interrupt() -> None:
        wait_for(lambda: starts.exists())
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert Submission(runs, hashes, "local", {"timeout_min": 2}, out=out, command=stand_in).train() == 130
    thread.join()
    wait_for(lambda: (runs[0].folder / "checkpoint").exists())
    assert "interrupted: 0 of 1 runs done" in out.getvalue() and "were stopped" in out.getvalue()


def test_what_cannot_be_submitted_is_told_in_one_line(
    tmp_path: Path, fingerprint: Fingerprint, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, hashes = make_runs(tmp_path, fingerprint)
    with pytest.raises(UserError, match=r"--submit local: .*slurm_colour"):
        Submission(runs, hashes, "local", {"slurm_colour": "red"}).train()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="--submit slurm: "):
        Submission(runs, hashes, "slurm").train()
    with pytest.raises(UserError, match="--jobs"):
        Submission(runs, hashes, "local", jobs=0).train()
    assert options_of(["timeout_min=60", "slurm_partition=gpu", "slurm_setup=[a, b]"]) == {
        "timeout_min": 60, "slurm_partition": "gpu", "slurm_setup": ["a", "b"],
    }  # fmt: skip
    with pytest.raises(UserError, match="KEY=VALUE"):
        options_of(["timeout"])


def test_slurm_gets_one_array(tmp_path: Path, fingerprint: Fingerprint, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for `sbatch` shows what SLURM would be asked for; no cluster is here."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, script in (("sbatch", f'cp "$1" {tmp_path}/asked; echo "Submitted batch job 42"'), ("srun", "exit 0")):
        (tools / name).write_text(f"#!/bin/sh\n{script}\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    runs, hashes = make_runs(tmp_path, fingerprint)
    options = {"slurm_partition": "gpu", "gpus_per_node": 1, "timeout_min": 90}
    submission = Submission(runs, hashes, "slurm", options, jobs=1, out=io.StringIO())
    sent = submission._send(submission._executor(tmp_path / "jobs", "demo"), runs, 2)
    assert [one.job.job_id for one in sent] == ["42_0", "42_1"]
    asked = (tmp_path / "asked").read_text()
    for line in ("--array=0-1%1", "--partition=gpu", "--gpus-per-node=1", "--time=90", "--job-name=demo"):
        assert f"#SBATCH {line}" in asked
    assert subprocess.run(["sh", "-n", str(tmp_path / "asked")], check=False).returncode == 0
