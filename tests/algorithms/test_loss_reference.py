"""Whole steps of the open-set algorithms on fixed logits, against a float64 reference in NumPy and stored numbers.

The reference follows the authors' published code line by line; logits have a deviation of about 6, where the 1e-8
inside their logarithms and their masks matter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from usb_rsmatch.algorithms.scomatch import OutlierQueueHook
from usb_rsmatch.usb.compat import cuda_calls_stay_on_cpu
from usb_rsmatch.usb.config import resolve
from usb_rsmatch.usb.training import build

K, B, U = 10, 4, 12  # classes, labelled and unlabelled images
LABELS = np.array([3, 0, 9, 3])

# Losses of the whole step as the reference gave them.
STORED = {
    "openmatch": 40.7594761786,
    "iomatch": 36.5143028165,
    "iomatch aligned": 37.0851249958,
    "scomatch": 16.4227582900,
    "uasd": 12.5960970582,
}


def fixed(*shape: int, phase: float, scale: float = 8.0) -> np.ndarray:
    """Numbers float64 that no random generator has to reproduce, of deviation 0.7 `scale`."""
    return scale * np.sin(phase + 12.9898 * np.arange(np.prod(shape)) ** 1.5).reshape(shape)


def softmax(z: np.ndarray, axis: int = -1) -> np.ndarray:
    z = np.exp(z - z.max(axis, keepdims=True))
    return z / z.sum(axis, keepdims=True)


def cross_entropy(z: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Per image, for class indices [n] or soft targets [n, K]."""
    log_p = z - z.max(1, keepdims=True)
    log_p = log_p - np.log(np.exp(log_p).sum(1, keepdims=True))
    return -log_p[np.arange(len(z)), target] if target.ndim == 1 else -(target * log_p).sum(1)


def one_vs_all(z: np.ndarray, label: np.ndarray) -> float:
    """`ova_loss_func` of OpenMatch, `mb_sup_loss` of IOMatch: z [n, 2, K]."""
    p, one_hot = softmax(z, 1), np.eye(K)[label]
    positive = (-np.log(p[:, 1] + 1e-8) * one_hot).sum(1).mean()
    return positive + (-np.log(p[:, 0] + 1e-8) * (1 - one_hot)).max(1).mean()


class FixedOutputs(nn.Module):
    """A model whose outputs are the first rows of fixed arrays, whatever the images."""

    def __init__(self, **outputs: np.ndarray) -> None:
        super().__init__()
        self.arrays = outputs

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        found = {name: torch.from_numpy(array[: len(x)]) for name, array in self.arrays.items()}
        return {**found, "feat": torch.zeros(len(x), 2)}


@pytest.fixture
def step(tiny: dict[str, Any]) -> Callable[..., float]:
    """`step(model, prepare, config keys)`: the total loss of one step on these outputs."""

    def run(model: nn.Module, prepare: Callable[[Any], None] = lambda algorithm: None, **keys: Any) -> float:
        args, _ = resolve({**tiny, "rs_loader": "batched", **keys})
        args.device = "cpu"
        algorithm = build(args)
        with cuda_calls_stay_on_cpu():
            algorithm.epoch = 0
            algorithm.call_hook("before_run")
            prepare(algorithm)
            algorithm.model = model
            batch = {
                "idx_lb": torch.arange(B),
                "x_lb": torch.zeros(B, 3, 8, 8),
                "y_lb": torch.from_numpy(LABELS),
                "idx_ulb": torch.arange(U),
                "x_ulb_w": torch.zeros(U, 3, 8, 8),
                "x_ulb_s": torch.zeros(U, 3, 8, 8),
            }
            out_dict, _ = algorithm.train_step(**algorithm.process_batch(**batch))
        return float(out_dict["loss"])

    return run


def assert_equals(ours: float, reference: float, name: str) -> None:
    assert reference == pytest.approx(STORED[name], abs=1e-9), f"{name}: the reference is {reference!r} now"
    assert ours == pytest.approx(reference, abs=1e-6), name


def test_openmatch(step: Callable[..., float]) -> None:
    logits, open_ = fixed(B + 3 * U, K, phase=0.1), fixed(B + 3 * U, 2, K, phase=0.2, scale=12.0)
    ours = step(
        FixedOutputs(logits=logits, logits_open=open_),
        algorithm="openmatch",
        start_fix=0.0,
        p_cutoff=0.0,
        lambda_em=0.1,
        lambda_socr=0.5,
    )
    w, w2, s = (slice(B + i * U, B + (i + 1) * U) for i in range(3))
    p1, p2 = softmax(open_[w], 1), softmax(open_[w2], 1)
    entropies = [(-p * np.log(p + 1e-8)).sum(1).mean(1).mean() for p in (p1, p2)]
    consistency = (np.abs(p1 - p2) ** 2).sum(1).sum(1).mean()
    predicted = logits[w].argmax(1)
    inliers = p1[np.arange(U), 1, predicted] > 0.5  # the images of the pool that FixMatch is applied to
    assert 0 < inliers.sum() < U
    total = cross_entropy(logits[:B], LABELS).mean() + one_vs_all(open_[:B], LABELS)
    total += 0.1 * sum(entropies) / 2 + 0.5 * consistency
    total += cross_entropy(logits[s][inliers], predicted[inliers]).mean()
    assert_equals(ours, total, "openmatch")


