"""Split BatchNorm: images identified as synthetic are normalised by statistics of their own, as in AdvProp.

Synthetic images have other statistics than real ones. In a common batch they shift the BatchNorm statistics of the real
images, in training and, through the running averages, at test, where all images are real.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn


class Group:
    """Which images of the batch that passes through a network belong to the second (synthetic) group.

    On a CPU the batch is sorted by group, and `first` is the size of the first group. On a GPU, sorting would need a
    synchronisation: the batch keeps its order, and `second` float [B] is 1 for the second group. Both None: no split.
    """

    first: int | None = None
    second: Tensor | None = None

    @contextlib.contextmanager
    def through(self, x: Tensor, second: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
        """The batch [B, C, H, W] in the network's order, and the positions int64 [B] of its images in the output."""
        try:
            if x.device.type == "cpu":
                order = second.argsort(stable=True)
                self.first = len(second) - int(second.sum())
                yield x[order], order.argsort()
            else:
                self.second = second
                yield x, None
        finally:
            self.first = self.second = None


class MaskedSplitNorm(torch.autograd.Function):
    """BatchNorm of two groups of images in one pass, with shared weights; no shape depends on the groups.

    Two BatchNorms on two parts of the batch, as on a CPU, are faster, but a GPU would have to report the sizes first.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, second: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Normalised x [B, C, H, W]; mean and variance [2, C] of the groups, and their numbers of images [2, 1].

        `second` float [B] is 1 for the images of the second group. Statistics are float32, or float64 where x is.
        """
        wide = torch.promote_types(x.dtype, torch.float32)
        groups = _groups(second, wide)
        images = groups.sum(1, keepdim=True)
        counted = images.clamp(min=1)
        mean_of_each, var_of_each = _moments_of_images(x, wide)
        mean = groups @ mean_of_each / counted
        spread = (mean_of_each - _of_image(mean, second)).square()
        var = groups @ (var_of_each + spread) / counted
        scale = weight * torch.rsqrt(var + eps)
        shift = bias - mean * scale
        out = torch.empty_like(x)  # computed in the statistics' precision and rounded once, in x's memory format
        torch.addcmul(_per_image(shift, second), x, _per_image(scale, second), out=out)
        ctx.save_for_backward(x, weight, second, mean, var, counted)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, var, images)
        return out, mean, var, images

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, weight, second, mean, var, counted = ctx.saved_tensors
        grad, groups = grads[0], _groups(second, mean.dtype)
        values = counted * x[0, 0].numel()  # of a channel, in each group
        inverse = torch.rsqrt(var + ctx.eps)
        grad_sum = groups @ grad.sum((2, 3), dtype=mean.dtype)  # [2, C]
        # a wide first operand makes the product wide: in float16, scaled gradients would overflow
        product = torch.addcmul(mean.new_zeros(1, 1, 1, 1), grad, x)
        grad_dot = groups @ product.sum((2, 3)) - mean * grad_sum  # with x - mean
        # dL/dx = weight / std (g - sum g / N - (x - mean) / var sum g (x - mean) / N), gathered by powers of g and x
        of_grad = weight * inverse
        of_x = -of_grad * inverse.square() * grad_dot / values
        constant = -of_grad * grad_sum / values - mean * of_x
        wide = torch.empty_like(x, dtype=mean.dtype)
        torch.addcmul(_per_image(constant, second), x, _per_image(of_x, second), out=wide)
        grad_x = torch.empty_like(x)
        torch.addcmul(wide, grad, _per_image(of_grad, second), out=grad_x)
        return grad_x, (grad_dot * inverse).sum(0), grad_sum.sum(0), None, None


class SlicedSplitNorm(torch.autograd.Function):
    """BatchNorm of the first images of a batch, then of the rest, with shared weights and without copies.

    Equal bit for bit to two BatchNorms on the two parts; concatenating the parts and splitting the gradients would cost
    more than the normalisation itself.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        first: int,
        running: tuple[Tensor, Tensor],
        momentum: float,
        eps: float,
    ) -> Tensor:
        """Normalised x [B, C, H, W], of which `first` images are the first part, which updates the `running`
        statistics.
        """
        out, statistics = torch.empty_like(x), []
        for start, stop, kept in ((0, first, running), (first, len(x), (None, None))):
            if start < stop:
                if (stop - start) * x[0, 0].numel() == 1:
                    kept = (None, None)  # one value has no variance to keep
                own = [x.new_empty(0, dtype=torch.promote_types(x.dtype, torch.float32)) for _ in range(2)]
                torch.ops.aten.native_batch_norm.out(
                    x[start:stop],
                    weight,
                    bias,
                    *kept,
                    True,
                    momentum,
                    eps,
                    out=out[start:stop],
                    save_mean=own[0],
                    save_invstd=own[1],
                )
                statistics += own
        ctx.save_for_backward(x, weight, *statistics)
        ctx.first, ctx.eps = first, eps
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None, None]:
        x, weight, *statistics = ctx.saved_tensors
        in_order = (
            torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
        )
        grad, grad_x, of_weights = grads[0].contiguous(memory_format=in_order), torch.empty_like(x), []
        for start, stop in ((0, ctx.first), (ctx.first, len(x))):
            if start < stop:
                own, statistics = statistics[:2], statistics[2:]
                grad_x[start:stop], *of_part = torch.ops.aten.native_batch_norm_backward.default(
                    grad[start:stop], x[start:stop], weight, None, None, *own, True, ctx.eps, [True, True, True]
                )
                of_weights.append(of_part)
        grad_weight, grad_bias = (sum(parts[1:], parts[0]) for parts in zip(*of_weights, strict=True))
        return grad_x, grad_weight, grad_bias, None, None, None, None


def _groups(second: Tensor, dtype: torch.dtype) -> Tensor:
    """Indicators [2, B]: row 0 is 1 for images of the first group, row 1 for those of the second."""
    return torch.stack([1 - second, second]).to(dtype)


def _of_image(of_group: Tensor, second: Tensor) -> Tensor:
    """For each image, its group's row of [2, C]: [B, C]."""
    return torch.where(second[:, None] > 0, of_group[1], of_group[0])


