"""On a GPU: the same runs, stopped and resumed, the views, and a step that never waits for the device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from usb_rsmatch.data import augment
from usb_rsmatch.errors import Interrupted
from usb_rsmatch.usb import run
from usb_rsmatch.usb.config import resolve

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: none is here")
FAST = {"rs_loader": "batched", "rs_fast": True, "device": "cuda"}


def silent(line: str) -> None:
    pass


@pytest.mark.parametrize("kind", [augment.weak, augment.medium, augment.strong])
@pytest.mark.parametrize("channels", [1, 3])
def test_views_are_those_of_the_processor(kind: Any, channels: int) -> None:
    images = torch.randint(256, (256, channels, 32, 32), generator=torch.Generator().manual_seed(0)).byte()
    positions, spec = torch.arange(256), augment.ViewSpec(padding=4, flip=True)
    expected = kind(images, 0, positions, 0, spec).short()
    views = kind(images.cuda(), 0, positions, 0, spec).cpu().short()
    assert (views - expected).abs().max() <= 1  # a grey level, where multiplication and addition are fused


@pytest.mark.parametrize("rs_fast", [False, True])
@pytest.mark.parametrize("algorithm", ["fixmatch", "flexmatch", "freematch", "softmatch", "rsmatch"])
def test_runs_and_ends_near_the_processors_run(algorithm: str, rs_fast: bool, tiny: dict[str, Any]) -> None:
    tiny |= FAST | {"algorithm": algorithm, "rs_fast": rs_fast}
    results, losses = {}, {}
    for device in ("cpu", "cuda"):
        results[device] = run.train({**tiny, "device": device, "save_name": device}, note=silent)
        lines = run.read_metrics(Path(tiny["save_dir"]) / device / "metrics.jsonl")
        losses[device] = lines[0]["train/total_loss"]
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=0.05 if rs_fast else 0.01)
    assert results["cuda"]["device"] == "cuda" and results["cuda"]["peak_memory_mib"] > 0


@pytest.mark.parametrize("algorithm", ["fixmatch", "rsmatch"])
def test_stopped_run_goes_on(algorithm: str, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    tiny |= FAST | {"algorithm": algorithm}
    whole = run.train({**tiny, "save_name": "whole"}, note=silent)
    left = iter([False, False, True])
    with monkeypatch.context() as patch:
        patch.setattr(run.Stop, "__call__", lambda self: next(left))
        with pytest.raises(Interrupted):
            run.train({**tiny, "save_name": "stopped"}, note=silent)
    result = run.train({**tiny, "save_name": "stopped"}, note=silent)
    assert result["accuracy"]["last"] == pytest.approx(whole["accuracy"]["last"], abs=0.02)


def test_fixmatch_steps_without_waiting_for_the_device(tiny: dict[str, Any]) -> None:
    args, _ = resolve({**tiny, **FAST, "algorithm": "fixmatch"})
    algorithm = run.build(args)
    algorithm.model.train()
    algorithm.call_hook("before_run")
    labeled, unlabeled = (next(iter(algorithm.loader_dict[name])) for name in ("train_lb", "train_ulb"))
    batch = algorithm.process_batch(**labeled, **unlabeled)
    algorithm.train_step(**batch)  # what is set up once may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        algorithm.out_dict, algorithm.log_dict = algorithm.train_step(**batch)
        for name in ("ParamUpdateHook", "EMAHook", "TimerHook"):
            algorithm.hooks_dict[name].after_train_step(algorithm)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert isinstance(algorithm.log_dict["train/total_loss"], torch.Tensor)
