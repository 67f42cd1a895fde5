"""Tests of timm's networks as backbones: against timm's own outputs, preprocessing and parameter groups."""

from __future__ import annotations

import re

import numpy as np
import pytest
import timm
import torch
from timm.data import create_transform, resolve_model_data_config
from timm.optim import param_groups_layer_decay as timms_groups
from torch import nn

from usb_rsmatch.algorithms.networks import RSNet
from usb_rsmatch.algorithms.split_batchnorm import Group, use_split_batchnorm
from usb_rsmatch.algorithms.timm_backbone import NetworkInput, TimmBackbone, build_timm, timm_config
from usb_rsmatch.errors import UserError

POOL = ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))
NETS = ("test_vit", "test_efficientnet", "test_convnext", "resnet10t", "mobilenetv3_small_050")


def built(name: str, size: int = 64, num_classes: int = 7) -> TimmBackbone:
    torch.manual_seed(0)
    return build_timm(f"timm:{name}", num_classes, NetworkInput(size), {}, hub=False).eval()


@pytest.mark.parametrize("name", NETS)
def test_features_head_and_logits_are_those_of_timm(name: str) -> None:
    backbone, images = built(name), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        out, feat = backbone(images), backbone(images, only_feat=True)
        assert torch.allclose(out["logits"], backbone.model(images), atol=1e-5)
        assert torch.equal(out["feat"], feat) and feat.shape == (2, backbone.num_features)
        assert torch.equal(backbone(feat, only_fc=True), out["logits"]) and out["logits"].shape == (2, 7)


@pytest.mark.parametrize(("name", "mean"), [("test_vit", 0.5), ("resnet10t", None)])
def test_images_are_enlarged_and_normalised_as_timms_own_transform_does(name: str, mean: float | None) -> None:
    """From images normalised as CIFAR-10's, to what timm's evaluation transform gives, without its crop."""
    from PIL import Image
    from sklearn.datasets import load_sample_image

    config = timm_config(f"timm:{name}")
    assert mean is None or config.mean == (mean,) * 3
    photo = Image.fromarray(load_sample_image("flower.jpg")).crop((100, 0, 500, 400)).resize((64, 64))
    own = resolve_model_data_config(timm.create_model(name))
    expected = create_transform(**{**own, "input_size": (3, 160, 160), "crop_pct": 1.0})(photo)
    taken = NetworkInput.renormalised(160, config.interpolation, POOL, (config.mean, config.std))
    backbone = build_timm(f"timm:{name}", 10, taken, {}, hub=False)
    pixels = torch.from_numpy(np.asarray(photo) / 255).permute(2, 0, 1).float()
    normalised = (pixels - torch.tensor(POOL[0])[:, None, None]) / torch.tensor(POOL[1])[:, None, None]
    found = backbone.prepare(normalised[None])[0]
    # Pillow's bicubic kernel differs from torch's (a = -0.5 instead of -0.75), and rounds to whole grey levels.
    assert found.shape == expected.shape and (found - expected).abs().mean() < 0.02


def test_grey_normalisation_is_turned_into_that_of_three_channels() -> None:
    taken = NetworkInput.renormalised(32, "bicubic", ((0.3,), (0.2,)), ((0.5, 0.4, 0.3), (0.1, 0.2, 0.4)))
    x = built("resnet10t", 32)
    x = TimmBackbone(x.model, taken)
    pixels = torch.rand(2, 1, 32, 32).expand(-1, 3, -1, -1)
    wanted = (pixels - torch.tensor([0.5, 0.4, 0.3])[:, None, None]) / torch.tensor([0.1, 0.2, 0.4])[:, None, None]
    assert torch.allclose(x.prepare((pixels - 0.3) / 0.2), wanted, atol=1e-5)


def test_without_pretrained_weights_images_stay_as_they_are() -> None:
    images = torch.randn(2, 3, 64, 64)
    assert built("test_vit").prepare(images) is images
    assert built("test_vit", 32).model.patch_embed.img_size == (32, 32)


@pytest.mark.parametrize("name", NETS)
def test_layer_decay_groups_are_those_of_timm(name: str) -> None:
    """Learning rates by USB's function under RSMatch's wrapper, and by timm's on the network itself."""
    from semilearn.nets.utils import param_groups_layer_decay

    backbone = built(name)
    model = backbone.model
    network = RSNet(backbone, 7, None)
    groups = param_groups_layer_decay(network, 1.0, 0.05, network.no_weight_decay(), layer_decay=0.5)
    rates = {id(weight): group["lr"] for group in groups for weight in group["params"]}
    decays = {id(weight): group["weight_decay"] for group in groups for weight in group["params"]}
    theirs = timms_groups(model, 0.05, no_weight_decay_list=getattr(model, "no_weight_decay", set)(), layer_decay=0.5)
    scales = {id(weight): group["lr_scale"] for group in theirs for weight in group["params"]}
    assert {id(weight) for weight in model.parameters()} == scales.keys()
    assert {name: rates[id(w)] for name, w in model.named_parameters()} == {
        name: pytest.approx(scales[id(w)]) for name, w in model.named_parameters()
    }
    assert len(set(scales.values())) > 2 and rates[id(network.dummy_head.weight)] == 1.0
    if name == "test_vit":
        assert decays[id(model.pos_embed)] == 0 and decays[id(model.blocks[0].mlp.fc1.weight)] == 0.05


def test_networks_without_a_separate_head_and_unknown_names_are_refused() -> None:
    with pytest.raises(UserError, match="VisionTransformerDistilled of timm has no single linear head"):
        build_timm("timm:deit_tiny_distilled_patch16_224", 10, NetworkInput(32), {}, hub=False)
    with pytest.raises(UserError, match=r"unknown net 'timm:resnet19': did you mean 'resnet18'"):
        timm_config("timm:resnet19")
    with pytest.raises(UserError, match=r"the weights of test_vit that timm knows are: r160_in1k"):
        timm_config("timm:test_vit.laion")


def test_batchnorm_with_activation_has_separate_statistics_for_each_group() -> None:
    """timm's EfficientNet: a layer's output equals that of two passes, one per group, through the plain layer."""
    model = timm.create_model("test_efficientnet", num_classes=3)
    plain = timm.create_model("test_efficientnet", num_classes=3)
    plain.load_state_dict(model.state_dict())
    group = Group()
    count = use_split_batchnorm(model, group)
    assert count == sum(bool(re.match("BatchNorm", type(m).__name__)) for m in plain.modules()) > 10
    first, second = torch.randn(5, 24, 8, 8), torch.randn(3, 24, 8, 8) * 4 + 1
    layer, own = model.bn1.train(), plain.bn1.train()
    x = torch.cat([first, second])
    with group.through(x, torch.tensor([0.0] * 5 + [1.0] * 3)) as (batch, places):
        found = layer(batch)[places]
    expected = own(x[:5])
    assert torch.allclose(found[:5], expected, atol=1e-6)
    assert torch.allclose(layer.running_mean, own.running_mean)  # from the first group alone
    assert torch.allclose(found[5:], own(x[5:]), atol=1e-6)
    assert isinstance(layer, type(own)) and isinstance(layer, nn.BatchNorm2d)
