"""SCOMatch: queue and threshold by hand, and the step against its equations written down again."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from usb_rsmatch.algorithms.scomatch import OutlierQueueHook


def at(step: int) -> Any:
    """What the hook asks of an algorithm."""
    return Namespace(it=step, args=Namespace(seed=0))


def test_the_least_likely_inliers_enter_and_the_oldest_leave() -> None:
    hook = OutlierQueueHook(length=3, window=10, threshold=0.95)
    hook.push(at(0), torch.tensor([5, 6, 7]), torch.tensor([0.5, 0.2, 0.9]), count=1)
    hook.push(at(1), torch.tensor([8, 9, 4]), torch.tensor([0.3, 0.8, 0.1]), count=2)
    assert hook.indices.tolist() == [6, 4, 8]
    hook.push(at(2), torch.tensor([1, 2]), torch.tensor([0.4, 0.6]), count=1)
    assert hook.indices.tolist() == [4, 8, 1]
    torch.testing.assert_close(hook.scores, torch.tensor([0.1, 0.3, 0.4]))


def test_sample_is_by_the_step_without_repetition_and_waits_for_a_batch() -> None:
    hook = OutlierQueueHook(length=20, window=10, threshold=0.95)
    hook.push(at(0), torch.arange(10, 20), torch.linspace(0, 1, 10), count=10)
    assert hook.sample(at(3), 11) is None
    sampled = hook.sample(at(3), 6)
    assert sampled is not None
    indices, scores = sampled
    assert len(set(indices.tolist())) == 6
    torch.testing.assert_close(scores, (indices - 10) / 9)
    assert torch.equal(hook.sample(at(3), 6)[0], indices)  # type: ignore[index]
    assert not torch.equal(hook.sample(at(4), 6)[0], indices)  # type: ignore[index]


@pytest.mark.parametrize(
    ("inliers", "outliers", "threshold"),
    [(10, 9, 0.95 * 0.9), (10, 1, 0.75), (10, 30, 0.95), (0, 5, 0.95)],
)
def test_threshold_is_the_ratio_of_confident_predictions_within_bounds(
    inliers: int, outliers: int, threshold: float
) -> None:
    hook = OutlierQueueHook(length=20, window=4, threshold=0.95)
    assert hook.outlier_threshold(at(0)) == 0.95
    unsure = torch.tensor([False, True])
    is_outlier = torch.cat([torch.tensor([False] * inliers + [True] * outliers), unsure])
    hook.count(at(0), is_outlier, sure=torch.arange(len(is_outlier)) < inliers + outliers)
    assert hook.outlier_threshold(at(3)) == 0.95
    assert float(hook.outlier_threshold(at(4))) == pytest.approx(threshold)
    assert hook.confident.tolist() == [0, 0]
    assert float(hook.outlier_threshold(at(5))) == pytest.approx(threshold)


def test_queue_length_and_window_are_the_authors(first_step: Callable[..., Any]) -> None:
    hook = first_step(algorithm="scomatch").algorithm.hooks_dict["OutlierQueueHook"]
    assert hook.length == 256 and hook.window == 400 // (2 * 12)
    assert first_step(algorithm="scomatch", sco_queue_length=9).algorithm.hooks_dict["OutlierQueueHook"].length == 9


def test_step_equals_the_equations(first_step: Callable[..., Any]) -> None:
    queued, scores = torch.tensor([30, 40, 50, 60, 70]), torch.tensor([0.1, 0.96, 0.2, 0.05, 0.99])

    def fill(algorithm: Any) -> None:
        algorithm.model.heads.outlier_head.weight.data.fill_(0.04)  # some of the pool look like outliers
        hook = algorithm.hooks_dict["OutlierQueueHook"]
        hook.push(algorithm, queued, scores, count=5)
        hook.threshold_open = 0.22

    step = first_step(fill, algorithm="scomatch", p_cutoff=0.15, T=0.9, ulb_loss_ratio=0.9)
    batch, hook = step.batch, step.algorithm.hooks_dict["OutlierQueueHook"]
    assert len(hook.indices) == 6  # one image of the batch entered

    before = OutlierQueueHook(256, 16, 0.15)
    before.push(step.algorithm, queued, scores, count=5)
    chosen, chosen_scores = before.sample(step.algorithm, 4)  # type: ignore[misc]
    outliers = step.algorithm.weak_views(chosen, 25, like=batch["x_lb"])
    lb, w, s, out = step.model_outputs(batch["x_lb"], batch["x_ulb_w"], batch["x_ulb_s"], outliers)
    assert all(torch.equal(o["logits_open"][:, :10], o["logits"]) for o in (lb, w, s, out))

    sup_open = 0.0
    for i in range(4):
        if chosen_scores[i] < 0.15:
            sup_open += F.cross_entropy(out["logits_open"][i : i + 1], torch.tensor([10]))
    unsup = unsup_open = 0.0
    used, kinds = [0, 0, 0], torch.zeros(2)
    for i in range(len(w["logits"])):
        r, p = (w["logits_open"][i] / 0.9).softmax(0), (w["logits"][i] / 0.9).softmax(0)
        is_outlier = int(r.argmax() == 10)
        if r.max() >= (0.22 if is_outlier else 0.15):
            used[is_outlier] += 1
            unsup_open += F.cross_entropy(s["logits_open"][i : i + 1], r.argmax()[None])
        if r.max() >= 0.15:
            kinds[is_outlier] += 1
        if r.max() >= 0.15 and not is_outlier:
            used[2] += 1
            unsup += F.cross_entropy(s["logits"][i : i + 1], p.argmax()[None])
    assert all(0 < count < len(w["logits"]) for count in used), used
    assert used[1] < kinds[1]  # the threshold of outliers turned some away
    expected = F.cross_entropy(lb["logits_open"], batch["y_lb"]) + sup_open / 4
    expected = expected + 0.9 * (unsup + unsup_open) / len(w["logits"])
    torch.testing.assert_close(step.out_dict["loss"], expected)
    assert hook.confident.tolist() == kinds.tolist()
    score = (w["logits_open"] / 0.9).softmax(1)[:, :10].amax(1)
    assert hook.indices[-1] == batch["idx_ulb"][score.argmin()]


def test_score_is_the_probability_of_the_last_class(first_step: Callable[..., Any]) -> None:
    step = first_step(algorithm="scomatch")
    output = step.algorithm.model.eval()(step.batch["x_ulb_w"])
    scores = step.algorithm.outlier_score(step.batch["x_ulb_w"])
    for score, logits in zip(scores, output["logits_open"], strict=True):
        torch.testing.assert_close(score, logits[10].exp() / logits.exp().sum())
