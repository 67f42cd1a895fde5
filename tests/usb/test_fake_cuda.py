"""Views and the step's forward pass on fake CUDA tensors, which refuse mixed devices and `.item()`; needs no GPU."""

from __future__ import annotations

import warnings
from argparse import Namespace
from typing import Any

import numpy as np
import pytest
import torch
from semilearn.core.utils import ALGORITHMS
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._pytree import tree_map_only

from usb_rsmatch.data.views import augment, randaugment
from usb_rsmatch.detection.detector import _eight_positions
from usb_rsmatch.rsmatch_settings import FAST
from usb_rsmatch.usb import fast
from usb_rsmatch.usb.config import resolve
from usb_rsmatch.usb.mixins import CoreMixin
from usb_rsmatch.usb.training import build

NAMES = list(ALGORITHMS.keys())
OURS = sorted(name for name in NAMES if ALGORITHMS[name].__module__.startswith("usb_rsmatch"))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Any:
    """torch's mode of fake tensors, with device and shape but without values; random draws are real, on the host."""
    warnings.simplefilter("ignore")  # torch warns that CUDA is not available
    switches = fast.Switches(**{name: name != "fused" for name in FAST})
    monkeypatch.setattr(fast.Switches, "chosen", classmethod(lambda cls, *_: switches))
    for cached in (
        augment._constant,
        randaugment._count,
        _eight_positions,
    ):  # caches of another mode's tensors
        cached.cache_clear()
    draws = augment._draws

    def real_draws(seed: int, positions: torch.Tensor, *rest: int) -> np.ndarray:
        with unset_fake_temporarily():
            return draws(seed, torch.arange(len(positions)), *rest)

    monkeypatch.setattr(augment, "_draws", real_draws)
    yield FakeTensorMode(allow_non_fake_inputs=True)
    for cached in (augment._constant, randaugment._count, _eight_positions):
        cached.cache_clear()