def _per_image(of_group: Tensor, second: Tensor) -> Tensor:
    """`_of_image` as [B, C, 1, 1]."""
    return _of_image(of_group, second)[:, :, None, None]


def _moments_of_images(x: Tensor, wide: torch.dtype) -> tuple[Tensor, Tensor]:
    """Mean and biased variance [B, C] of each channel of each image, of type `wide`, in any memory format.

    `torch.native_group_norm` computes the same, but on CUDA it refuses channels-last input.
    """
    if x.dtype == wide:
        var, mean = torch.var_mean(x, (2, 3), correction=0)
        return mean, var
    # Both reductions convert while they read, so x is not copied. The difference of two squares loses no more digits
    # in float32 than 16-bit values have lost already.
    pixels = x[0, 0].numel()
    mean = x.sum((2, 3), dtype=wide) / pixels
    square = torch.linalg.vector_norm(x, 2, (2, 3), dtype=wide).square() / pixels
    return mean, (square - mean.square()).clamp(min=0)


class SplitBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` with separate statistics in training for the images of `group`, which update no running
    statistics.

    Without a group, and in evaluation, it is `nn.BatchNorm2d`. Source: auxiliary BatchNorm of AdvProp, Xie et al.
    2020 (arXiv 1911.09665, section 4.1); shared weights and no running statistics of the second group are our choice.
    """

    group: Group

    def forward(self, input: Tensor) -> Tensor:
        """Float [B, C, H, W], normalised."""
        first, second = self.group.first, self.group.second
        if not self.training or (first is None and second is None):
            return super().forward(input)
        return self.of_groups(input, first, second)

    def of_groups(self, input: Tensor, first: int | None, second: Tensor | None) -> Tensor:
        """Float [B, C, H, W], normalised by the statistics of each of two groups, as `Group` describes them."""
        if first is not None:
            assert self.running_mean is not None and self.running_var is not None
            if first and self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
            running = (self.running_mean, self.running_var)
            return SlicedSplitNorm.apply(input, self.weight, self.bias, first, running, self.momentum, self.eps)
        assert second is not None
        with torch.autocast(input.device.type, enabled=False):  # else running statistics would have eight bits
            out, mean, var, images = MaskedSplitNorm.apply(input, self.weight, self.bias, second, self.eps)
        with torch.no_grad():
            assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
            values = images[0] * input[0, 0].numel()
            share = self.momentum * (images[0] > 0).to(mean.dtype)  # a batch without real images must not update them
            self.running_mean.lerp_(mean[0], share.expand_as(mean[0]))
            self.running_var.lerp_(var[0] * values / (values - 1).clamp(min=1), share.expand_as(var[0]))
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        return out


def use_split_batchnorm(network: nn.Module, group: Group) -> int:
    """Turn every `nn.BatchNorm2d` of a network, and timm's with an activation, into a split one with this `group`.

    Weights and names stay. Returns the number of split layers.
    """
    count = 0
    for module in network.modules():
        split = _SPLIT.get(f"{type(module).__module__.partition('.')[0]}.{type(module).__name__}")
        if split is not None and isinstance(module, nn.BatchNorm2d) and module.affine and module.momentum is not None:
            module.__class__ = split()  # type: ignore[assignment]
            module.group = group  # type: ignore[assignment]
            count += 1
    return count


@lru_cache(maxsize=1)
def _split_with_activation() -> type[nn.Module]:
    """timm's BatchNorm with an activation, split; a function, since timm is imported only where it is used."""
    from timm.layers import BatchNormAct2d

    class SplitBatchNormAct2d(BatchNormAct2d):
        """`BatchNormAct2d` with separate statistics in training for the images of `group`."""

        group: Group
        of_groups: Any = SplitBatchNorm2d.of_groups

        def forward(self, x: Tensor) -> Tensor:
            """Float [B, C, H, W], normalised and activated."""
            first, second = self.group.first, self.group.second
            if not self.training or (first is None and second is None):
                return super().forward(x)
            return self.act(self.drop(self.of_groups(x, first, second)))

    return SplitBatchNormAct2d


_SPLIT: dict[str, Callable[[], type[nn.Module]]] = {
    "torch.BatchNorm2d": lambda: SplitBatchNorm2d,
    "timm.BatchNormAct2d": _split_with_activation,
}
