"""Training in several processes: equal weights at the start, averaged gradients, hooks that see the whole batch."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from usb_rsmatch.counter_rng import derive
from usb_rsmatch.distributed import average, gather, own, rank, size
from usb_rsmatch.usb.distributed_batchnorm import whole_batch_norm


def average_gradients(model: nn.Module) -> None:
    """Give each weight its mean gradient over the processes.

    A weight without a gradient in any process keeps none, so that the optimiser passes it over as it would in one.
    """
    if size() == 1:
        return
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    used = torch.tensor([float(weight.grad is not None) for weight in weights])
    average([used])
    gradients = []
    for weight, share in zip(weights, used.tolist(), strict=True):
        if share and weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        if weight.grad is not None:
            gradients.append(weight.grad)
    average(gradients)


def alike(model: nn.Module) -> None:
    """Start all processes from the first one's weights, and let BatchNorm see the whole batch."""
    if size() == 1:
        return
    for tensor in (*model.parameters(), *model.buffers()):
        dist.broadcast(tensor.detach(), 0)
    whole_batch_norm(model)


def part_generators(seed: int, step: int) -> None:
    """Give every process but the first global generators of its own, so that dropout differs among them."""
    if rank() > 0:
        key = derive(seed, "process", rank(), step)
        random.seed(key)
        np.random.seed(key & 0xFFFFFFFF)
        torch.manual_seed(key)


class Gathered:
    """Laid over a hook of USB that keeps thresholds or class shares: it sees the whole batch in every process.

    USB's own gathering, which some of these hooks have and others lack, then has nothing left to gather.
    """

    def masking(self, algorithm: Any, *args: Any, **kwargs: Any) -> Any:
        return self._whole("masking", algorithm, args, kwargs)

    def dist_align(self, algorithm: Any, *args: Any, **kwargs: Any) -> Any:
        return self._whole("dist_align", algorithm, args, kwargs)

    def _whole(self, name: str, algorithm: Any, args: Any, kwargs: Any) -> Any:
        args = [gather(value) if isinstance(value, Tensor) else value for value in args]
        kwargs = {key: gather(value) if isinstance(value, Tensor) else value for key, value in kwargs.items()}
        algorithm.distributed = False
        try:
            result = getattr(super(), name)(algorithm, *args, **kwargs)
        finally:
            algorithm.distributed = True
        return tuple(map(own, result)) if isinstance(result, tuple) else own(result)


def gather_in_hooks(algorithm: Any) -> None:
    """Lay `Gathered` over the hooks that have something to gather."""
    if size() == 1:
        return
    for hook in algorithm.hooks_dict.values():
        kind = type(hook)
        if (hasattr(kind, "masking") or hasattr(kind, "dist_align")) and not issubclass(kind, Gathered):
            hook.__class__ = type(kind.__name__, (Gathered, kind), {"__module__": kind.__module__})
