"""Runs of a grid as cluster jobs, by submitit (an extra): on SLURM, or as local processes for a trial.

A job trains one run in a process of its own. If the cluster ends a job early (preemption, time limit), the run saves a
checkpoint, and submitit submits the job again, which resumes from there.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from usb_rsmatch.compare.grid import Run
from usb_rsmatch.compare.runner import (
    TRAIN,
    config_path,
    describe,
    duration,
    finished,
    last_lines,
    log_path,
    threads_of,
)
from usb_rsmatch.errors import UserError

CLUSTERS = ("slurm", "local")
MINUTES = 24 * 60  # default time limit of a job; after it the job is submitted again
POLL_SECONDS = 0.5


class Training:
    """A job: trains the run of a configuration file, and saves a checkpoint when the cluster ends the job."""

    def __init__(self, command: Sequence[str], log: Path, threads: int | None) -> None:
        self.command, self.log, self.threads = list(command), log, threads
        self.pid: int | None = None

    def __call__(self) -> int:
        """The exit code of the training."""
        threads = threads_of(1) if self.threads is None else self.threads  # of the machine on which the job runs
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "ab") as log:
            process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"},
                start_new_session=True,  # only `checkpoint` forwards the cluster's signal
            )
        self.pid = process.pid
        try:
            return process.wait()
        except KeyboardInterrupt:  # the job is cancelled: the run must save as well
            process.terminate()
            raise

    def checkpoint(self) -> Any:
        """Called by submitit from its signal handler, within `process.wait()`: save, and request another job."""
        import submitit

        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(self.pid, signal.SIGTERM)
                os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)  # `process.wait()` holds Popen's lock
        return submitit.helpers.DelayedSubmission(Training(self.command, self.log, self.threads))


@dataclass
class _Sent:
    """A job and the run that it trains."""

    run: Run
    job: Any
    begun: float
    log_start: int


@dataclass
class Submission:
    """Submits the runs and waits for them; `train()` returns the exit code as `Runner.train` does."""

    runs: Sequence[Run]
    hashes: Mapping[str, str]
    cluster: str
    options: Mapping[str, Any] = field(default_factory=dict)  # submitit's parameters
    jobs: int | None = None  # parallel jobs; default: no limit on a cluster, the number of cores locally
    out: TextIO = field(default_factory=lambda: sys.stdout)
    command: Sequence[str] = TRAIN

    def train(self) -> int:
        """Submit what is not done yet, and print a line at the end of each run.

        Raises UserError without submitit or the cluster's commands, and for options that submitit does not know.
        """
        if self.jobs is not None and self.jobs < 1:
            raise UserError(f"--jobs takes a number of jobs from 1, not {self.jobs}")
        self.done = self.failed = 0
        waiting: list[Run] = []
        for run in self.runs:
            result = finished(run, self.hashes[run.name])
            if result:
                self.done += 1
                self._say(f"done {self._count()}  {run.label}  {describe(result)}  already")
            else:
                waiting.append(run)
        if not waiting:
            return 0
        executor = self._executor(waiting[0].folder.parent / "logs" / "jobs", waiting[0].folder.parent.name)
        at_a_time = min(self.jobs or threads_of(1), len(waiting)) if self.cluster == "local" else len(waiting)
        sent: list[_Sent] = []
        try:
            while waiting or sent:
                batch, waiting = waiting[: at_a_time - len(sent)], waiting[at_a_time - len(sent) :]
                sent += self._send(executor, batch, at_a_time)
                for one in [one for one in sent if one.job.done()]:
                    sent.remove(one)
                    self._finish(one)
                time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            if self.cluster == "local":
                for one in sent:
                    one.job.cancel(check=False)
            names = ", ".join(one.job.job_id for one in sent)
            fate = "were stopped" if self.cluster == "local" else "are running: wait before you repeat the command"
            self._say(f"interrupted: {self.done} of {len(self.runs)} runs done; jobs {names} {fate}")
            return 130
        return 1 if self.failed else 0

    def _executor(self, folder: Path, name: str) -> Any:
        try:
            import submitit
        except ImportError:
            raise UserError("--submit needs the package submitit: pip install 'usb_rsmatch[submitit]'") from None
        settings: dict[str, Any] = {"name": name, "timeout_min": MINUTES, **self.options}
        if self.cluster == "slurm" and self.jobs is not None:
            settings.setdefault("slurm_array_parallelism", self.jobs)
        try:
            executor = submitit.AutoExecutor(folder=folder / "%j", cluster=self.cluster)
            executor.update_parameters(**settings)
        except (RuntimeError, NameError, ValueError, TypeError, AssertionError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"--submit {self.cluster}: {reason}") from None
        return executor

    def _send(self, executor: Any, batch: Sequence[Run], at_a_time: int) -> list[_Sent]:
        """Submit a batch, on SLURM as one array."""
        if not batch:
            return []
        threads = threads_of(at_a_time) if self.cluster == "local" else None
        jobs = []
        with executor.batch():
            for run in batch:
                jobs.append(executor.submit(Training([*self.command, str(config_path(run))], log_path(run), threads)))
        sent = []
        for run, job in zip(batch, jobs, strict=True):
            log_start = log_path(run).stat().st_size if log_path(run).exists() else 0
            sent.append(_Sent(run, job, time.monotonic(), log_start))
            self._say(f"sent  {run.label}  job {job.job_id}")
        return sent

    def _finish(self, one: _Sent) -> None:
        run, took = one.run, duration(time.monotonic() - one.begun)
        result = finished(run, self.hashes[run.name])
        if result:
            self.done += 1
            self._say(f"done {self._count()}  {run.label}  {describe(result)}  {took}")
            return
        self.failed += 1
        try:
            reason = f"exit code {one.job.result()}"
        except Exception as error:  # reported by the job itself or by the cluster
            lines = [line for line in str(error).splitlines() if line.strip()]
            reason = lines[-1].strip()[:200] if lines else type(error).__name__
        self._say(f"failed {self._count()}  {run.label}  {reason}  {took}  {log_path(run)}")
        for line in last_lines(log_path(run), one.log_start) if log_path(run).exists() else []:
            self._say(f"    {line}")

    def _count(self) -> str:
        return f"{self.done + self.failed}/{len(self.runs)}"

    def _say(self, line: str) -> None:
        print(line, file=self.out, flush=True)


def options_of(words: Sequence[str]) -> dict[str, Any]:
    """`KEY=VALUE` words as submitit's parameters, values read as YAML; UserError for a word without `=`."""
    from usb_rsmatch.usb.plain_values import parse

    options = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key.isidentifier():
            raise UserError(f"--option takes KEY=VALUE, such as timeout_min=600, not {word!r}")
        options[key] = parse(value, f"--option {key}")
    return options
