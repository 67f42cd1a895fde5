"""Distributed BatchNorm: statistics over the batches of all processes, equivalent to a single process, on any device.

torch's SyncBatchNorm only works on GPUs and does not support split BatchNorm (`split_batchnorm`).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from usb_rsmatch.algorithms.split_batchnorm import Group, SplitBatchNorm2d


class DistributedBatchNorm:
    """A mixin for a BatchNorm class; evaluation, weights and names stay those of that class."""

    def forward(self: Any, x: Tensor) -> Tensor:
        """Float [B, C, ...], normalised by the statistics of all images, or of those of an image's group."""
        if not self.training:
            return super().forward(x)  # type: ignore[misc]
        with torch.autocast(x.device.type, enabled=False):  # else running statistics would have eight bits
            y = self._normalise(x)
        return self.act(self.drop(y)) if hasattr(self, "act") else y  # timm's BatchNormAct2d has an activation

    def _normalise(self: Any, x: Tensor) -> Tensor:
        spatial = list(range(2, x.ndim))
        x_float = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        second = _second_group(self, x_float)
        groups = torch.stack([1 - second, second])  # [2, B]
        images = _sum_over_processes(groups.sum(1, keepdim=True))  # [2, 1]
        values = (images * (x_float[0, 0].numel())).clamp(min=1)
        mean = _sum_over_processes(groups @ _sum_pixels(x_float, spatial)) / values  # [2, C]
        centred = x_float - _per_image(mean, second, x.ndim)
        variance = _sum_over_processes(groups @ _sum_pixels(centred.square(), spatial)) / values
        if self.track_running_stats:
            with torch.no_grad():
                self.num_batches_tracked += 1
                share = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
                share = share * (images[0] > 0).to(mean.dtype)  # the second group updates no running statistics
                self.running_mean += share * (mean[0] - self.running_mean)
                unbiased = variance[0] * values[0] / (values[0] - 1).clamp(min=1)
                self.running_var += share * (unbiased - self.running_var)
        y = centred * _per_image((variance + self.eps).rsqrt(), second, x.ndim)
        if self.affine:
            shape = [1, -1, *[1] * len(spatial)]
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(x.dtype)


def _second_group(module: Any, x: Tensor) -> Tensor:
    """1 for each image [B] of the second group; a plain BatchNorm has none."""
    group = getattr(module, "group", None)
    second = x.new_zeros(len(x))
    if group is not None and group.first is not None:
        second[group.first :] = 1
    elif group is not None and group.second is not None:
        second = group.second.to(x.dtype)
    return second


def _sum_pixels(x: Tensor, spatial: list[int]) -> Tensor:
    """Sums [B, C] over the pixels of each image."""
    return x.sum(spatial) if spatial else x


def _per_image(of_group: Tensor, second: Tensor, ndim: int) -> Tensor:
    """For each image, its group's row of [2, C]: [B, C, 1, ...]."""
    return torch.where(second[:, None] > 0, of_group[1], of_group[0])[(..., *[None] * (ndim - 2))]


def _sum_over_processes(part: Tensor) -> Tensor:
    """The sum over the processes, differentiable in all of them."""
    if part.requires_grad:
        return all_reduce(part.contiguous())
    total = part.detach().clone()
    dist.all_reduce(total)
    return total


class DistributedSplitBatchNorm2d(DistributedBatchNorm, SplitBatchNorm2d):
    """A split BatchNorm with the statistics of the batches of all processes."""


def restore_split_batchnorm(network: nn.Module, group: Group) -> None:
    """Split again what torch's `convert_sync_batchnorm` has replaced by SyncBatchNorm; weights and names stay.

    USB's train.py converts each model so when it trains by DistributedDataParallel.
    """
    for module in network.modules():
        if type(module) is nn.SyncBatchNorm and module.affine and module.momentum is not None:
            module.__class__ = DistributedSplitBatchNorm2d  # type: ignore[assignment]
            module.group = group  # type: ignore[assignment]


def use_distributed_batchnorm(model: nn.Module) -> None:
    """Add `DistributedBatchNorm` to every BatchNorm of a network; weights and their names stay."""
    for module in model.modules():
        kind = type(module)
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) and not issubclass(kind, DistributedBatchNorm):
            module.__class__ = type(kind.__name__, (DistributedBatchNorm, kind), {"__module__": kind.__module__})
