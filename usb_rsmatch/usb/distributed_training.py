"""Training in several processes: equal initial weights, averaged gradients, hooks that see the whole batch."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from usb_rsmatch.algorithms.distributed_batchnorm import use_distributed_batchnorm
from usb_rsmatch.counter_rng import derive
from usb_rsmatch.distributed import all_gather_batch, average_tensors, local_shard, rank, world_size


def average_gradients(model: nn.Module) -> None:
    """Replace each gradient by its mean over the processes.

    A weight without a gradient in every process keeps none, so that the optimiser skips it, as with a single process.
    """
    if world_size() == 1:
        return
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    used = torch.tensor([float(weight.grad is not None) for weight in weights])
    average_tensors([used])
    gradients = []
    for weight, share in zip(weights, used.tolist(), strict=True):
        if share and weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        if weight.grad is not None:
            gradients.append(weight.grad)
    average_tensors(gradients)


def broadcast_model(model: nn.Module) -> None:
    """Copy the first process's weights to all processes, and use BatchNorm statistics of the whole batch."""
    if world_size() == 1:
        return
    for tensor in (*model.parameters(), *model.buffers()):
        dist.broadcast(tensor.detach(), 0)
    use_distributed_batchnorm(model)


def seed_generators(seed: int, step: int) -> None:
    """Seed the global generators of every process but the first differently, so that dropout differs between them."""
    if rank() > 0:
        key = derive(seed, "process", rank(), step)
        random.seed(key)
        np.random.seed(key & 0xFFFFFFFF)
        torch.manual_seed(key)


class GatherBatchMixin:
    """A mixin for USB's hooks that keep thresholds or class shares: they see the whole batch in every process.

    USB's own gathering, which only some of these hooks have, is switched off.
    """

    def masking(self, algorithm: Any, *args: Any, **kwargs: Any) -> Any:
        return self._whole("masking", algorithm, args, kwargs)

    def dist_align(self, algorithm: Any, *args: Any, **kwargs: Any) -> Any:
        return self._whole("dist_align", algorithm, args, kwargs)

    def _whole(self, name: str, algorithm: Any, args: Any, kwargs: Any) -> Any:
        args = [all_gather_batch(value) if isinstance(value, Tensor) else value for value in args]
        kwargs = {key: all_gather_batch(value) if isinstance(value, Tensor) else value for key, value in kwargs.items()}
        algorithm.distributed = False
        try:
            result = getattr(super(), name)(algorithm, *args, **kwargs)
        finally:
            algorithm.distributed = True
        return tuple(map(local_shard, result)) if isinstance(result, tuple) else local_shard(result)


def gather_in_hooks(algorithm: Any) -> None:
    """Add `GatherBatchMixin` to the hooks that need the whole batch."""
    if world_size() == 1:
        return
    for hook in algorithm.hooks_dict.values():
        kind = type(hook)
        if (hasattr(kind, "masking") or hasattr(kind, "dist_align")) and not issubclass(kind, GatherBatchMixin):
            hook.__class__ = type(kind.__name__, (GatherBatchMixin, kind), {"__module__": kind.__module__})
