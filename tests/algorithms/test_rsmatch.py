"""RSMatch's step: identical to its base rule where it must be, and each loss against hand-computed values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from semilearn.core.utils import ALGORITHMS

from usb_rsmatch.detection.detector import in_eight_positions
from usb_rsmatch.errors import UserError
from usb_rsmatch.usb.compat import cuda_calls_stay_on_cpu
from usb_rsmatch.usb.config import resolve
from usb_rsmatch.usb.training import build, train

SHARED = {"rs_norm": "shared"}  # one BatchNorm for all images, as in the base rule
BASES = ["fixmatch", "flexmatch", "freematch", "softmatch", "uda", "adamatch"]


def algorithm(tiny: dict[str, Any], **changes: Any) -> Any:
    args, _ = resolve({**tiny, "p_cutoff": 0.11, "rs_warmup": 0.0, **changes})
    args.device = "cpu"
    return build(args)


def losses(algorithm: Any, steps: int = 12) -> list[float]:
    recorded: list[float] = []
    update = algorithm.hooks_dict["ParamUpdateHook"]
    after = update.after_train_step
    update.after_train_step = lambda a: (recorded.append(float(a.out_dict["loss"].detach())), after(a))
    algorithm.train()
    assert len(recorded) == steps
    return recorded


@pytest.mark.parametrize("base", BASES)
def test_without_a_detector_the_losses_are_those_of_the_base_rule(base: str, tiny: dict[str, Any]) -> None:
    plain = losses(algorithm(tiny, algorithm=base))
    layered = losses(algorithm(tiny, algorithm="rsmatch", rs_base=base, rs_detector="none"))
    assert layered == plain


@pytest.mark.parametrize("base", BASES)
def test_main_with_known_provenance_is_the_base_rule(base: str, tiny: dict[str, Any]) -> None:
    """`main` sends everything to the main head, and an oracle trains no detector: nothing is left to differ."""
    plain = losses(algorithm(tiny, algorithm=base))
    main = {"rs_detector": "oracle", "rs_synthetic_to": "main", **SHARED}
    assert losses(algorithm(tiny, algorithm="rsmatch", rs_base=base, **main)) == plain


def test_until_identification_acts_it_is_the_base_rule(tiny: dict[str, Any]) -> None:
    """With heads, norms and an oracle at their defaults, all of training being warm-up."""
    plain = losses(algorithm(tiny, algorithm="fixmatch"))
    assert losses(algorithm(tiny, algorithm="rsmatch", rs_detector="oracle", rs_warmup=1.0)) == plain


def test_main_with_a_mining_detector_leaves_the_base_rules_weights(tiny: dict[str, Any]) -> None:
    """A residual detector shares no weight with the classifier: its loss changes none of the classifier's updates."""
    plain = algorithm(tiny, algorithm="fixmatch")
    layered = algorithm(tiny, algorithm="rsmatch", rs_synthetic_to="main", **SHARED)
    losses(plain)
    losses(layered)
    backbone = layered.model.backbone.state_dict()
    for name, weight in plain.model.state_dict().items():
        assert torch.equal(weight, backbone[name]), name


