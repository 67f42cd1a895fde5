"""USB's own, unmodified `train.py` trains our algorithm with `multiprocessing_distributed: True`, on a CPU.

It needs a checkout of USB at 1ef4cbe, which the environment variable USB_HEAD names; a copy of it gets our patches.
`train.py` refuses a machine without a GPU, so each of its processes starts with `SITE`, in which the CPU stands in for
one CUDA device: calls that would move to a GPU stay where they are, and the only process communicates by gloo. This
does not test CUDA itself, nccl, or several processes.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

ROOT = Path(__file__).resolve().parents[2]
STEPS = 6

# Python imports `sitecustomize` at its start, in the processes that `train.py` spawns as well.
SITE = """
import sys
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel


class Event:
    def __init__(self, *args, **options):
        pass

    def record(self):
        pass

    def elapsed_time(self, other):
        return 0.0


torch.cuda.device_count = lambda: 1
# `send_model_cuda` of this module refuses to train without a GPU
torch.cuda.is_available = lambda: sys._getframe(1).f_globals["__name__"] == "semilearn.core.utils.misc"
torch.Tensor.cuda = lambda self, *args, **options: self
nn.Module.cuda = lambda self, *args, **options: self
torch.cuda.set_device = lambda device: None
torch.cuda.synchronize = lambda device=None: None
torch.cuda.Event = Event
# torch refuses SyncBatchNorm on a CPU; with one process it is BatchNorm
nn.SyncBatchNorm.forward = nn.modules.batchnorm._BatchNorm.forward
DistributedDataParallel._passing_sync_batchnorm_handle = lambda self, module: None
wrap = DistributedDataParallel.__init__
DistributedDataParallel.__init__ = lambda self, module, device_ids=None, **options: wrap(self, module, **options)
"""


@pytest.fixture(scope="module")
def usb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A patched copy of the checkout, with our entry point beside it."""
    if "USB_HEAD" not in os.environ:
        pytest.skip("set USB_HEAD to a checkout of USB at 1ef4cbe to drive its train.py")
    head, copy = Path(os.environ["USB_HEAD"]), tmp_path_factory.mktemp("usb")
    shutil.copytree(head / "semilearn", copy / "semilearn", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(head / "train.py", copy / "train.py")
    patch = [sys.executable, str(ROOT / "patches" / "apply.py"), str(copy)]
    assert subprocess.run(patch, capture_output=True, timeout=100).returncode == 0
    (copy / "sitecustomize.py").write_text(SITE)
    info = copy / "usb_rsmatch-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: usb-rsmatch\nVersion: 0\n")
    (info / "entry_points.txt").write_text("[semilearn.plugins]\nusb_rsmatch = usb_rsmatch\n")
    return copy


def run(*command: str, folder: Path, paths: list[Path]) -> str:
    """Run a Python command, and return its output."""
    path = os.pathsep.join(map(str, paths))
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, *command], cwd=folder, env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.mark.parametrize("algorithm", ["fixmatch", "rsmatch"])
def test_train_py_with_multiprocessing_distributed(
    usb: Path, algorithm: str, small_pool: dict[str, Any], tmp_path: Path
) -> None:
    """The keys that every shipped configuration of USB has, and a pool of real and synthetic digits."""
    config = {
        **{key: value for key, value in small_pool.items() if key != "device"},
        **{"algorithm": algorithm, "save_dir": "./saved_models", "save_name": "run"},
        **{"resume": True, "overwrite": True, "load_path": "./saved_models/run/latest_model.pth", "gpu": "None"},
        **{"multiprocessing_distributed": True, "world_size": 1, "rank": 0, "dist_backend": "gloo"},
        **{"epoch": 1, "num_train_iter": STEPS, "num_log_iter": 2, "num_eval_iter": STEPS, "batch_size": 4},
        **{"img_size": 8, "num_classes": 10, "net_from_name": False, "p_cutoff": 0.1, "hard_label": True, "T": 0.5},
        **{"optim": "SGD", "lr": 0.03, "ema_m": 0.9, "amp": False, "clip": 0.0, "seed": 0, "use_cat": True},
        **({"rs_warmup": 0.0, "rs_threshold": 0.2} if algorithm == "rsmatch" else {}),
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    text = run(str(usb / "train.py"), "--c", "config.yaml", folder=tmp_path, paths=[usb, ROOT])
    assert f"{STEPS} iteration" in text and "GPU 0 training is FINISHED" in text
    assert "unsup_loss: 0.0000" not in text, "unlabelled images are trained on"
    saved = tmp_path / "saved_models" / "run" / "latest_model.pth"
    weights = torch.load(saved, map_location="cpu", weights_only=False)["model"]
    assert all(name.startswith("module.") for name in weights), "it was wrapped by DistributedDataParallel"
    assert all(bool(torch.isfinite(value).all()) for value in weights.values())
    if algorithm == "rsmatch":
        assert {"module.dummy_head.weight", "module.detector.head.weight"} <= weights.keys()
        losses = {name: re.findall(rf"train/{name}: (\d+\.\d+)", text) for name in ("syn_loss", "det_loss")}
        assert len(losses["det_loss"]) == STEPS // 2 and all(float(value) > 0 for value in losses["det_loss"])
        assert any(float(value) > 0 for value in losses["syn_loss"]), "images were identified and trained on"
    said = run("-m", "usb_rsmatch", "eval", str(saved), "--c", "config.yaml", folder=tmp_path, paths=[ROOT])
    assert "top-1-acc" in said and "images         359" in said
