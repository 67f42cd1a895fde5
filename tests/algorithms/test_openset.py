"""What the open-set algorithms share: the wrapper, the one-vs-all loss, further views, and measuring as a detector."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from semilearn import get_net_builder
from semilearn.core.utils import ALGORITHMS, get_optimizer
from sklearn.metrics import roc_auc_score

from usb_rsmatch.algorithms.iomatch import IOMatchHeads
from usb_rsmatch.algorithms.openmatch import OneVsAllHeads
from usb_rsmatch.algorithms.openset import OpenSetNet, one_vs_all, one_vs_all_loss, register_algorithm
from usb_rsmatch.algorithms.scomatch import OutlierHead
from usb_rsmatch.detection import measure

OPEN_SET = ["openmatch", "iomatch", "scomatch", "uasd"]


def test_one_vs_all_loss_by_hand() -> None:
    """Two images, three classes, the probabilities of an inlier given; the log-odds make the logits."""
    inlier = torch.tensor([[0.9, 0.2, 0.4], [0.5, 0.3, 0.6]])
    logits = torch.stack([torch.zeros(2, 3), torch.logit(inlier)], 1)  # [B, 2, K]
    outlier, back = one_vs_all(logits)
    torch.testing.assert_close(back, inlier)
    torch.testing.assert_close(outlier, 1 - inlier)
    first = -math.log(0.9) - math.log(1 - 0.4)  # y = 0; the hardest other class is 2
    second = -math.log(0.6) - math.log(1 - 0.5)  # y = 2; the hardest other class is 0
    expected = torch.tensor((first + second) / 2)
    torch.testing.assert_close(one_vs_all_loss(logits, torch.tensor([0, 2])), expected)


@pytest.mark.parametrize("net", ["wrn_28_2", "vit_tiny_patch2_32", "small_wrn_10_1"])
@pytest.mark.parametrize("heads", [OneVsAllHeads, IOMatchHeads, OutlierHead])
def test_wrapper_serves_usbs_networks(net: str, heads: type[torch.nn.Module]) -> None:
    """Heads join the optimiser, layer-wise decay and weights without decay are the backbone's own."""
    backbone = get_net_builder(net, False)(num_classes=7)
    model = OpenSetNet(backbone, heads(backbone.num_features, 7))
    output = model(torch.randn(2, 3, 32, 32))
    assert output["logits"].shape == (2, 7) and output["feat"].shape == (2, model.num_features)
    assert torch.equal(model(output["feat"], only_fc=True), backbone(output["feat"], only_fc=True))
    assert set(model.no_weight_decay()) == {f"backbone.{name}" for name in backbone.no_weight_decay()}

    def rates(network: torch.nn.Module) -> dict[int, float]:
        optimizer = get_optimizer(network, "AdamW", 1e-3, 0.9, 1e-4, 0.5)
        return {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}

    wrapped, bare = rates(model), rates(backbone)
    assert {key: wrapped[key] for key in bare} == bare
    assert {wrapped[id(p)] for p in model.heads.parameters()} == {1e-3}


@pytest.mark.parametrize("algorithm", OPEN_SET)
def test_backbone_starts_from_the_weights_that_fixmatch_would(algorithm: str, first_step: Callable[..., Any]) -> None:
    ours, theirs = first_step(algorithm=algorithm).algorithm, first_step(algorithm="fixmatch").algorithm
    state = ours.model.state_dict()
    for name, weight in theirs.model.named_parameters():
        assert torch.equal(weight, state[name if algorithm == "uasd" else f"backbone.{name}"]), name


@pytest.mark.parametrize("algorithm", OPEN_SET)
def test_one_pass_or_several_differ_in_batch_statistics_alone(
    algorithm: str, first_step: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def in_evaluation(algorithm: Any) -> None:
        algorithm.model.eval()

    together = first_step(in_evaluation, algorithm=algorithm, use_cat=True)
    second = first_step(in_evaluation, algorithm=algorithm, use_cat=False)
    torch.testing.assert_close(together.out_dict["loss"], second.out_dict["loss"])


def test_second_weak_views_follow_the_step_and_differ_from_the_first(first_step: Callable[..., Any]) -> None:
    batch, algorithm = (step := first_step(algorithm="openmatch")).batch, step.algorithm
    again = algorithm.weak_views(batch["idx_ulb"], 24, like=batch["x_ulb_w"])
    assert torch.equal(again, algorithm.weak_views(batch["idx_ulb"], 24, like=batch["x_ulb_w"]))
    assert again.shape == batch["x_ulb_w"].shape and not torch.equal(again, batch["x_ulb_w"])
    algorithm.it = 1
    assert not torch.equal(again, algorithm.weak_views(batch["idx_ulb"], 24, like=batch["x_ulb_w"]))


def test_usbs_own_data_sets_give_further_views_too(first_step: Callable[..., Any]) -> None:
    """Sample by sample, as the pool's PIL loader does."""
    algorithm = first_step(algorithm="openmatch", rs_loader="pil").algorithm
    indices, like, dataset = torch.tensor([3, 1, 250]), torch.zeros(1), algorithm.dataset_dict["train_ulb"]
    expected = algorithm.weak_views(indices, 24, like)

    class Usb:
        transform, __sample__ = dataset.transform, dataset.__sample__

    algorithm.dataset_dict["train_ulb"] = Usb()
    assert torch.equal(algorithm.weak_views(indices, 24, like), expected)


@pytest.mark.parametrize("algorithm", OPEN_SET)
def test_reported_auroc_is_that_of_the_averaged_models_scores(algorithm: str, first_step: Callable[..., Any]) -> None:
    alg = first_step(algorithm=algorithm).algorithm
    alg.out_dict, alg.log_dict, alg.it = {}, {}, alg.num_train_iter - 1
    alg.hooks_dict["OutlierHook"].after_train_step(alg)
    dataset = alg.dataset_dict["train_ulb"]
    unseen = np.flatnonzero(~dataset.set.is_labeled)
    alg.ema.apply_shadow()
    alg.model.eval()
    with torch.no_grad():
        scores = alg.outlier_score(dataset.plain_views(unseen))
    assert scores.shape == (len(unseen),) and scores.min() >= 0 and scores.max() <= 1
    expected = roc_auc_score(dataset.set.is_synthetic[unseen], scores.numpy())
    assert alg.detection_report["auroc"] == pytest.approx(expected, abs=1e-3)  # other batch shapes
    assert alg.log_dict["detection/auroc"] == alg.detection_report["auroc"]


def test_a_large_pool_is_measured_on_a_sample_by_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pool:
        is_labeled = np.arange(100) < 10

    assert measure.measured_indices(Pool, 0).tolist() == list(range(10, 100))
    monkeypatch.setattr(measure, "MEASURED", 20)
    chosen = measure.measured_indices(Pool, 0)
    assert len(set(chosen.tolist())) == 20 and chosen.min() >= 10 and (np.diff(chosen) > 0).all()
    assert (measure.measured_indices(Pool, 0) == chosen).all() and (measure.measured_indices(Pool, 1) != chosen).any()


def test_a_name_that_is_taken_is_left_to_its_owner() -> None:
    fixmatch = ALGORITHMS["fixmatch"]
    with pytest.warns(UserWarning, match="'fixmatch' already"):
        register_algorithm("fixmatch", ALGORITHMS["uda"])
    assert ALGORITHMS["fixmatch"] is fixmatch
    register_algorithm("fixmatch", fixmatch)
