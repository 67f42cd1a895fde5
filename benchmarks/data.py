"""Time and memory of file lists and pools with a million images of random noise.

python -m benchmarks.data --out results/data.json

Needs 6 GiB of disk space for temporary files.
"""

from __future__ import annotations

import argparse
import datetime
import io
import json
import os
import shlex
import statistics
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from usb_rsmatch.cache import require_disk_space
from usb_rsmatch.data.images.file_index import file_index
from usb_rsmatch.data.images.image_file import write_header
from usb_rsmatch.io import write_json

REAL = 500  # real images in each pool; the others are synthetic
CHUNK = 50_000  # images that are generated and written at a time
SETTLE_S = 2.5  # a file list is cached only if its folders are unchanged for two seconds


@dataclass(frozen=True)
class Scale:
    """Sizes of the test data and numbers of repetitions."""

    files: int
    folders: int  # that contain the files
    large: int  # images of the large pool
    small: int  # images of the small pool
    openings: int  # how often the file list and the pool are opened
    batches: int  # unlabelled batches drawn before memory is measured
    rounds: int  # alternating timings of the two pools
    steps: int  # per round


FULL = Scale(1_300_000, 1000, 1_000_000, 1000, 3, 2000, 9, 10)
QUICK = Scale(12_000, 10, 100_000, 1000, 1, 20, 2, 2)


# test data ---------------------------------------------------------------------------------------------------------


def make_files(root: Path, count: int, folders: int) -> None:
    """Make PNG files in class folders named like ImageNet's; all files of a folder are hard links to one file."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (120, 90, 60)).save(buffer, format="PNG")
    for number in range(folders):
        here = root / f"n{number:08}"
        here.mkdir(parents=True)
        first = here / f"n{number:08}_0.png"
        first.write_bytes(buffer.getvalue())
        for copy in range(1, count // folders):
            os.link(first, here / f"n{number:08}_{copy}.png")


def make_npz(path: Path, count: int, seed: int) -> None:
    """Write random 32 px images sorted by class in the format of EDM's samples: uncompressed `image` and `label`."""
    rng = np.random.default_rng(seed)
    with zipfile.ZipFile(path, "w", allowZip64=True) as archive:
        with archive.open("image.npy", "w", force_zip64=True) as stream:
            write_header(stream, (count, 32, 32, 3))
            for start in range(0, count, CHUNK):
                stream.write(rng.bytes(min(CHUNK, count - start) * 3072))
        with archive.open("label.npy", "w") as stream:
            np.save(stream, np.sort(rng.integers(10, size=count)))


# measurements, each in a new process -------------------------------------------------------------------------


def list_files(root: Path) -> dict[str, float]:
    """Measure the seconds to open the cached file list and to get the classes from it, as a run does."""
    from usb_rsmatch.data.sources.class_folders import class_folders

    begin = time.perf_counter()
    source, classes = class_folders(root, "{class}/{file}")
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, "files": len(source), "classes": len(classes)}


def configuration(folder: Path, size: int, **changes: Any) -> dict[str, Any]:
    """Return the configuration of RSMatch on a pool of `size` images, `REAL` of them real."""
    return {
        "algorithm": "rsmatch",
        "dataset": "npz",
        "data_dir": str(folder),
        "synthetic": [{"source": f"npz:{folder / 'synthetic.npz'}", "generator": "noise"}],
        "synthetic_count": size - REAL,
        "num_labels": 100,
        "net": "small_wrn_10_1",
        "batch_size": 2,  # small steps, so that data loading is a visible part of time and memory
        "uratio": 7,
        "num_train_iter": 100_000,
        "num_eval_iter": 100_000,
        "num_log_iter": 100_000,
        "num_workers": 0,
        "rs_warmup": 0.0,
        "rs_loader": "batched",
        "rs_fast": True,
        "device": "cpu",
        "save_dir": str(folder / "runs"),
        "save_name": "benchmark",
        **changes,
    }


def open_pool(folder: Path, size: int) -> tuple[float, float]:
    """Return wall-clock and CPU seconds to build the pool, imports excluded."""
    from usb_rsmatch.data.pool.pool import HybridPool

    begin, cpu_seconds = time.perf_counter(), time.process_time()
    pool = HybridPool.from_config(configuration(folder, size))
    seconds = time.perf_counter() - begin, time.process_time() - cpu_seconds
    assert len(pool) == size
    return seconds


def train_memory(folder: Path, size: int, scale: Scale) -> dict[str, float]:
    """Return the MiB of a process that trains on the pool: after imports, after building, after training, at its peak.

    After some steps, `scale.batches` unlabelled batches are drawn without training, to read a large part of the file.
    """
    algorithm, steps = _algorithm(folder, size)
    built = resident_mib()
    steps(scale.steps)()
    for number, _ in enumerate(algorithm.loader_dict["train_ulb"], start=1):
        if number >= scale.batches:
            break
    after = resident_mib()
    return {"imported": _imported_mib(), "built": built, "training": after, "most": _peak_mib()}


def step_times(folder: Path, scale: Scale) -> dict[str, list[float]]:
    """Return seconds per step on the large and the small pool, timed alternately."""
    from benchmarks.timing import time_alternately

    sides = {str(size): _algorithm(folder, size)[1](scale.steps) for size in (scale.large, scale.small)}
    return time_alternately(sides, scale.rounds)