def test_the_device_follows_the_gpu_number_of_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """USB's own code sends batches to `args.gpu`, so the model must be on that GPU."""
    owner = CoreMixin()
    for available, gpu, expected in ((True, 1, "cuda:1"), (True, None, "cuda"), (False, 1, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        owner.args = Namespace(gpu=gpu)
        assert owner.device == torch.device(expected)
    owner.args = Namespace(gpu=1, device="cpu")
    assert owner.device == torch.device("cpu")


def to_cuda(fake: FakeTensorMode, value: Any) -> Any:
    """A nested value with every tensor replaced by a fake CUDA tensor."""
    with fake:
        return tree_map_only(torch.Tensor, lambda tensor: fake.from_tensor(tensor).to("cuda"), value)


def move(fake: FakeTensorMode, algorithm: Any) -> None:
    """Move what a run has on its GPU: the network, the pool, and its principal components."""
    for module in algorithm.model.modules():
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None:
                moved = to_cuda(fake, tensor.data)
                kind = module._parameters if name in module._parameters else module._buffers
                kind[name] = torch.nn.Parameter(moved) if kind is module._parameters else moved
    algorithm.args.device = "cuda"
    for dataset in algorithm.dataset_dict.values():
        if dataset is not None:
            dataset.batched.device = torch.device("cuda")
            dataset.batched.resident = to_cuda(fake, dataset.batched.resident)
    for hook in algorithm.hooks_dict.values():
        if type(hook).__module__.startswith("semilearn"):  # ours move their tensors themselves
            vars(hook).update({k: to_cuda(fake, v) for k, v in vars(hook).items() if isinstance(v, torch.Tensor)})
    components = getattr(algorithm.hooks_dict.get("SyntheticDetectionHook"), "_components", None)
    if components is not None:
        components.mean, components.basis = to_cuda(fake, (components.mean, components.basis))


def forward(fake: FakeTensorMode, tiny: dict[str, Any], **changes: Any) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Three steps on the CPU, so that one-time set-up is done, and one on the fake device.

    Returns the algorithm, and the last step's output and log.
    """
    args, _ = resolve({**tiny, "rs_fast": True, "rs_loader": "batched", "rs_warmup": 0.0, **changes})
    algorithm = build(args)
    algorithm.model.train()
    algorithm.call_hook("before_run")
    batches = zip(*(algorithm.loader_dict[name] for name in ("train_lb", "train_ulb")), strict=True)
    for _, (labeled, unlabeled) in zip(range(3), batches, strict=False):
        algorithm.train_step(**algorithm.process_batch(**labeled, **unlabeled))
    move(fake, algorithm)
    with fake:
        batch = algorithm.process_batch(**to_cuda(fake, {**labeled, **unlabeled}))
        out_dict, log_dict = algorithm.train_step(**batch)
    return algorithm, out_dict, log_dict


@pytest.mark.parametrize("algorithm", OURS)
def test_forward_pass_stays_on_the_device(algorithm: str, tiny: dict[str, Any], fake: FakeTensorMode) -> None:
    _, out_dict, log_dict = forward(fake, tiny, algorithm=algorithm)
    assert out_dict["loss"].device.type == "cuda" and out_dict["loss"].requires_grad
    assert {key for key, value in log_dict.items() if isinstance(value, torch.Tensor)} >= {
        "train/sup_loss",
        "train/total_loss",
    }


@pytest.mark.parametrize("base", ["flexmatch", "softmatch", "uda"])  # USB's own FreeMatch waits for the GPU
def test_rsmatch_with_other_base_rules(base: str, tiny: dict[str, Any], fake: FakeTensorMode) -> None:
    _, out_dict, _ = forward(fake, tiny, algorithm="rsmatch", rs_base=base)
    assert out_dict["loss"].device.type == "cuda"


def test_rsmatch_mines_and_samples_on_the_device(tiny: dict[str, Any], fake: FakeTensorMode) -> None:
    algorithm, _, _ = forward(fake, tiny, algorithm="rsmatch", batch_size=8, uratio=7)
    hook = algorithm.hooks_dict["SyntheticDetectionHook"]
    assert hook._queue_serves
    state = (hook.scores, hook.queue.indices, hook.queue.scores, hook.ranking.scores, hook.ranking.classes)
    assert {tensor.device.type for tensor in state} == {"cuda"}


def test_rsmatch_before_its_queue_is_used(tiny: dict[str, Any], fake: FakeTensorMode) -> None:
    algorithm, out_dict, _ = forward(fake, tiny, algorithm="rsmatch", rs_warmup=1.0)
    assert out_dict["loss"].device.type == "cuda"
    assert not algorithm.hooks_dict["SyntheticDetectionHook"]._queue_serves


@pytest.mark.parametrize("detector", ["pu", "oracle", "none"])
def test_rsmatch_with_other_detectors(detector: str, tiny: dict[str, Any], fake: FakeTensorMode) -> None:
    _, out_dict, _ = forward(fake, tiny, algorithm="rsmatch", rs_detector=detector)
    assert out_dict["loss"].device.type == "cuda"


@pytest.mark.parametrize("kind", [augment.weak, augment.medium, augment.strong])
@pytest.mark.parametrize("channels", [1, 3])
def test_views_are_made_on_the_device(kind: Any, channels: int, fake: FakeTensorMode) -> None:
    positions, spec = torch.arange(64), augment.ViewSpec(padding=4, flip=True)
    images = to_cuda(fake, torch.from_numpy(np.zeros((64, channels, 32, 32), dtype=np.uint8)))
    with fake:
        views = augment.normalise(kind(images, 0, positions, 0, spec), (0.5,) * 3, (0.25,) * 3)
    assert views.device.type == "cuda" and views.shape == (64, 3, 32, 32)


def test_the_fake_mode_refuses_item_and_mixed_devices(fake: FakeTensorMode) -> None:
    with fake:
        value = torch.ones(3, device="cuda").mean()
        with pytest.raises(Exception, match="local_scalar_dense"):
            value.item()
        with pytest.raises(Exception, match="device"):
            value + torch.ones(3)
