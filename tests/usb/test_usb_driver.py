"""Our algorithms in USB's own loop, wrapped as its train.py wraps them: SyncBatchNorm, then DistributedDataParallel."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from semilearn.core.utils import ALGORITHMS

ROOT = Path(__file__).resolve().parents[2]
OURS = sorted(name for name in list(ALGORITHMS.keys()) if ALGORITHMS[name].__module__.startswith("usb_rsmatch"))

# What `train.py` does in a child process, with gloo and the CPU in place of nccl and a GPU; `plain` leaves the wrappers
# out. Prints the losses of four steps, a weight of each head, and the kinds of BatchNorm.
SCRIPT = """
import sys, tempfile, json
import torch, torch.distributed as dist
from torch import nn
import usb_rsmatch
from usb_rsmatch.usb.config import resolve
from usb_rsmatch.usb.training import build
from usb_rsmatch.usb.compat import cuda_calls_stay_on_cpu

torch.set_num_threads(1)
keys = json.loads(sys.argv[1])
args, _ = resolve({"dataset": "digits", "num_labels": 20, "net": "small_wrn_10_1", "num_workers": 0, "uratio": 3,
                   "batch_size": 4, "num_train_iter": 4, "num_eval_iter": 4, "rs_loader": "batched", "rs_warmup": 0.0,
                   "save_dir": tempfile.mkdtemp(), "save_name": "run", **keys})
args.device = "cpu"
algorithm = build(args)
if sys.argv[2] == "dp":
    algorithm.model = nn.DataParallel(algorithm.model)
    algorithm.model.device_ids = [0, 1]  # as on two GPUs; without a GPU torch leaves it empty
if sys.argv[2] == "ddp":
    dist.init_process_group("gloo", init_method="file://" + tempfile.mkdtemp() + "/store", world_size=1, rank=0)
    # torch refuses SyncBatchNorm on a CPU; with one process it is BatchNorm
    nn.SyncBatchNorm.forward = nn.modules.batchnorm._BatchNorm.forward
    nn.parallel.DistributedDataParallel._passing_sync_batchnorm_handle = lambda self, module: None
    for name in ("model", "ema_model"):
        model = nn.SyncBatchNorm.convert_sync_batchnorm(getattr(algorithm, name))
        model.__dict__.pop("module", None)
        wrapped = nn.parallel.DistributedDataParallel(model, broadcast_buffers=False, find_unused_parameters=True)
        setattr(algorithm, name, wrapped)
losses, step = [], algorithm.train_step

def recorded(**batch):
    out = step(**batch)
    losses.append(float(out[0]["loss"]))
    return out

algorithm.train_step = recorded
import inspect
recorded.__signature__ = inspect.signature(step)
with cuda_calls_stay_on_cpu():
    algorithm.train()
named = algorithm.model.named_modules()
norms = [m for n, m in named if "backbone." in n and isinstance(m, (nn.BatchNorm2d, nn.SyncBatchNorm))]
kinds = sorted({type(m).__name__ for m in norms})
heads = {n.removeprefix("module."): float(p.double().abs().sum()) for n, p in algorithm.model.named_parameters()}
print(json.dumps({"losses": losses, "kinds": kinds, "weights": heads}))
"""


def script(keys: dict[str, object], how: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", SCRIPT, json.dumps(keys), how]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=200)


def trained(keys: dict[str, object], how: str) -> dict[str, object]:
    done = script(keys, how)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("algorithm", OURS)
def test_the_wrapped_model_trains_as_the_plain_one(algorithm: str) -> None:
    plain, ddp = trained({"algorithm": algorithm}, "plain"), trained({"algorithm": algorithm}, "ddp")
    assert len(ddp["losses"]) == 4  # type: ignore[arg-type]
    assert ddp["losses"] == pytest.approx(plain["losses"], rel=1e-3)
    assert ddp["weights"] == pytest.approx(plain["weights"], rel=1e-3, abs=1e-4)
    if algorithm == "rsmatch":
        assert ddp["kinds"] == ["DistributedSplitBatchNorm2d"]


@pytest.mark.parametrize(
    ("keys", "how", "message"),
    [
        ({}, "dp", "rsmatch does not run under DataParallel: take one gpu, or multiprocessing_distributed"),
        (
            {"rs_detector_input": "feature_gradient"},
            "ddp",
            "rs_detector_input: this one does not run under DistributedDataParallel; take feature",
        ),
    ],
)
def test_what_a_wrapper_would_change_in_silence_is_refused(keys: dict[str, object], how: str, message: str) -> None:
    done = script({"algorithm": "rsmatch", **keys}, how)
    assert done.returncode == 1 and done.stderr.splitlines()[-1].endswith(f"usb_rsmatch.errors.UserError: {message}")
