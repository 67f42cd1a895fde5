"""Two groups in one BatchNorm: as two BatchNorms on two batches, forwards, backwards and in what is remembered."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from split_norm_reference import compare_with_two_norms
from torch import Tensor, nn

from usb_rsmatch.algorithms.split_batchnorm import (
    Group,
    MaskedSplitNorm,
    SlicedSplitNorm,
    SplitBatchNorm2d,
    use_split_batchnorm,
)
from usb_rsmatch.usb import training


def images(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def split(norm: nn.BatchNorm2d, second: Tensor | None) -> nn.BatchNorm2d:
    group, own = Group(), copy.deepcopy(norm)
    group.second = second
    use_split_batchnorm(own, group)
    return own


@settings(deadline=None, max_examples=25)
@given(st.lists(st.booleans(), min_size=2, max_size=7), st.integers(0, 99))
def test_as_two_batches_through_two_norms(who: list[bool], seed: int) -> None:
    x = (3 * images(seed, len(who), 4, 3, 5) + 2).requires_grad_()
    reference_x = x.detach().clone().requires_grad_()
    norm = nn.BatchNorm2d(4, momentum=0.1, dtype=torch.float64)
    nn.init.uniform_(norm.weight)
    nn.init.uniform_(norm.bias)
    real, synthetic = copy.deepcopy(norm), copy.deepcopy(norm)
    second = torch.tensor(who)
    expected = torch.empty_like(reference_x)
    if (~second).any():
        expected[~second] = real(reference_x[~second])
    if second.any():
        expected[second] = synthetic(reference_x[second])
    one = split(norm, second.double())
    got = one(x)
    torch.testing.assert_close(got, expected)

    weights = images(seed + 1, *x.shape)
    (got * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(x.grad, reference_x.grad)
    zero = torch.zeros_like(norm.weight)
    for name in ("weight", "bias"):
        grads = [getattr(side, name).grad for side in (real, synthetic)]
        total = sum(zero if grad is None else grad for grad in grads)
        torch.testing.assert_close(getattr(one, name).grad, total)
    torch.testing.assert_close(one.running_mean, real.running_mean)
    torch.testing.assert_close(one.running_var, real.running_var)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.booleans(), min_size=2, max_size=7), st.integers(0, 99))
def test_in_order_on_a_cpu_as_in_one_pass(who: list[bool], seed: int) -> None:
    """What a CPU does and what a GPU does agree: outputs, gradients and running statistics."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()).double()
    x, second = images(seed, len(who), 3, 4, 4), torch.tensor(who).double()
    weights = images(seed + 1, len(who), 4, 4, 4)
    sides = []
    for device in ("cpu", "gpu"):
        own, group = copy.deepcopy(network), Group()
        use_split_batchnorm(own, group)
        if device == "cpu":
            with group.through(x, second) as (batch, places):
                out = own(batch)[places]
        else:
            group.second = second
            out = own(x)
        (out * weights).sum().backward()
        sides.append([out, *(p.grad for p in own.parameters()), own[1].running_mean, own[1].running_var])
    for cpu, gpu in zip(*sides, strict=True):
        torch.testing.assert_close(cpu, gpu)
    assert group.first is None


