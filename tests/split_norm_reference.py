"""The split BatchNorm of a GPU compared with two plain BatchNorms in float64, on any device."""

from __future__ import annotations

import copy

import torch
from torch import nn

from usb_rsmatch.algorithms.split_batchnorm import Group, use_split_batchnorm

# Relative to the largest number of the reference: float32, and the bits of one rounding of 16-bit types.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}


def compare_with_two_norms(
    device: torch.device, who: list[int], order: torch.memory_format, dtype: torch.dtype
) -> None:
    """Assert that output, gradients and running statistics agree; `who` has a 1 for each image of the second group."""
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(len(who), 16, 6, 5, generator=draws, dtype=torch.float64) * 2 + 5  # the mean is not small
    weights = torch.randn(x.shape, generator=draws, dtype=torch.float64)
    x, weights = (value.to(device, dtype, memory_format=order) for value in (x, weights))
    norm = nn.BatchNorm2d(16, device=device)
    with torch.no_grad():
        norm.weight.copy_(torch.rand(16, generator=draws) + 0.5)
        norm.bias.copy_(torch.randn(16, generator=draws))
    one, group, second = copy.deepcopy(norm), Group(), torch.tensor(who, device=device, dtype=torch.float32)
    use_split_batchnorm(one, group)
    group.second = second

    mine = x.clone().requires_grad_()
    with torch.autocast(device.type, torch.bfloat16 if dtype == torch.float32 else dtype, enabled=device.type != "cpu"):
        out = one(mine)
    out.backward(weights)

    real, synthetic = copy.deepcopy(norm).double(), copy.deepcopy(norm).double()
    theirs = x.double().requires_grad_()
    expected = torch.empty_like(theirs)
    for side, chosen in ((real, second == 0), (synthetic, second == 1)):
        if chosen.any():
            expected[chosen] = side(theirs[chosen])
    expected.backward(weights.double())

    assert mine.grad is not None and theirs.grad is not None
    assert out.dtype == mine.grad.dtype == dtype
    assert out.is_contiguous(memory_format=order) and mine.grad.is_contiguous(memory_format=order)
    close(out, expected, TOLERANCE[dtype])
    close(mine.grad, theirs.grad, TOLERANCE[dtype])
    for name in ("weight", "bias"):
        grads = [getattr(side, name).grad for side in (real, synthetic)]
        close(getattr(one, name).grad, sum(grad for grad in grads if grad is not None), 1e-5)
    close(one.running_mean, real.running_mean, 1e-5)
    close(one.running_var, real.running_var, 1e-5)


def close(got: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    error = (got.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-12)
    assert error <= tolerance, f"relative error {error:.1e}, allowed are {tolerance:.1e}"