def _algorithm(folder: Path, size: int) -> tuple[Any, Callable[[int], Callable[[], float]]]:
    """Return an algorithm as `usb-rsmatch train` builds it, and a function that makes a timed side of N steps."""
    from usb_rsmatch.usb import registration, training

    registration.register()
    from usb_rsmatch.usb.config import resolve
    from usb_rsmatch.usb.step_timer import time_steps

    global _after_imports
    _after_imports = resident_mib()
    args, _ = resolve(configuration(folder, size))
    algorithm = training.build(args)
    return algorithm, lambda count: time_steps(algorithm, count)


_after_imports = 0.0


def _imported_mib() -> float:
    return _after_imports


def resident_mib() -> float:
    """Return this process's resident memory, including shared libraries and mapped files; NaN without /proc."""
    return _proc_status_mib("VmRSS:")


def _peak_mib() -> float:
    return _proc_status_mib("VmHWM:")


def _proc_status_mib(key: str) -> float:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return float("nan")
    return next((int(line.split()[1]) / 2**10 for line in lines if line.startswith(key)), float("nan"))


def _init_process(threads: int) -> None:
    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)


def in_new_process(function: Callable[..., Any], *arguments: Any, threads: int) -> Any:
    """Run a function in a new process and return its result."""
    with ProcessPoolExecutor(1, get_context("spawn"), _init_process, (threads,)) as process:
        return process.submit(function, *arguments).result()


# all of it -----------------------------------------------------------------------------------------------------------


def measure(scale: Scale, folder: Path, threads: int, log: Callable[[str], None]) -> dict[str, Any]:
    """Make the test data in the empty `folder` and return all measured values, those of `NAMED` among them."""
    load = [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None
    log(f"making {scale.files} files ...")
    make_files(folder / "files", scale.files, scale.folders)
    time.sleep(SETTLE_S)
    log("making the file list ...")
    begin = time.perf_counter()
    index = file_index(folder / "files")
    build = time.perf_counter() - begin
    openings = [in_new_process(list_files, folder / "files", threads=threads) for _ in range(scale.openings)]
    if {opened["files"] for opened in openings} != {len(index)}:
        raise RuntimeError(f"the new list has {len(index)} files, but opening it gives another number: {openings}")

    log(f"making {scale.large} images in one file ...")
    make_npz(folder / "train.npz", REAL, 1)
    make_npz(folder / "test.npz", 100, 2)
    make_npz(folder / "synthetic.npz", scale.large - REAL, 3)
    log("opening the pool ...")
    first, _ = in_new_process(open_pool, folder, scale.large, threads=threads)
    again = [in_new_process(open_pool, folder, scale.large, threads=threads) for _ in range(scale.openings)]
    log("training on the pool ...")
    memory = in_new_process(train_memory, folder, scale.large, scale, threads=threads)
    seconds = in_new_process(step_times, folder, scale, threads=threads)
    large, small = (seconds[str(size)] for size in (scale.large, scale.small))
    kept = sum(path.stat().st_size for path in (folder / "cache").rglob("*") if path.is_file())
    return {
        "index_files": len(index),
        "index_build_s": round(build, 2),
        "index_open_s": round(statistics.median(opened["seconds"] for opened in openings), 2),
        "npz_images": scale.large,
        "npz_open_s": round(statistics.median(seconds for seconds, _ in again), 2),
        "rss_mib": round(memory["training"], 1),
        "step_ratio_1e6_over_1e3": round(statistics.median(a / b for a, b in zip(large, small, strict=True)), 3),
        "npz_open_cpu_s": round(statistics.median(cpu_seconds for _, cpu_seconds in again), 2),
        "npz_first_open_s": round(first, 2),
        "rss_after_imports_mib": round(memory["imported"], 1),
        "rss_pool_open_mib": round(memory["built"], 1),
        "rss_most_mib": round(memory["most"], 1),
        "cache_mib": round(kept / 2**20, 1),
        "step_seconds": {"1e6": statistics.median(large), "1e3": statistics.median(small)},
        "load_before": load,
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data", description=__doc__)
    parser.add_argument("--out", required=True, metavar="FILE", help="output file (JSON)")
    parser.add_argument("--folder", default=None, metavar="DIR", help="folder for temporary files (the system's)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (one)")
    parser.add_argument("--quick", action="store_true", help="trial run with few files: its numbers are meaningless")
    args = parser.parse_args(argv)
    scale = QUICK if args.quick else FULL
    cache = os.environ.get("USB_RSMATCH_CACHE")
    with tempfile.TemporaryDirectory(prefix="usb_rsmatch_bench_", dir=args.folder) as name:
        require_disk_space(2 * 3072 * scale.large, Path(name), "the benchmark")
        os.environ["USB_RSMATCH_CACHE"] = str(Path(name) / "cache")  # so that nothing has been kept before
        try:
            result = measure(scale, Path(name), args.threads, lambda line: print(line, file=sys.stderr))
        finally:
            os.environ.pop("USB_RSMATCH_CACHE")
            if cache is not None:
                os.environ["USB_RSMATCH_CACHE"] = cache
    from benchmarks.speed import processor
    from usb_rsmatch.usb.run_facts import versions

    words = ["python", "-m", "benchmarks.data", *(sys.argv[1:] if argv is None else argv)]
    about = {
        "threads": args.threads,
        "processor": processor(),
        "versions": versions(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(words),
        "quick": args.quick,
    }
    write_json(args.out, result | about)
    print(json.dumps({key: result[key] for key in NAMED}))
    return 0


NAMED = (
    "index_files",
    "index_build_s",
    "index_open_s",
    "npz_images",
    "npz_open_s",
    "rss_mib",
    "step_ratio_1e6_over_1e3",
)

if __name__ == "__main__":
    sys.exit(main())
