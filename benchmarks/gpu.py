"""Speed, host synchronisations and reproducibility on a GPU; stock USB in the same process.

python -m benchmarks.gpu --prepare FOLDER
python -m benchmarks.gpu --data FOLDER --out results/gpu.json
"""

from __future__ import annotations

import argparse
import datetime
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from usb_rsmatch.errors import Interrupted
from usb_rsmatch.io import write_json
from usb_rsmatch.usb import registration, run_facts, training

registration.register()  # must run before the imports below: they use semilearn's registries

from benchmarks import speed_workloads  # noqa: E402
from benchmarks.timing import ratios, time_alternately, timed  # noqa: E402
from usb_rsmatch.usb.step_timer import time_steps  # noqa: E402

# Key -> (goal, whether the goal is a minimum).
GOALS: Mapping[str, tuple[float, bool]] = {
    "stock_4_workers_ratio": (4.0, True),
    "stock_12_workers_ratio": (1.5, True),
    "rsmatch_over_fixmatch": (1.12, False),
    "step_over_floor": (1.15, False),
    "syncs_fixmatch": (0, False),
    "syncs_rsmatch": (0, False),
}


class Bench:
    """The settings of all sections. `toy` means tiny batches and few steps, for the tests."""

    def __init__(self, data: Path, work: Path, device: str, toy: bool) -> None:
        self.data, self.work, self.device, self.toy = data, work, device, toy
        self.steps, self.rounds = (1, 1) if toy else (20, 5)

    def config(self, **changes: Any) -> dict[str, Any]:
        """The configuration of WRN-28-2 with 64 labelled and 448 unlabelled images, on the device."""
        tiny = {"batch_size": 2, "uratio": 1, "net": "small_wrn_10_1"} if self.toy else {}
        config = speed_workloads.configuration("wrn_28_2", self.data, device=self.device)
        return config | tiny | {"save_dir": str(self.work)} | changes

    def ours(self, **changes: Any) -> Any:
        return speed_workloads.build_ours(self.config(**changes))

    def wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def stock(bench: Bench, workers: int) -> dict[str, Any]:
    """FixMatch step of stock USB with worker processes, divided by ours."""
    sides = {
        "stock": time_steps(speed_workloads.build_stock_usb(bench.config(num_workers=workers)), bench.steps),
        "ours": time_steps(bench.ours(), bench.steps),
    }
    taken = time_alternately(sides, bench.rounds)
    key = f"stock_{workers}_workers"
    return {f"{key}_ratio": statistics.median(ratios(taken["stock"], taken["ours"])), f"{key}_seconds": taken}


def steps(bench: Bench) -> dict[str, Any]:
    """Our FixMatch and RSMatch steps, and forward and backward of the network alone on the same batch."""
    fixmatch = bench.ours()
    network = bench.ours().model.train()
    labeled, unlabeled = (next(iter(fixmatch.loader_dict[name])) for name in ("train_lb", "train_ulb"))
    batch = torch.cat([labeled["x_lb"], unlabeled["x_ulb_w"], unlabeled["x_ulb_s"]]).to(bench.device)
    targets = torch.arange(len(batch), device=bench.device) % fixmatch.num_classes

    def network_only() -> None:
        for _ in range(bench.steps):
            torch.nn.functional.cross_entropy(network(batch)["logits"], targets).backward()
            network.zero_grad()
        bench.wait()

    floor = timed(network_only)
    taken = time_alternately(
        {
            "fixmatch": time_steps(fixmatch, bench.steps),
            "rsmatch": time_steps(bench.ours(algorithm="rsmatch"), bench.steps),
            "floor": lambda: floor() / bench.steps,
        },
        bench.rounds,
    )
    return {
        "rsmatch_over_fixmatch": statistics.median(ratios(taken["rsmatch"], taken["fixmatch"])),
        "step_over_floor": statistics.median(ratios(taken["fixmatch"], taken["floor"])),
        "images_per_second": len(batch) / statistics.median(taken["fixmatch"]),
        "step_seconds": taken,
        "peak_memory_mib": run_facts.peak_memory_mib(bench.device),
    }


def syncs(bench: Bench) -> dict[str, Any]:
    """Host synchronisations per step between log lines; RuntimeError without CUDA, where there are none to count."""
    if bench.device != "cuda":
        raise RuntimeError("synchronisations are counted on a CUDA device only")
    found: dict[str, Any] = {}
    for algorithm in ("fixmatch", "rsmatch"):
        run = time_steps(bench.ours(algorithm=algorithm), 10)
        run()  # one-time set-up may wait
        counts = []
        for number in (5, 15):  # the loop's start and its end wait as well: the difference is that of ten steps
            side = time_steps(bench.ours(algorithm=algorithm), number)
            side()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
                try:
                    side()
                finally:
                    torch.cuda.set_sync_debug_mode("default")
            counts.append(sum("synchronizing" in str(warning.message) for warning in caught))
        found[f"syncs_{algorithm}"] = (counts[1] - counts[0]) / 10
    return found


def step_seconds(bench: Bench, **changes: Any) -> float:
    """Median seconds of our step with a changed configuration."""
    return statistics.median(time_alternately({"ours": time_steps(bench.ours(**changes), bench.steps)}, 3)["ours"])


def compiled(bench: Bench) -> dict[str, Any]:
    """Our FixMatch step with `rs_compile`."""
    return {"compiled_step_seconds": step_seconds(bench, rs_compile=True)}