@pytest.mark.parametrize("align", [False, True])
def test_iomatch(align: bool, step: Callable[..., float]) -> None:
    n = B + 2 * U
    logits, binary = fixed(n, K, phase=0.3), fixed(n, 2, K, phase=0.4, scale=12.0)
    open_ = fixed(n, K + 1, phase=0.5)

    def in_float64(algorithm: Any) -> None:
        hook = algorithm.hooks_dict["DistAlignHook"]
        hook.p_model, hook.p_target = hook.p_model.double(), hook.p_target.double()

    ours = step(
        FixedOutputs(logits=logits, logits_mb=binary, logits_open=open_),
        in_float64,
        algorithm="iomatch",
        op_warmup=0.0,
        p_cutoff=0.6,
        q_cutoff=0.5,
        dist_align=align,
        da_len=4,
    )
    w, s = slice(B, B + U), slice(B + U, n)
    target = softmax(logits[w])
    if align:  # the queue of four mean predictions holds one of them, and zeros
        target = target * ((1 / K + 1e-6) / (target.mean(0) / 4 + 1e-6))
        target = target / target.sum(1, keepdims=True)
    negative, positive = softmax(binary[w], 1).transpose(1, 0, 2)
    inlier = (target * negative).sum(1) < 0.5
    q = np.concatenate([target * positive, (target * negative).sum(1, keepdims=True)], 1)
    mask_p, mask_q = (target.max(1) >= 0.6) & inlier, q.max(1) >= 0.5
    assert 0 < mask_p.sum() < U and 0 < mask_q.sum() < U
    total = cross_entropy(logits[:B], LABELS).mean() + one_vs_all(binary[:B], LABELS)
    total += (cross_entropy(logits[s], target) * mask_p).mean() + (cross_entropy(open_[s], q) * mask_q).mean()
    assert_equals(ours, total, "iomatch aligned" if align else "iomatch")


def test_scomatch(step: Callable[..., float]) -> None:
    n = 2 * B + 2 * U
    open_ = fixed(n, K + 1, phase=2.6)
    open_[:, K] += 3.0  # more images near the border of the outliers
    queued = OutlierQueueHook(length=256, window=16, threshold=0.6)

    def fill(algorithm: Any) -> None:
        for hook in (queued, algorithm.hooks_dict["OutlierQueueHook"]):
            hook.push(algorithm, torch.arange(30, 34), torch.tensor([0.1, 0.9, 0.2, 0.85]), count=4)
            hook.threshold_open = 0.9
        fill.scores = queued.sample(algorithm, B)[1].numpy()  # type: ignore[attr-defined, index]

    ours = step(FixedOutputs(logits=open_[:, :K], logits_open=open_), fill, algorithm="scomatch", p_cutoff=0.6, T=0.6)
    w, s, outliers = slice(B, B + U), slice(B + U, B + 2 * U), slice(B + 2 * U, n)
    r, p = softmax(open_[w] / 0.6), softmax(open_[w, :K] / 0.6)
    predicted, outlier = r.argmax(1), r.argmax(1) == K
    mask_open = ((r.max(1) >= 0.6) & ~outlier) | ((r.max(1) >= 0.9) & outlier)
    mask = (r.max(1) >= 0.6) & ~outlier
    assert 0 < mask_open.sum() < U and ((p.max(1) >= 0.6) & ~outlier != mask).any()
    in_queue = fill.scores < 0.6  # type: ignore[attr-defined]
    assert in_queue.sum() == 2
    total = cross_entropy(open_[:B], LABELS).mean()
    total += (cross_entropy(open_[outliers], np.full(B, K)) * in_queue).mean()
    total += (cross_entropy(open_[s], predicted) * mask_open).mean()
    total += (cross_entropy(open_[s, :K], p.argmax(1)) * mask).mean()
    assert_equals(ours, total, "scomatch")


def test_uasd(step: Callable[..., float]) -> None:
    logits, earlier = fixed(B + U, K, phase=0.7), softmax(fixed(2, U, K, phase=0.8, scale=2.0)).astype(np.float32)
    known = softmax(fixed(B, K, phase=0.9, scale=2.0)).astype(np.float32)

    def visited(algorithm: Any) -> None:
        algorithm.it = 3  # of 12 steps: the weight rises
        for predictions in earlier:
            algorithm.call_hook("add", "PoolHook", indices=torch.arange(U), probs=torch.from_numpy(predictions))
        algorithm.call_hook("add", "ReferenceHook", indices=torch.arange(B), probs=torch.from_numpy(known))

    ours = step(FixedOutputs(logits=logits), visited, algorithm="uasd", uasd_start=0.2, uasd_ramp=0.4)
    q = earlier.astype(np.float64).mean(0)
    kept = q.max(1) >= known.astype(np.float64).max(1).mean()
    assert 0 < kept.sum() < U
    weight = np.exp(-5 * (1 - (3 / 12) / 0.4) ** 2)
    total = cross_entropy(logits[:B], LABELS).mean() + weight * cross_entropy(logits[B:][kept], q[kept]).mean()
    assert_equals(ours, total, "uasd")
