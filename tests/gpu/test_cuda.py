"""On a GPU: runs agree with those on a CPU and resume, views are the same, and a step never waits for the device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from split_norm_reference import compare_with_two_norms

from usb_rsmatch.data.views import augment
from usb_rsmatch.detection.mining import ClasswiseRanking
from usb_rsmatch.detection.queue import ClasswiseSyntheticQueue
from usb_rsmatch.errors import Interrupted
from usb_rsmatch.usb import checkpoint, doctor, hooks, training
from usb_rsmatch.usb.config import resolve
from usb_rsmatch.usb.step_timer import time_steps

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
FAST = {"rs_loader": "batched", "rs_fast": True, "device": "cuda"}


def silent(line: str) -> None:
    pass


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("who", [[0, 1, 0, 0, 1, 1], [0] * 6, [1] * 6])
def test_split_batchnorm_is_two_norms(who: list[int], order: torch.memory_format, dtype: torch.dtype) -> None:
    compare_with_two_norms(torch.device("cuda"), who, order, dtype)


@pytest.mark.parametrize("kind", [augment.weak, augment.medium, augment.strong])
@pytest.mark.parametrize("channels", [1, 3])
def test_views_agree_with_those_on_the_cpu(kind: Any, channels: int) -> None:
    images = torch.randint(256, (256, channels, 32, 32), generator=torch.Generator().manual_seed(0)).byte()
    positions, spec = torch.arange(256), augment.ViewSpec(padding=4, flip=True)
    expected = kind(images, 0, positions, 0, spec).short()
    views = kind(images.cuda(), 0, positions, 0, spec).cpu().short()
    assert (views - expected).abs().max() <= 1  # one grey level, because of fused multiply-add


@pytest.mark.parametrize("rs_fast", [False, True])
@pytest.mark.parametrize("algorithm", ["fixmatch", "flexmatch", "freematch", "softmatch", "rsmatch"])
def test_a_run_is_close_to_the_one_on_the_cpu(algorithm: str, rs_fast: bool, tiny: dict[str, Any]) -> None:
    tiny |= FAST | {"algorithm": algorithm, "rs_fast": rs_fast}
    results, losses = {}, {}
    for device in ("cpu", "cuda"):
        results[device] = training.train({**tiny, "device": device, "save_name": device}, note=silent)
        lines = hooks.read_metrics(Path(tiny["save_dir"]) / device / "metrics.jsonl")
        losses[device] = lines[0]["train/total_loss"]
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=0.05 if rs_fast else 0.01)
    assert results["cuda"]["device"] == "cuda" and results["cuda"]["peak_memory_mib"] > 0


@pytest.mark.parametrize("algorithm", ["fixmatch", "rsmatch"])
def test_a_stopped_run_resumes(algorithm: str, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    tiny |= FAST | {"algorithm": algorithm}
    whole = training.train({**tiny, "save_name": "whole"}, note=silent)
    left = iter([False, False, True])
    with monkeypatch.context() as patch:
        patch.setattr(training.StopBetweenSteps, "__call__", lambda self: next(left))
        with pytest.raises(Interrupted):
            training.train({**tiny, "save_name": "stopped"}, note=silent)
    result = training.train({**tiny, "save_name": "stopped"}, note=silent)
    assert result["accuracy"]["last"] == pytest.approx(whole["accuracy"]["last"], abs=0.02)


@pytest.mark.parametrize("algorithm", ["fixmatch", "rsmatch", "openmatch", "iomatch", "scomatch", "uasd"])
def test_a_step_does_not_wait_for_the_device(algorithm: str, tiny: dict[str, Any]) -> None:
    args, _ = resolve({**tiny, **FAST, "algorithm": algorithm, "batch_size": 16, "uratio": 7, "rs_warmup": 0.0})
    built = training.build(args)
    built.model.train()
    built.call_hook("before_run")
    labeled, unlabeled = (next(iter(built.loader_dict[name])) for name in ("train_lb", "train_ulb"))
    batch = built.process_batch(**labeled, **unlabeled)
    for _ in range(3):  # one-time set-up may wait
        built.train_step(**batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        built.out_dict, built.log_dict = built.train_step(**batch)
        for name in ("ParamUpdateHook", "EMAHook", "TimerHook"):
            built.hooks_dict[name].after_train_step(built)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert isinstance(built.log_dict["train/total_loss"], torch.Tensor)


def test_the_queue_is_on_the_device_and_its_state_on_the_cpu() -> None:
    """Mining on the GPU equals mining on the CPU, and a state that was saved on one can be loaded on the other."""
    queues = {device: ClasswiseSyntheticQueue(4, 5, device=device) for device in ("cpu", "cuda")}
    rankings = {device: ClasswiseRanking(4, device=device) for device in queues}
    draws = torch.Generator().manual_seed(0)
    for _ in range(20):
        indices = torch.randint(100, (32,), generator=draws)
        classes, scores = torch.randint(4, (32,), generator=draws), torch.rand(32, generator=draws)
        uniforms, sampled = torch.rand(48, 2, generator=draws), {}
        for device, queue in queues.items():
            batch = [tensor.to(device) for tensor in (indices, classes, scores)]
            queue.push(*batch, rankings[device].rank(batch[2], batch[1]) > 0.7)
            sampled[device] = queue.sample(48, uniforms).cpu()
        assert torch.equal(sampled["cpu"], sampled["cuda"])
    states = {device: (queues[device].state_dict(), rankings[device].state_dict()) for device in queues}
    assert checkpoint.digest(states["cpu"]) == checkpoint.digest(states["cuda"])
    queues["cuda"].load_state_dict(states["cpu"][0])
    assert queues["cuda"].indices.is_cuda and torch.equal(queues["cuda"].indices.cpu(), queues["cpu"].indices)


def test_rsmatch_keeps_its_mining_state_on_the_device(tiny: dict[str, Any]) -> None:
    tiny |= FAST | {"algorithm": "rsmatch", "batch_size": 16, "uratio": 7, "rs_warmup": 0.2}
    args, _ = resolve(tiny)
    built = training.build(args)
    built.train()
    hook = built.hooks_dict["SyntheticDetectionHook"]
    assert hook.scores.is_cuda and hook.queue.indices.is_cuda and hook.ranking.scores.is_cuda and len(hook.queue)
    state = hook.state_dict()
    assert not (state["scores"].is_cuda or state["queue"]["indices"].is_cuda or state["ranking"]["scores"].is_cuda)


@pytest.mark.parametrize("algorithm", ["fixmatch", "rsmatch"])
def test_pil_views_and_amp_train(algorithm: str, tiny: dict[str, Any]) -> None:
    """Pinned batches of worker processes; float16 with USB's GradScaler."""
    changes = {"algorithm": algorithm, "device": "cuda", "rs_loader": "pil", "num_workers": 1, "amp": True}
    assert training.train({**tiny, **changes}, note=silent)["device"] == "cuda"


def test_doctor_names_the_gpu() -> None:
    assert f"device        {torch.cuda.get_device_name()}" in doctor.report()


def test_the_step_timer_measures(tiny: dict[str, Any]) -> None:
    args, _ = resolve({**tiny, **FAST, "algorithm": "fixmatch", "num_train_iter": 20})
    assert time_steps(training.build(args), 2)() > 0