def amp(bench: Bench) -> dict[str, Any]:
    """RSMatch with USB's `amp` (float16 and GradScaler) instead of bfloat16."""
    return {"amp_step_seconds": step_seconds(bench, algorithm="rsmatch", amp=True, rs_fast="channels_last,fused")}


def networks(bench: Bench) -> dict[str, Any]:
    """Our FixMatch step with two larger networks of USB's configurations, 8 + 56 images."""
    found = {}
    for net in ("wrn_28_8", "vit_small_patch2_32"):
        changes = {} if bench.toy else {"net": net, "batch_size": 8}
        found[f"{net}_step_seconds"] = step_seconds(bench, **changes)
    return found


def trained(bench: Bench, name: str) -> dict[str, Any]:
    """The weights after a short run of RSMatch; an unfinished run of that name is resumed."""
    count = 4 if bench.toy else 40
    changes = {"algorithm": "rsmatch", "save_name": name, "num_train_iter": count, "num_eval_iter": count}
    training.train(bench.config(**changes, num_log_iter=count), note=lambda line: None)
    return torch.load(bench.work / name / "latest_model.pth", map_location="cpu", weights_only=True)["model"]


def equal(bench: Bench) -> dict[str, Any]:
    """Whether two runs, and an uninterrupted and a resumed one, end with the same weights, bit for bit."""
    first, second = trained(bench, "first"), trained(bench, "second")
    stopping = training.StopBetweenSteps.__call__
    asked = iter(range(10_000))
    training.StopBetweenSteps.__call__ = lambda self: next(asked) >= 2  # type: ignore[method-assign]
    try:
        trained(bench, "stopped")
        raise RuntimeError("the run was not stopped")
    except Interrupted:
        pass
    finally:
        training.StopBetweenSteps.__call__ = stopping  # type: ignore[method-assign]
    resumed = trained(bench, "stopped")
    return {
        "rerun_equal": all(torch.equal(first[name], second[name]) for name in first),
        "resume_equal": all(torch.equal(first[name], resumed[name]) for name in first),
    }


def torchrun(bench: Bench) -> dict[str, Any]:
    """Whether one process under torchrun trains: over nccl on a GPU, over gloo on a CPU."""
    path = bench.work / "torchrun.yaml"
    changes = {"save_name": "torchrun", "num_train_iter": 4, "num_eval_iter": 4}
    path.write_text(yaml.safe_dump(bench.config(**changes)), encoding="utf-8")
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1", "-m", "usb_rsmatch", "train"]
    done = subprocess.run([sys.executable, *words, "--c", str(path)], capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise RuntimeError(done.stderr[-500:])
    return {"torchrun_trains": True}


SECTIONS: Mapping[str, Callable[[Bench], dict[str, Any]]] = {
    "steps": steps,
    "syncs": syncs,
    "stock_4": lambda bench: stock(bench, 4),
    "stock_12": lambda bench: stock(bench, 12),
    "equal": equal,
    "amp": amp,
    "torchrun": torchrun,
    "compiled": compiled,
    "networks": networks,
}


def measure(bench: Bench, names: Sequence[str], out: Path, command: str, minutes: float = 8.0) -> dict[str, Any]:
    """Run the sections and write `out` after each; results of other sections in `out` are kept.

    A section that fails is recorded with its error, and one that would begin after `minutes` as not run.
    """
    result: dict[str, Any] = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    states, begin = result.setdefault("sections", {}), time.perf_counter()
    for name in names:
        now = time.perf_counter()
        if now - begin > 60 * minutes:
            states[name] = {"failed": f"not run: {minutes:g} minutes had passed"}
        else:
            try:
                found = SECTIONS[name](bench)
                result |= found
                states[name] = {"seconds": round(time.perf_counter() - now, 1)}
            except Exception as error:  # the other sections are worth measuring anyway
                states[name] = {"failed": " ".join(f"{type(error).__name__}: {error}".split())[:500]}
        states[name]["command"] = command
        states[name]["device"] = torch.cuda.get_device_name() if bench.device == "cuda" else "cpu"
        result |= {
            "goals": {key: goal for key, (goal, _) in GOALS.items()},
            "versions": run_facts.versions(),
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "command": command,
            "toy": bench.toy,
        }
        write_json(out, result)
        print(name, states[name])
    return result


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--out", metavar="FILE", help="output file (JSON); sections are added to an existing one")
    parser.add_argument("--prepare", metavar="FOLDER", help="only write the images there; needs no GPU")
    parser.add_argument("--data", metavar="FOLDER", help="the folder of --prepare; default: write the images first")
    parser.add_argument("--sections", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--minutes", type=float, default=8.0, help="no section begins later than this (8)")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--toy", action="store_true", help="trial run with tiny batches: its numbers are meaningless")
    args = parser.parse_args(argv)
    if args.prepare:
        speed_workloads.write_images(Path(args.prepare))
        return 0
    if not args.out:
        parser.error("--out is required, except with --prepare")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device")
    warnings.simplefilter("ignore")  # semilearn uses names that torch has deprecated
    words = ["python", "-m", "benchmarks.gpu", *(sys.argv[1:] if argv is None else argv)]
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        if not args.data:
            speed_workloads.write_images(work)
        bench = Bench(Path(args.data) if args.data else work, work / "runs", args.device, args.toy)
        bench.work.mkdir()
        measure(bench, args.sections, Path(args.out), shlex.join(words), args.minutes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