def one_step(alg: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """A step's output, log and batch, with the hooks of the run's start called."""
    with cuda_calls_stay_on_cpu():
        alg.model.train()
        alg.epoch = 0
        alg.call_hook("before_run")
        lb, ulb = next(iter(alg.loader_dict["train_lb"])), next(iter(alg.loader_dict["train_ulb"]))
        out_dict, log_dict = alg.train_step(**alg.process_batch(**lb, **ulb))
    return out_dict, log_dict, {**lb, **ulb}


@pytest.mark.parametrize("norm", ["split", "shared"])
@pytest.mark.parametrize("to", ["dummy", "main", "both", "drop"])
def test_step_equals_the_equations(to: str, norm: str, tiny: dict[str, Any]) -> None:
    changes = {"rs_detector": "oracle", "rs_synthetic_to": to, "rs_norm": norm}
    alg = algorithm(tiny, algorithm="rsmatch", rs_lambda_syn=0.7, ulb_loss_ratio=0.9, **changes)
    reference = algorithm(tiny, algorithm="rsmatch", **changes)
    reference.model.load_state_dict(alg.model.state_dict())
    out_dict, log_dict, batch = one_step(alg)

    s = batch["is_synthetic"].float()
    assert 0 < s.sum() < len(s)
    network = reference.model.train()
    inputs, n, u = torch.cat([batch["x_lb"], batch["x_ulb_w"], batch["x_ulb_s"]]), len(batch["x_lb"]), len(s)
    if norm == "split":  # real and synthetic images as two batches
        second = torch.cat([torch.zeros(n), s, s]).bool()
        logits, feat = torch.empty(len(inputs), 10), torch.empty(len(inputs), network.num_features)
        for part in (~second, second):
            output = network(inputs[part])
            logits[part], feat[part] = output["logits"], output["feat"]
    else:
        output = network(inputs)
        logits, feat = output["logits"], output["feat"]
    logits_lb, logits_w, logits_s = logits.split([n, u, u])
    confidence, q = logits_w.softmax(1).max(1)
    m = (confidence >= 0.11).float()
    to_main = m if to in ("main", "both") else m * (1 - s)
    l_sup = F.cross_entropy(logits_lb, batch["y_lb"])
    l_real = (to_main * F.cross_entropy(logits_s, q, reduction="none")).mean()
    l_syn = (m * s * F.cross_entropy(network.dummy_head(feat[n + u :]), q, reduction="none")).mean()
    assert l_real > 0 and l_syn > 0
    with_dummy = to in ("dummy", "both")
    torch.testing.assert_close(out_dict["loss"], l_sup + 0.9 * l_real + 0.7 * with_dummy * l_syn)
    assert ("train/syn_loss" in log_dict) == with_dummy
    if with_dummy:
        torch.testing.assert_close(torch.as_tensor(log_dict["train/syn_loss"]), l_syn.detach())


@pytest.mark.parametrize("base", ["fixmatch", "freematch"])
def test_main_head_gets_no_gradient_from_images_identified_as_synthetic(base: str, tiny: dict[str, Any]) -> None:
    """With every image identified, the main head learns from the labelled images alone."""
    dummy = {"rs_detector": "oracle", "rs_synthetic_to": "dummy", **SHARED}
    alg = algorithm(tiny, algorithm="rsmatch", rs_base=base, num_labels=20, **dummy)
    alg.hooks_dict["SyntheticDetectionHook"]._known.fill_(1.0)
    out_dict, _, batch = one_step(alg)
    gradient = torch.autograd.grad(out_dict["loss"], alg.model.backbone.classifier.weight, retain_graph=True)[0]
    feat = out_dict["feat"]["x_lb"]
    supervised = F.cross_entropy(alg.model(feat, only_fc=True), batch["y_lb"])
    expected = torch.autograd.grad(supervised, alg.model.backbone.classifier.weight)[0]
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("source", ["contrast_free", "feature", "feature_gradient"])
def test_heads_and_detector_take_features_of_half_precision(source: str, tiny: dict[str, Any]) -> None:
    """With `amp` the base rule's step runs under autocast, what RSMatch adds to it does not."""
    alg = algorithm(tiny, algorithm="rsmatch", rs_detector_input=source)
    alg.amp_cm = lambda: torch.autocast("cpu", torch.bfloat16)
    out_dict, log_dict, _ = one_step(alg)
    assert out_dict["loss"].isfinite() and torch.as_tensor(log_dict["train/syn_loss"]).dtype == torch.float32


def test_drop_ignores_synthetic_images_and_the_dummy_head(tiny: dict[str, Any]) -> None:
    alg = algorithm(tiny, algorithm="rsmatch", rs_detector="oracle", rs_synthetic_to="drop")
    out_dict, log_dict, _ = one_step(alg)
    out_dict["loss"].backward()
    assert alg.model.dummy_head.weight.grad is None
    assert "train/syn_loss" not in log_dict


def test_no_identification_before_the_warm_up_is_over(tiny: dict[str, Any]) -> None:
    alg = algorithm(tiny, algorithm="rsmatch", rs_warmup=0.5, rs_threshold=0.0)
    _, log_dict, _ = one_step(alg)
    assert float(log_dict["train/synthetic_share"]) == 0.0
    alg.it = 6
    _, log_dict, _ = one_step(alg)
    assert float(log_dict["train/synthetic_share"]) == 1.0


@pytest.mark.parametrize("source", ["contrast_free", "residual", "npr", "feature", "feature_gradient"])
@pytest.mark.parametrize("kind", ["csqueue", "pu", "supervised"])
def test_every_detector_learns(source: str, kind: str, tiny: dict[str, Any]) -> None:
    alg = algorithm(tiny, algorithm="rsmatch", rs_detector=kind, rs_detector_input=source, rs_synthetic_to="main")
    one_step(alg)  # fills the queue
    out_dict, log_dict, _ = one_step(alg)
    detector = list(alg.model.detector.parameters())
    gradients = torch.autograd.grad(out_dict["loss"], detector, retain_graph=True)
    assert any(g.abs().sum() > 0 for g in gradients)
    assert float(log_dict["train/det_loss"]) > 0


def test_what_the_detector_costs_is_told(tiny: dict[str, Any]) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    told: list[str] = []
    config = {**tiny, "algorithm": "rsmatch", "epoch": 1, "num_train_iter": 1, "num_eval_iter": 1}
    train({**config, "save_name": "cost"}, note=told.append)
    alg, flops = algorithm(config), {}
    for name, part in (("detector", alg.detector), ("backbone", alg.network.backbone)):
        with FlopCounterMode(display=False) as counter:
            part(torch.zeros(1, 3, alg.args.img_size, alg.args.img_size))
        flops[name] = counter.get_total_flops()
    assert alg.detector_cost() == pytest.approx(flops["detector"] / flops["backbone"])
    assert f"detector: {flops['detector'] / flops['backbone']:.2%} of the network's multiply-adds" in told
    assert algorithm(config, rs_detector="oracle").detector_cost() is None


@pytest.mark.parametrize(("source", "reaches"), [("feature", False), ("feature_gradient", True)])
def test_feature_detectors_shape_the_backbone_or_not(source: str, reaches: bool, tiny: dict[str, Any]) -> None:
    """And what is mined leaves the statistics that the classifier keeps for test as they are."""
    alg = algorithm(tiny, algorithm="rsmatch", rs_detector_input=source, rs_warmup=1.0)
    hook, detection = alg.hooks_dict["SyntheticDetectionHook"], {}

    def keep(_: Any, **kwargs: Any) -> torch.Tensor:
        before = {name: value.clone() for name, value in alg.model.backbone.named_buffers()}
        detection["loss"] = loss_of(alg, **kwargs)
        detection["same"] = all(torch.equal(before[name], value) for name, value in alg.model.backbone.named_buffers())
        return detection["loss"]

    loss_of, hook.detection_loss = hook.detection_loss, keep
    hook._cold_steps = 0
    one_step(alg)
    one_step(alg)
    weight = alg.model.backbone.conv1.weight
    gradient = torch.autograd.grad(detection["loss"], weight, allow_unused=True)[0]
    assert (gradient is not None and bool(gradient.abs().sum() > 0)) == reaches
    assert detection["same"]


def test_the_supervised_yardstick_learns_provenance(tiny: dict[str, Any]) -> None:
    alg = algorithm(tiny, algorithm="rsmatch", rs_detector="supervised", rs_synthetic_to="main", **SHARED)
    reference = algorithm(tiny, algorithm="rsmatch", rs_detector="supervised")
    reference.model.load_state_dict(alg.model.state_dict())
    _, log_dict, batch = one_step(alg)
    reference.model.train()
    logit = reference.detector(in_eight_positions(batch["x_ulb_w"], np.arange(len(batch["x_ulb_w"]))))  # of step 0
    synthetic = batch["is_synthetic"]
    assert 0 < synthetic.sum() < len(synthetic)
    both = F.softplus(-logit[synthetic]).mean() + F.softplus(logit[~synthetic]).mean()
    torch.testing.assert_close(torch.as_tensor(log_dict["train/det_loss"]), both.detach())


def test_a_cold_start_against_the_pool_takes_three_of_its_images_for_each_labelled_one(tiny: dict[str, Any]) -> None:
    config = {**tiny, "algorithm": "rsmatch", "rs_pseudo_fakes": "pool", "rs_warmup": 1.0, "rs_synthetic_to": "main"}
    alg, reference = algorithm(config), algorithm(config)
    for one in (alg, reference):
        one.hooks_dict["SyntheticDetectionHook"]._cold_steps = 1
    reference.model.load_state_dict(alg.model.state_dict())
    _, log_dict, batch = one_step(alg)
    reference.model.train()
    real, count = batch["x_lb"], len(batch["x_lb"])
    pool = batch["x_ulb_w"][: 3 * count]
    turned = [in_eight_positions(x, np.arange(len(x))) for x in (real, pool)]  # of step 0
    logit = reference.detector(torch.cat(turned))
    expected = F.softplus(logit[:count]).mean() + F.softplus(-logit[count:]).mean()
    torch.testing.assert_close(torch.as_tensor(log_dict["train/det_loss"]), expected.detach())


def test_an_adaptive_threshold_identifies_the_estimated_share(tiny: dict[str, Any]) -> None:
    alg = algorithm(tiny, algorithm="rsmatch", rs_threshold="adaptive")
    alg.train()
    hook, share = alg.hooks_dict["SyntheticDetectionHook"], alg.detection_report["share"]
    _, scores = alg._pool_scores
    assert share["true"] == alg.args.pool.unlabeled.is_synthetic[~alg.args.pool.unlabeled.is_labeled].mean()
    assert abs((scores > hook.threshold).mean() - (1 - hook.real_share)) <= 1 / len(scores)
    other = algorithm(tiny, algorithm="rsmatch", rs_threshold="adaptive")
    other.hooks_dict["SyntheticDetectionHook"].load_state_dict(hook.state_dict())
    assert other.hooks_dict["SyntheticDetectionHook"].threshold == hook.threshold != 0.5


def test_of_a_queue_that_all_images_have_left_nothing_counts(tiny: dict[str, Any]) -> None:
    alg = algorithm(tiny, algorithm="rsmatch", rs_warmup=1.0)
    hook = alg.hooks_dict["SyntheticDetectionHook"]
    hook._cold_steps, hook._queue_serves = 0, True
    views, counted = hook._sample(alg, 4)
    assert len(hook.queue) == 0 and len(views) == len(counted) == 12 and not counted.any()


def test_mined_images_of_every_class_come_in_every_position(
    tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queue's batch is in the order of its classes, so a place alone would tie a class to a position."""
    from usb_rsmatch.detection import hook as hook_module

    seen: set[tuple[int, int]] = set()

    def turn(x: torch.Tensor, places: np.ndarray) -> torch.Tensor:
        if len(x) == 12:  # the mined ones; 4 are labelled
            seen.update(zip(range(12), (places % 8).tolist(), strict=True))
        return in_eight_positions(x, places)

    monkeypatch.setattr(hook_module, "in_eight_positions", turn)
    alg = algorithm(tiny, algorithm="rsmatch", rs_warmup=1.0, num_train_iter=24)
    hook = alg.hooks_dict["SyntheticDetectionHook"]
    hook._cold_steps = 0
    alg.train()
    assert seen == {(row, position) for row in range(12) for position in range(8)}


def test_a_pool_of_labelled_images_alone_is_evaluated(tiny: dict[str, Any]) -> None:
    alg = algorithm(tiny, algorithm="rsmatch", real_count=20, synthetic_count=0, synthetic=[])
    alg.train()
    assert alg.detection_report["auroc"] is None and "share" not in alg.detection_report


@pytest.mark.parametrize("name", ["mixmatch", "meanteacher", "simmatch", "comatch", "crmatch", "openmatch", "rsmatch"])
def test_what_is_no_base_rule_is_refused(name: str, tiny: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"rs_base: .*{name}") as caught:
        algorithm(tiny, algorithm="rsmatch", rs_base=name)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_a_base_rule_may_reach_the_mask_through_its_parents_step(tiny: dict[str, Any]) -> None:
    class Quieter(ALGORITHMS["freematch"]):
        def train_step(self, x_lb: Any, y_lb: Any, x_ulb_w: Any, x_ulb_s: Any) -> Any:
            out_dict, log_dict = super().train_step(x_lb, y_lb, x_ulb_w, x_ulb_s)
            return {**out_dict, "loss": 0.5 * out_dict["loss"]}, log_dict

    ALGORITHMS.register("quieter")(Quieter)
    try:
        plain = losses(algorithm(tiny, algorithm="quieter"))
        assert losses(algorithm(tiny, algorithm="rsmatch", rs_base="quieter", rs_detector="none")) == plain
    finally:
        del ALGORITHMS._dict["quieter"]


def test_a_base_rule_that_asks_for_no_mask_is_told_at_its_first_step(tiny: dict[str, Any]) -> None:
    class Unmasked(ALGORITHMS["fixmatch"]):
        def train_step(self, x_lb: Any, y_lb: Any, x_ulb_w: Any, x_ulb_s: Any) -> Any:
            feat = {"x_ulb_s": self.model(x_ulb_s)["feat"]}
            loss = self.ce_loss(self.model(x_lb)["logits"], y_lb, reduction="mean")
            return self.process_out_dict(loss=loss, feat=feat), {}

    ALGORITHMS.register("unmasked")(Unmasked)
    try:
        with pytest.raises(UserError, match="rs_base: unmasked has no masked"):
            one_step(algorithm(tiny, algorithm="rsmatch", rs_base="unmasked", rs_detector="none"))
    finally:
        del ALGORITHMS._dict["unmasked"]


@pytest.mark.parametrize("net", ["wrn_28_2", "resnet50", "vit_tiny_patch2_32", "small_wrn_10_2"])
def test_wrapper_serves_usbs_networks(net: str) -> None:
    """Layer-wise decay and the list of weights without decay see through the wrapper, as USB's optimiser asks."""
    from semilearn import get_net_builder
    from semilearn.core.utils import get_optimizer

    from usb_rsmatch.algorithms.networks import RSNet

    backbone = get_net_builder(net, False)(num_classes=7)
    model = RSNet(backbone, 7, None)
    size = 32
    output = model(torch.randn(2, 3, size, size))
    assert output["logits"].shape == (2, 7) and output["feat"].shape == (2, model.num_features)
    assert model.dummy_head(output["feat"]).shape == (2, 7)
    assert set(model.no_weight_decay()) == {f"backbone.{name}" for name in backbone.no_weight_decay()}

    def rates(network: torch.nn.Module) -> dict[int, float]:
        optimizer = get_optimizer(network, "AdamW", 1e-3, 0.9, 1e-4, 0.5)
        return {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}

    wrapped, bare = rates(model), rates(backbone)
    assert {key: wrapped[key] for key in bare} == bare
    assert wrapped[id(model.dummy_head.weight)] == 1e-3
