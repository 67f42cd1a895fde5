"""Facts of the machine that a result records: versions of packages, and peak memory."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

import torch

from usb_rsmatch.version import __version__


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    packages = ("semilearn", "torch", "torchvision", "numpy")
    return {"usb_rsmatch": __version__, **{name: metadata.version(name) for name in packages}}


def peak_memory_mib(device: str) -> float | None:
    """Peak memory in MiB of the GPU, or without one of this process; None if the system does not report it."""
    if device == "cuda":
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    status = Path("/proc/self/status")
    if status.exists():  # Linux's getrusage includes the parent's memory before this process was started
        peaks = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        if peaks:
            return round(int(peaks[0]) / 2**10, 1)
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)
