"""Tests of partial fine-tuning: what is frozen stays equal bit for bit, and checkpointing changes memory alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from usb_rsmatch.algorithms.fine_tuning import checkpoint_gradients
from usb_rsmatch.algorithms.timm_backbone import NetworkInput, build_timm
from usb_rsmatch.errors import UserError
from usb_rsmatch.usb import compat, training
from usb_rsmatch.usb.config import resolve


def trained(tiny: dict[str, Any], **changes: Any) -> tuple[dict[str, Tensor], dict[str, Tensor], Any]:
    """The weights before and after a short training, and the algorithm."""
    args, _ = resolve(
        {**tiny, "img_size": 32, "algorithm": "rsmatch", "rs_loader": "batched", "rs_warmup": 0, **changes}
    )
    args.device = "cpu"
    algorithm = training.build(args)
    before = {name: tensor.clone() for name, tensor in algorithm.model.state_dict().items()}
    with compat.cuda_calls_stay_on_cpu():
        algorithm.train()
    return before, algorithm.model.state_dict(), algorithm


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """The names of the backbone's tensors that differ."""
    names = {name for name in before if not torch.equal(before[name], after[name])}
    return {name.removeprefix("backbone.").removeprefix("model.") for name in names if name.startswith("backbone.")}


HEADS = {"timm:test_efficientnet": "classifier", "timm:test_vit": "head", "small_wrn_10_1": "classifier"}


@pytest.mark.parametrize("fast", [False, True], ids=["exact", "fast"])
@pytest.mark.parametrize("net", HEADS)
def test_freeze_backbone_trains_the_heads_alone(net: str, fast: bool, tiny: dict[str, Any]) -> None:
    """Also BatchNorm's running statistics stay; the dummy head and the detector learn."""
    before, after, algorithm = trained(tiny, net=net, freeze="backbone", rs_fast=fast)
    assert changed(before, after) == {f"{HEADS[net]}.weight", f"{HEADS[net]}.bias"}
    assert not torch.equal(before["dummy_head.weight"], after["dummy_head.weight"])
    assert not torch.equal(before["detector.head.weight"], after["detector.head.weight"])
    assert "has no effect" in algorithm.normalisation_note()
    averaged = dict(algorithm.ema_model.named_parameters())
    frozen = [name for name, weight in algorithm.model.named_parameters() if not weight.requires_grad]
    assert frozen and all(torch.allclose(averaged[name], before[name], rtol=1e-6) for name in frozen)


@pytest.mark.parametrize(("net", "some"), [("timm:test_efficientnet", "bn1"), ("timm:test_vit", "norm")])
def test_freeze_norm_keeps_normalisation_layers(net: str, some: str, tiny: dict[str, Any]) -> None:
    before, after, _ = trained(tiny, net=net, freeze="norm")
    names = changed(before, after)
    assert f"{some}.weight" in {name.removeprefix("backbone.model.") for name in before}
    assert names and not any(part.startswith(("bn", "norm")) for name in names for part in name.split("."))
    assert any("conv" in name or "attn" in name for name in names)


def test_without_freeze_every_tensor_is_trained(tiny: dict[str, Any]) -> None:
    before, after, _ = trained(tiny, net="timm:test_efficientnet")
    names = {name.removeprefix("backbone.model.") for name in before if name.startswith("backbone.")}
    assert changed(before, after) == names


def test_layer_decay_slows_the_first_layers_down(tiny: dict[str, Any]) -> None:
    """With a factor of 0.1 a layer, the first layer of a ViT moves far less than without it."""
    moved = {}
    for decay in (1.0, 0.1):
        before, after, _ = trained(tiny, net="timm:test_vit", layer_decay=decay, optim="AdamW", lr=1e-3)
        name = "backbone.model.patch_embed.proj.weight"
        moved[decay] = float((after[name] - before[name]).abs().mean())
    assert 0 < moved[0.1] < moved[1.0] / 100


def test_gradient_checkpointing_keeps_less_and_gives_equal_gradients() -> None:
    images, kept, gradients = torch.randn(4, 3, 64, 64), [], []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        network = build_timm("timm:vit_tiny_patch16_224", 10, NetworkInput(64), {"depth": 4}, hub=False).train()
        if checkpointed:
            checkpoint_gradients(network, "timm:vit_tiny_patch16_224")
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, s=sizes: (s.append(x.nbytes), x)[1], lambda x: x):
            loss = network(images)["logits"].square().mean()
        loss.backward()
        kept.append(sum(sizes))
        gradients.append([weight.grad for weight in network.parameters()])
    assert kept[1] < kept[0] / 3
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))


def test_gradient_checkpointing_trains_to_equal_weights(tiny: dict[str, Any]) -> None:
    plain, checkpointed = (trained(tiny, net="timm:test_vit", grad_checkpointing=on)[1] for on in (False, True))
    assert all(torch.allclose(plain[name], checkpointed[name], atol=1e-5) for name in plain)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"net": "timm:test_efficientnet", "grad_checkpointing": True}, "updates BatchNorm twice in a step"),
        ({"net": "vit_tiny_patch2_32", "grad_checkpointing": True}, "is not implemented by vit_tiny_patch2_32"),
        ({"net": "small_wrn_10_1", "net_size": 64}, "net_size is for networks of timm, not small_wrn_10_1"),
        ({"net": "timm:test_vit", "net_kwargs": {"dpeth": 3}}, r"cannot be set up: TypeError: .*dpeth"),
        ({"freeze": "head"}, "freeze takes backbone or norm or none, not 'head'"),
    ],
)
def test_keys_that_do_not_fit_are_errors(changes: dict[str, Any], message: str, tiny: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=message):
        trained(tiny, **changes)


def test_arguments_reach_the_networks_builder(tiny: dict[str, Any]) -> None:
    args, _ = resolve({**tiny, "img_size": 32, "net": "timm:test_vit", "net_kwargs": {"depth": 2}})
    args.device = "cpu"
    assert len(training.build(args).model.model.blocks) == 2
