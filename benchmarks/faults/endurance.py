"""The endurance run: memory, open files and threads of a long training run must not grow after a warm-up."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.faults.run_workspace import RunWorkspace

WARMUP = 0.25  # share of the samples that is ignored as warm-up
SECONDS = 1.0  # between two samples
GROWTH = 0.05  # growth relative to the memory after the warm-up; more is a leak (our choice)


def sample(pid: int) -> tuple[float, int, int]:
    """Return resident memory (MiB), number of open files and of threads of a process, from /proc (Linux)."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return int(status["VmRSS"].split()[0]) / 1024, len(os.listdir(f"/proc/{pid}/fd")), int(status["Threads"])


def slope_per_hour(seconds: np.ndarray, values: np.ndarray) -> float:
    """Least-squares slope of values [n] over seconds [n], per hour."""
    return float(np.polyfit(seconds, values, 1)[0] * 3600) if len(seconds) > 2 else 0.0


def find_leak(memory: np.ndarray, files: np.ndarray, threads: np.ndarray) -> str:
    """Return what has grown from the first to the last quarter of the samples [n], by medians; "" for no growth."""
    quarter = max(len(memory) // 4, 1)
    grown = []
    for name, values, share in (("MiB", memory, GROWTH), ("open files", files, 0.0), ("threads", threads, 0.0)):
        begun, ended = float(np.median(values[:quarter])), float(np.median(values[-quarter:]))
        if ended > begun * (1 + share):
            grown.append(f"from {begun:.4g} to {ended:.4g} {name}")
    return f"leak: {', '.join(grown)}" if grown else ""


def endurance_run(workspace: RunWorkspace, minutes: float) -> dict[str, Any]:
    """Train RSMatch for `minutes` and sample its process every `SECONDS`.

    PIL loader with a worker, evaluation and checkpoint every 20 steps. Raises RuntimeError if the run ends early.
    """
    config = workspace.config(
        1,
        workspace.new_run_name(),
        num_train_iter=10**7,
        epoch=1,
        num_eval_iter=20,
        num_log_iter=5,
        num_workers=1,
        rs_queue_length=8,
    )
    latest = workspace.folder(config) / "latest_model.pth"
    with workspace.start(config) as child:
        if not child.wait_for(latest.exists):
            raise RuntimeError(child.output())
        begun, samples = time.monotonic(), []
        while time.monotonic() - begun < 60 * minutes and child.poll() is None:
            samples.append((time.monotonic() - begun, *sample(child.pid)))
            time.sleep(SECONDS)
        if child.poll() is not None:
            raise RuntimeError(child.output())
    seconds, memory, files, threads = np.array(samples).T
    kept = slice(int(WARMUP * len(samples)), None)
    return {
        "soak_minutes": round(float(seconds[-1]) / 60, 1),  # keeps its name for committed result files
        "memory_slope_mib_per_hour": round(slope_per_hour(seconds[kept], memory[kept]), 2),
        "memory_mib": {"after_warmup": round(float(memory[kept][0]), 1), "end": round(float(memory[-1]), 1)},
        "open_files": {"after_warmup": int(files[kept][0]), "most": int(files[kept].max())},
        "leak": find_leak(memory[kept], files[kept], threads[kept]),
        "process_threads": {"after_warmup": int(threads[kept][0]), "most": int(threads[kept].max())},
    }