def test_gradient_by_differences() -> None:
    x, weight, bias = images(0, 4, 2, 3, 3), images(1, 2), images(2, 2)
    second = torch.tensor([0.0, 1.0, 1.0, 0.0], dtype=torch.float64)

    def output(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return MaskedSplitNorm.apply(x, weight, bias, second, 1e-3)[0]

    inputs = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    assert torch.autograd.gradcheck(output, inputs)


@pytest.mark.parametrize("first", [0, 1, 3, 4])
def test_gradient_of_parts_in_turn_by_differences(first: int) -> None:
    x, weight, bias = images(0, 4, 2, 3, 3), images(1, 2), images(2, 2)

    def output(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        running = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
        return SlicedSplitNorm.apply(x, weight, bias, first, running, 0.1, 1e-3)

    inputs = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    assert torch.autograd.gradcheck(output, inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("first", [0, 2, 5])
def test_parts_in_turn_are_two_batchnorms_bit_for_bit(
    first: int, order: torch.memory_format, dtype: torch.dtype
) -> None:
    x, weights = (images(seed, 5, 8, 6, 6).to(dtype).to(memory_format=order) for seed in (0, 1))
    norm = nn.BatchNorm2d(8)
    nn.init.uniform_(norm.weight)
    one, other = split(norm, None), copy.deepcopy(norm)
    one.group.first = first
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    parts = [side(part) for side, part in zip((norm, other), theirs.tensor_split([first]), strict=True) if len(part)]
    expected, out = torch.cat(parts), one(ours)
    (out * weights).sum().backward()
    (expected * weights).sum().backward()
    assert torch.equal(out, expected) and torch.equal(ours.grad, theirs.grad)
    assert out.is_contiguous(memory_format=order) and ours.grad.is_contiguous(memory_format=order)
    if first:
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            assert torch.equal(getattr(one, name), getattr(norm, name))
    for name in ("weight", "bias"):
        grads = [grad for grad in (getattr(side, name).grad for side in (norm, other)) if grad is not None]
        torch.testing.assert_close(getattr(one, name).grad, sum(grads))


def test_without_a_group_and_in_evaluation_it_is_batchnorm_bit_for_bit() -> None:
    x, norm = images(0, 6, 3, 4, 4).float(), nn.BatchNorm2d(3)
    one = split(norm, None)
    assert torch.equal(one(x), norm(x)) and torch.equal(one.running_var, norm.running_var)
    one.group.second = torch.tensor([0.0, 1, 1, 0, 0, 1])
    one.eval(), norm.eval()
    assert torch.equal(one(x), norm(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_type_and_memory_order_stay(dtype: torch.dtype) -> None:
    x = images(0, 4, 8, 5, 5).to(dtype).to(memory_format=torch.channels_last).requires_grad_()
    one = split(nn.BatchNorm2d(8), torch.tensor([0.0, 1, 0, 1]))
    out = one(x)
    out.float().square().sum().backward()
    for tensor in (out, x.grad):
        assert tensor is not None and tensor.dtype == dtype
        assert tensor.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("who", [[0, 1, 0, 0, 1, 1], [0] * 6, [1] * 6])
def test_the_gpu_path_is_two_norms_in_float64(who: list[int], order: torch.memory_format, dtype: torch.dtype) -> None:
    """The code of a GPU, run on the CPU: output, both gradients, running statistics; also with an empty group."""
    compare_with_two_norms(torch.device("cpu"), who, order, dtype)


def test_large_gradients_do_not_overflow_in_float16() -> None:
    """As with a GradScaler's initial scale: the product of gradient and input exceeds 65,504."""
    x = (3 * images(0, 4, 8, 5, 5) + 9).half().requires_grad_()
    one = split(nn.BatchNorm2d(8), torch.tensor([0.0, 1, 0, 1]))
    one(x).backward(10_000 * images(1, *x.shape).half())
    assert x.grad is not None and x.grad.isfinite().all()


def test_names_of_weights_stay_and_other_norms_are_left() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False), nn.LayerNorm(4))
    names = list(network.state_dict())
    use_split_batchnorm(network, Group())
    assert list(network.state_dict()) == names
    assert [type(m) is SplitBatchNorm2d for m in network] == [False, True, False, False]


def test_under_autocast_statistics_keep_full_precision() -> None:
    x = 3 + images(0, 12, 4, 5, 5).float()
    norm, second = nn.BatchNorm2d(4), torch.tensor([0.0] * 8 + [1.0] * 4)
    expected, got = split(norm, second), split(norm, second)
    wanted = expected(x)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(got(x), wanted)
    torch.testing.assert_close(got.running_mean, expected.running_mean)
    torch.testing.assert_close(got.running_var, expected.running_var)


def test_one_value_leaves_no_statistics_that_are_no_numbers() -> None:
    norm = nn.BatchNorm2d(4)
    group = Group()
    use_split_batchnorm(norm, group)
    group.first = 1
    assert norm(images(0, 3, 4, 1, 1).float()).isfinite().all()
    assert norm.running_mean.isfinite().all() and norm.running_var.isfinite().all()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"net": "small_wrn_10_1"}, "rs_norm: split: 7 BatchNorm layers have separate statistics"),
        (
            {"net": "small_wrn_10_1", "rs_norm": "shared"},
            "rs_norm: shared: real and synthetic images are normalised alike (7 BatchNorm2d)",
        ),
        (
            {"net": "small_wrn_10_1", "freeze": "norm"},
            "rs_norm: split has no effect, since the network has 0 BatchNorm layers with trained statistics: "
            "real and synthetic images are normalised alike (7 BatchNorm2d)",
        ),
        (
            {"net": "timm:test_vit", "img_size": 32},
            "rs_norm: split has no effect, since the network has 0 BatchNorm layers: "
            "real and synthetic images are normalised alike (13 LayerNorm)",
        ),
    ],
)
def test_a_run_says_in_one_line_how_images_are_normalised(
    changes: dict[str, Any], expected: str, tiny: dict[str, Any]
) -> None:
    notes: list[str] = []
    short = {**tiny, "epoch": 1, "num_train_iter": 1, "num_eval_iter": 1, "rs_loader": "batched"}
    training.train({**short, "algorithm": "rsmatch", **changes}, note=notes.append)
    assert expected in notes
