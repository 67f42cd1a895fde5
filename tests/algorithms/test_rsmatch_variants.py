"""The ways of use that were not taken: each adds to RSMatch's equations what its docstring says."""

from __future__ import annotations

import contextlib
import importlib
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from usb_rsmatch.usb.compat import cuda_calls_stay_on_cpu
from usb_rsmatch.usb.config import resolve
from usb_rsmatch.usb.training import build

OTHER_MASK = ("rsmatch_lower_cutoff", "rsmatch_half_weight", "rsmatch_pretraining")
FURTHER_LOSS = ("rsmatch_dummy_on_labeled", "rsmatch_own_pseudo_labels", "rsmatch_consistent_heads")
CUTOFF, LOW = 0.18, 0.165  # untrained networks are hardly surer than chance


def build_way(tiny: dict[str, Any], name: str, **changes: Any) -> Any:
    config = {**tiny, "plugins": ["usb_rsmatch.algorithms.rsmatch_variants"], "algorithm": name, "p_cutoff": CUTOFF}
    args, _ = resolve({**config, "rs_detector": "oracle", "rs_warmup": 0.0, "rs_norm": "shared", **changes})
    args.device = "cpu"
    return build(args)


def equations(name: str, m: torch.Tensor, confidence: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    """m of a way of use."""
    if name == "rsmatch_lower_cutoff":
        return torch.where((m > 0) | ((s > 0) & (confidence >= LOW)), 1.0, 0.0)
    if name == "rsmatch_half_weight":
        return m * torch.where(s > 0, 0.5, 1.0)
    if name == "rsmatch_pretraining":
        return m * s
    return m


@pytest.fixture
def ways() -> Any:
    """The module, which registers algorithms: not imported while other tests list what is registered."""
    return importlib.import_module("usb_rsmatch.algorithms.rsmatch_variants")


def test_every_way_is_tested(ways: Any) -> None:
    assert tuple(ways.WAYS) == OTHER_MASK + FURTHER_LOSS


@pytest.mark.parametrize("norm", ["shared", "split"])
@pytest.mark.parametrize("name", OTHER_MASK + FURTHER_LOSS)
def test_step_equals_the_equations(
    name: str, norm: str, ways: Any, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ways, "LOWER_CUTOFF", LOW)
    monkeypatch.setattr(ways, "OWN_FROM", LOW)
    way, reference = (build_way(tiny, name, rs_norm=norm) for _ in range(2))
    reference.model.load_state_dict(way.model.state_dict())
    with cuda_calls_stay_on_cpu():
        way.model.train()
        way.epoch = 0
        way.call_hook("before_run")
        batch = {**next(iter(way.loader_dict["train_lb"])), **next(iter(way.loader_dict["train_ulb"]))}
        out_dict, log_dict = way.train_step(**way.process_batch(**batch))

    network, n, u = reference.model.train(), len(batch["x_lb"]), len(batch["x_ulb_w"])
    x, s = [batch["x_lb"], batch["x_ulb_w"], batch["x_ulb_s"]], batch["is_synthetic"].float()
    with network.split_statistics(*x, s) if norm == "split" else contextlib.nullcontext():
        output = network(torch.cat(x))
    h_lb, h_w, h_s = output["logits"].split([n, u, u])
    g_lb, g_w, g_s = network.dummy_head(output["feat"]).split([n, u, u])
    confidence, q = h_w.softmax(1).max(1)
    plain = (confidence >= CUTOFF).float()
    m = equations(name, plain, confidence, s)
    assert (m != plain).any() == (name in OTHER_MASK)
    loss = F.cross_entropy(h_lb, batch["y_lb"]) + (m * F.cross_entropy(h_s, q, reduction="none")).mean()
    loss = loss + (m * s * F.cross_entropy(g_s, q, reduction="none")).mean()
    if name in ("rsmatch_dummy_on_labeled", "rsmatch_own_pseudo_labels"):
        loss = loss + F.cross_entropy(g_lb, batch["y_lb"])
    if name == "rsmatch_own_pseudo_labels":
        sure = (g_w.softmax(1).max(1).values >= LOW).float()
        assert 0 < (s * sure).sum() < s.sum()
        loss = loss + (s * sure * F.cross_entropy(g_s, g_w.argmax(1), reduction="none")).mean()
    if name == "rsmatch_consistent_heads":
        p = h_s.softmax(1).detach()
        loss = loss + (s * (p * (p.log() - g_s.log_softmax(1))).sum(1)).mean()
    torch.testing.assert_close(out_dict["loss"], loss)
    torch.testing.assert_close(torch.as_tensor(log_dict["train/total_loss"]), loss.detach())


def test_pretraining_ends(ways: Any, tiny: dict[str, Any]) -> None:
    way = build_way(tiny, "rsmatch_pretraining")
    m, s = torch.tensor([1.0, 1.0, 0.0]), torch.tensor([0.0, 1.0, 1.0])
    way.it = int(ways.PRETRAINING * way.args.num_train_iter) + 1
    assert torch.equal(way.masked(m, m, s), m)


def test_confidence_is_a_probability_where_a_base_rule_passes_logits(ways: Any, tiny: dict[str, Any]) -> None:
    """FreeMatch and Dash do; a logit of 2 is no confidence of 0.8."""
    way = build_way(tiny, "rsmatch_lower_cutoff")
    logits = torch.zeros(3, 10)
    logits[:, 0] = torch.tensor([2.0, 4.0, 4.0])  # the largest probabilities are 0.45, 0.86 and 0.86
    way.synthetic, way.p_cutoff = torch.tensor([1.0, 1.0, 0.0]), 0.95
    expected = torch.tensor([0.0, 1.0, 0.0])
    assert torch.equal(way.call_hook("masking", "MaskingHook", logits_x_ulb=logits), expected)
    probabilities = {"logits_x_ulb": logits.softmax(1), "softmax_x_ulb": False}
    assert torch.equal(way.call_hook("masking", "MaskingHook", **probabilities), expected)


def test_what_is_kept_from_the_main_head_stays_from_it(ways: Any, tiny: dict[str, Any]) -> None:
    """With `rs_synthetic_to: dummy` a way changes m, not t."""
    way = build_way(tiny, "rsmatch_lower_cutoff", rs_synthetic_to="dummy")
    logits = torch.zeros(3, 10)
    logits[:, 0] = torch.tensor([4.0, 9.0, 9.0])
    way.synthetic, way.p_cutoff = torch.tensor([1.0, 1.0, 0.0]), 0.95
    main = way.call_hook("masking", "MaskingHook", logits_x_ulb=logits)
    assert torch.equal(main, torch.tensor([0.0, 0.0, 1.0])) and torch.equal(way.mask, torch.ones(3))


@pytest.mark.parametrize("name", FURTHER_LOSS)
def test_features_of_half_precision_are_taken(name: str, ways: Any, tiny: dict[str, Any]) -> None:
    """As `amp` gives them on a GPU."""
    way = build_way(tiny, name)
    way.amp_cm = lambda: torch.autocast("cpu", torch.bfloat16)
    with cuda_calls_stay_on_cpu():
        way.model.train()
        way.epoch = 0
        way.call_hook("before_run")
        batch = {**next(iter(way.loader_dict["train_lb"])), **next(iter(way.loader_dict["train_ulb"]))}
        out_dict, _ = way.train_step(**way.process_batch(**batch))
    assert out_dict["feat"]["x_lb"].dtype == torch.bfloat16 and out_dict["loss"].isfinite()
