"""UASD: averages, ramp and threshold by hand, and the step against its equations written down again."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from usb_rsmatch.algorithms.uasd import AveragedPredictions, ramp_up


def test_target_is_the_mean_of_all_predictions() -> None:
    hook = AveragedPredictions(4, 2)
    assert hook.mean_confidence(None) == 1.0
    hook.add(None, torch.tensor([0, 2, 0]), torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]]))
    hook.add(None, torch.tensor([0]), torch.tensor([[0.1, 0.9]]))
    expected = torch.tensor([[0.5, 0.5], [0.0, 0.0], [0.2, 0.8]])
    torch.testing.assert_close(hook.target(None, torch.tensor([0, 1, 2])), expected)
    assert hook.mean_confidence(None).item() == pytest.approx((0.5 + 0.8) / 2)


@pytest.mark.parametrize(
    ("progress", "weight"),
    [(0.0, 0.0), (0.19, 0.0), (0.2, math.exp(-5 * 0.25)), (0.3, math.exp(-5 / 16)), (0.4, 1.0), (0.9, 1.0)],
)
def test_ramp_up_by_hand(progress: float, weight: float) -> None:
    assert ramp_up(progress, 0.2, 0.4) == pytest.approx(weight)


def test_without_a_ramp_the_weight_is_one_from_the_start() -> None:
    assert ramp_up(0.0, 0.0, 0.0) == 1.0


def test_step_equals_the_equations(first_step: Callable[..., Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    past = torch.rand(400, 10, generator=generator).pow(4)
    past = 2 * past / past.sum(1, keepdim=True)  # two visits each
    seen = torch.rand(20, 10, generator=generator).pow(4)

    def remember(algorithm: Any) -> None:
        algorithm.it = 3  # a quarter of training
        algorithm.hooks_dict["PoolHook"].sums.copy_(past)
        algorithm.hooks_dict["ReferenceHook"].sums.copy_(seen)

    step = first_step(remember, algorithm="uasd", ulb_loss_ratio=0.9)
    batch = step.batch
    lb, ulb = step.model_outputs(batch["x_lb"], batch["x_ulb_w"])
    tau = float((seen.amax(1) / seen.sum(1)).mean())
    loss, passed = 0.0, 0
    for i, index in enumerate(batch["idx_ulb"].tolist()):
        q = past[index] / 2
        if q.max() >= tau:
            passed += 1
            loss += -(q * ulb["logits"][i].log_softmax(0)).sum()
    assert 0 < passed < len(ulb["logits"])
    weight = math.exp(-5 * (1 - 0.25 / 0.4) ** 2)
    expected = F.cross_entropy(lb["logits"], batch["y_lb"]) + 0.9 * weight * loss / passed
    torch.testing.assert_close(step.out_dict["loss"], expected)

    after = past.clone()
    for i, index in enumerate(batch["idx_ulb"].tolist()):
        after[index] += ulb["logits"][i].softmax(0).detach()
    torch.testing.assert_close(step.algorithm.hooks_dict["PoolHook"].sums, after)


def test_validation_images_are_visited_in_turn_and_leave_no_batch_statistics(first_step: Callable[..., Any]) -> None:
    step = first_step(algorithm="uasd", validation_count=30, batch_size=20)
    reference = step.algorithm.hooks_dict["ReferenceHook"].sums
    assert reference.shape == (30, 10)
    assert torch.nonzero(reference.sum(1))[:, 0].tolist() == [0, 1]  # a tenth of the labelled batch
    without = first_step(algorithm="uasd", validation_count=30, batch_size=20)
    statistics = {name: value for name, value in without.algorithm.model.named_buffers() if "running" in name}
    plain = first_step(algorithm="fixmatch", validation_count=30, batch_size=20).algorithm.model
    plain.load_state_dict({**plain.state_dict(), **first_weights(without.algorithm)})
    plain.train()(torch.cat([step.batch["x_lb"], step.batch["x_ulb_w"]]))
    for name, value in plain.named_buffers():
        if "running" in name:
            torch.testing.assert_close(statistics[name], value)


def first_weights(algorithm: Any) -> dict[str, torch.Tensor]:
    """An algorithm's weights with the batch statistics that a network starts from."""
    state = {name: value.clone() for name, value in algorithm.model.state_dict().items()}
    for name, value in state.items():
        if "running_mean" in name:
            value.zero_()
        elif "running_var" in name:
            value.fill_(1.0)
    return state


def test_score_is_what_the_greatest_probability_leaves(first_step: Callable[..., Any]) -> None:
    step = first_step(algorithm="uasd")
    output = step.algorithm.model.eval()(step.batch["x_ulb_w"])
    expected = 1 - output["logits"].softmax(1).amax(1)
    torch.testing.assert_close(step.algorithm.outlier_score(step.batch["x_ulb_w"]), expected)
