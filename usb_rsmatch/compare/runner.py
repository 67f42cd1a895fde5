"""Runs the runs of a grid as parallel processes: finished runs are skipped, a failed run does not stop the others."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import yaml

from usb_rsmatch.compare.grid import Grid, Run
from usb_rsmatch.errors import UserError
from usb_rsmatch.io import write_text
from usb_rsmatch.progress import duration
from usb_rsmatch.report.grid_record import write_record
from usb_rsmatch.report.result_file import Result, read_result

Fingerprint = Callable[[Mapping[str, Any]], str]
TRAIN = (sys.executable, "-m", "usb_rsmatch", "train", "--c")
LAST_LINES = 6
POLL_SECONDS = 0.1


def prepare(grid: Grid, runs: Sequence[Run], fingerprint: Fingerprint) -> dict[str, str]:
    """Write each run's YAML to `<grid folder>/configs/` and the grid's record, `grid.json`; return the hashes.

    `runs` are all runs of the grid, even if this machine trains only a shard of them. `fingerprint` is the hash
    that a run of that configuration writes into its result. Returns {run name: hash}.
    """
    hashes = {run.name: fingerprint(run.config) for run in runs}
    for run in runs:
        write_text(config_path(run), yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True))
    write_record(grid.record(runs, hashes), grid.folder)
    return hashes


def config_path(run: Run) -> Path:
    """Where a run's configuration is written."""
    return run.folder.parent / "configs" / f"{run.name}.yaml"


def log_path(run: Run) -> Path:
    """The file for a run's output; it is outside of the run folder, which only the run itself writes."""
    return run.folder.parent / "logs" / f"{run.name}.log"


def finished(run: Run, sha256: str) -> Result | None:
    """The run's result, if it is complete and belongs to this configuration."""
    path = run.folder / "result.json"
    if not path.is_file():
        return None
    with contextlib.suppress(UserError):
        result = read_result(path)
        return result if result.config_sha256 == sha256 else None
    return None


@dataclass
class _Job:
    """A run in progress."""

    run: Run
    process: subprocess.Popen[bytes]
    started: float
    log_start: int  # position in the log at which this attempt begins


@dataclass
class Runner:
    """Trains the runs; `train()` returns the exit code: 0, 1 if a run failed, 130 if interrupted.

    Raises UserError for `jobs` under 1.
    """

    runs: Sequence[Run]
    hashes: Mapping[str, str]
    jobs: int | None = None  # parallel processes; default: the number of cores, at most that of runs
    out: TextIO = field(default_factory=lambda: sys.stdout)
    command: Sequence[str] = TRAIN  # the path of a run's YAML is appended

    def __post_init__(self) -> None:
        if self.jobs is not None and self.jobs < 1:
            raise UserError(f"--jobs takes a number of processes from 1, not {self.jobs}")

    def train(self) -> int:
        """Train the runs that are not done yet; prints one line per run."""
        self.done = self.failed = 0
        self.stop: int | None = None
        waiting: deque[Run] = deque()
        for run in self.runs:
            result = finished(run, self.hashes[run.name])
            if result:
                self.done += 1
                self._say(f"done {self._count()}  {run.label}  {describe(result)}  already")
            else:
                waiting.append(run)
        jobs = min(self.jobs or cores(), max(len(waiting), 1))
        self.running: list[_Job] = []
        with self._signals():
            try:
                while self.running or (waiting and self.stop is None):
                    while waiting and len(self.running) < jobs and self.stop is None:
                        self.running.append(self._start(waiting.popleft(), threads_of(jobs)))
                    time.sleep(POLL_SECONDS)
                    self._status()
                    for job in [job for job in self.running if job.process.poll() is not None]:
                        self.running.remove(job)
                        self._finish(job)
            finally:
                for job in self.running:  # only if this process itself fails
                    job.process.kill()
                if self.out.isatty():
                    self.out.write("\r\x1b[K")
        if self.stop is not None:
            self._say(f"interrupted: {self.done} of {len(self.runs)} runs done; the same command resumes")
            return 130
        return 1 if self.failed else 0

    def _start(self, run: Run, threads: int) -> _Job:
        log_path(run).parent.mkdir(parents=True, exist_ok=True)
        with open(log_path(run), "ab") as log:
            start = log.tell()
            process = subprocess.Popen(
                [*self.command, str(config_path(run))],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"},
                start_new_session=True,  # then Ctrl-C reaches it only through this process
            )
        return _Job(run, process, time.monotonic(), start)

    def _finish(self, job: _Job) -> None:
        run, code = job.run, job.process.returncode
        took = duration(time.monotonic() - job.started)
        result = finished(run, self.hashes[run.name]) if code == 0 else None
        if result:
            self.done += 1
            self._say(f"done {self._count()}  {run.label}  {describe(result)}  {took}")
        elif self.stop is not None:
            self._say(f"stopped  {run.label}  {took}")
        else:
            self.failed += 1
            log = log_path(run)
            reason = (
                f"exit code {code}" if code > 0 else f"signal {-code}" if code else "no result of this configuration"
            )
            self._say(f"failed {self._count()}  {run.label}  {reason}  {took}  {log}")
            for line in last_lines(log, job.log_start):
                self._say(f"    {line}")

    def _count(self) -> str:
        return f"{self.done + self.failed}/{len(self.runs)}"

    def _say(self, line: str) -> None:
        clear = "\r\x1b[K" if self.out.isatty() else ""
        print(f"{clear}{line}", file=self.out, flush=True)

    def _status(self) -> None:
        if self.out.isatty():
            now = time.monotonic()
            names = ", ".join(f"{job.run.label} {duration(now - job.started)}" for job in self.running)
            text = f"{self._count()}  running: {names}"
            width = os.get_terminal_size(self.out.fileno()).columns - 1
            self.out.write(f"\r\x1b[K{text[:width]}")
            self.out.flush()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Forward SIGINT and SIGTERM, so that child processes save and exit; a second signal kills them."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def pass_on(number: int, frame: Any) -> None:
            for job in self.running:
                with contextlib.suppress(ProcessLookupError):
                    if self.stop is not None:
                        job.process.kill()
                    elif os.name == "posix":  # on Windows the console itself signals its child processes
                        job.process.send_signal(number)
            self.stop = number

        before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_of(jobs: int) -> int:
    """Threads for each of `jobs` processes: an equal share of the cores, at most OMP_NUM_THREADS."""
    share = max(cores() // jobs, 1)
    given = os.environ.get("OMP_NUM_THREADS", "")
    return min(share, int(given)) if given.isdigit() and int(given) else share


def last_lines(log: Path, start: int = 0, count: int = LAST_LINES) -> list[str]:
    """The last lines of a log from byte `start`; of a progress bar only its last state."""
    with open(log, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(start, size - 65536))
        text = file.read().decode("utf-8", errors="replace")
    lines = [line.rstrip().rsplit("\r", 1)[-1] for line in text.split("\n")]
    return [line for line in lines if line.strip()][-count:]


def describe(result: Result) -> str:
    """A result's figures for a progress line."""
    auroc = f"  AUROC {result.auroc:.3f}" if result.auroc is not None else ""
    return f"acc {100 * result.last:.1f}{auroc}"
