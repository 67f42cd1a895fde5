"""Tiny autoencoders from diffusers folders and from pairs of files; the two readers agree on the same weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from usb_rsmatch.autoencoder import build_decoder, build_encoder, open_autoencoder
from usb_rsmatch.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    torch.save(build_encoder(6, True).half().state_dict(), tmp_path / "my_encoder.pth")
    torch.save(build_decoder(6, True).half().state_dict(), tmp_path / "my_decoder.pth")
    return tmp_path


def test_a_pair_of_files_is_read_with_its_channels(pair: Path) -> None:
    images = torch.rand(3, 3, 32, 48)
    autoencoder = open_autoencoder(str(pair), CPU)
    latents = autoencoder.encode(images)
    assert latents.shape == (3, 6, 4, 6) and autoencoder.channels == 6
    decoded = autoencoder.decode(latents)
    assert decoded.shape == images.shape and decoded.min() >= 0 and decoded.max() <= 1
    torch.testing.assert_close(autoencoder.encode(images[1:2]), latents[1:2])  # images do not affect each other
    weights = torch.load(pair / "my_encoder.pth", weights_only=True)
    weights["0.bias"] += 1
    torch.save(weights, pair / "my_encoder.pth")
    assert open_autoencoder(str(pair), CPU).fingerprint != autoencoder.fingerprint


def test_a_diffusers_folder_gives_what_the_pair_with_its_weights_gives(tmp_path: Path) -> None:
    """diffusers' own class is the independent reference for the layout without the pooled branch."""
    diffusers = pytest.importorskip("diffusers", reason="the extra `synthesis` is not installed")
    torch.manual_seed(0)
    model = diffusers.AutoencoderTiny()
    model.save_pretrained(tmp_path / "folder")
    (tmp_path / "pair").mkdir()
    encoder, decoder = build_encoder(4, False), build_decoder(4, False)
    for network, own in ((encoder, model.encoder), (decoder, model.decoder)):
        values = list(own.state_dict().values())
        mapped = dict(zip(network.state_dict(), values, strict=True))
        torch.save(mapped, tmp_path / "pair" / f"{'encoder' if network is encoder else 'decoder'}.pth")
    images = torch.rand(2, 3, 64, 64)
    one, other = (open_autoencoder(str(tmp_path / name), CPU) for name in ("folder", "pair"))
    assert one.channels == other.channels == 4
    torch.testing.assert_close(one.encode(images), other.encode(images), atol=1e-5, rtol=1e-4)
    latents = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(one.decode(latents), other.decode(latents), atol=1e-5, rtol=1e-4)


def test_unsuitable_folders_are_refused_in_one_line(pair: Path, tmp_path: Path) -> None:
    pytest.importorskip("diffusers", reason="the extra `synthesis` is not installed")
    empty, other = tmp_path / "empty", tmp_path / "other"
    empty.mkdir()
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    cases = [
        (str(empty), "has 0 files"),
        (str(pair / "my_encoder.pth"), "is a file; give its folder"),
        (str(other), "is a AutoencoderKL, not an AutoencoderTiny"),
    ]
    for name, message in cases:
        with pytest.raises(UserError, match=message) as error:
            open_autoencoder(name, CPU)
        assert "\n" not in str(error.value)
    (pair / "my_decoder.pth").write_bytes((pair / "my_encoder.pth").read_bytes())
    with pytest.raises(UserError, match=r"my_decoder\.pth: is not a tiny decoder"):
        open_autoencoder(str(pair), CPU)
    (pair / "my_encoder.pth").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"my_encoder\.pth: is not a tiny encoder"):
        open_autoencoder(str(pair), CPU)
