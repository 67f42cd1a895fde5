"""Tiny autoencoders of latent diffusion: reads diffusers' AutoencoderTiny folders and pairs of `.pth` files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from usb_rsmatch.errors import UserError

FACTOR = 8  # pixels of a latent's side
POOL_GROUPS = 4
CHUNK = 64  # images at once


@dataclass(frozen=True)
class Autoencoder:
    """An encoder to latents and a decoder, with `channels` of the latents and a hash of the weights.

    Images are float [N, 3, H, W] in [0, 1], sides divisible by `FACTOR`; latents are float [N, channels, H/8, W/8].
    """

    name: str
    fingerprint: str
    channels: int
    encoder: Callable[[Tensor], Tensor]
    decoder: Callable[[Tensor], Tensor]

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        """Latents of images."""
        return torch.cat([self.encoder(chunk) for chunk in images.split(CHUNK)])

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Images of latents, clipped to [0, 1]."""
        return torch.cat([self.decoder(chunk).clamp(0, 1) for chunk in latents.split(CHUNK)])


class Block(nn.Module):
    """Three convolutions of 64 channels with a skip connection; with `pooled` a normalised branch is added first."""

    def __init__(self, pooled: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(3):
            layers += [nn.Conv2d(64, 64, 3, padding=1), nn.ReLU()]
        self.conv = nn.Sequential(*layers[:-1])
        self.pool: nn.Module | None = None
        if pooled:
            wide = [nn.Conv2d(64, 256, 1, bias=False), nn.GroupNorm(POOL_GROUPS, 256), nn.ReLU()]
            self.pool = nn.Sequential(*wide, nn.Conv2d(256, 64, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """Features [B, 64, h, w] to features of the same shape."""
        if self.pool is not None:
            x = x + self.pool(x)
        return (self.conv(x) + x).relu()


class _Clamp(nn.Module):
    """Limits latents smoothly to -3..3."""

    def forward(self, x: Tensor) -> Tensor:
        return (x / 3).tanh() * 3


def build_encoder(channels: int, pooled: bool) -> nn.Sequential:
    """A network from images [B, 3, H, W] to latents [B, channels, H/8, W/8].

    Its layout is that of TAESD, github.com/madebyollin/taesd; `pooled` blocks are those of its FLUX.2 version.
    """
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, padding=1), Block(False)]
    for stage in range(3):
        layers.append(nn.Conv2d(64, 64, 3, stride=2, padding=1, bias=False))
        layers += [Block(pooled and stage == 2) for _ in range(3)]
    return nn.Sequential(*layers, nn.Conv2d(64, channels, 3, padding=1))


def build_decoder(channels: int, pooled: bool) -> nn.Sequential:
    """A network from latents [B, channels, h, w] to images [B, 3, 8 h, 8 w]; its layout is that of TAESD."""
    layers: list[nn.Module] = [_Clamp(), nn.Conv2d(channels, 64, 3, padding=1), nn.ReLU()]
    for stage in range(3):
        layers += [Block(pooled and stage == 0) for _ in range(3)]
        layers += [nn.Upsample(scale_factor=2), nn.Conv2d(64, 64, 3, padding=1, bias=False)]
    return nn.Sequential(*layers, Block(False), nn.Conv2d(64, 3, 3, padding=1))


def open_autoencoder(name: str, device: torch.device) -> Autoencoder:
    """The autoencoder in a folder: one of diffusers (`config.json`), or with one `*encoder*.pth` and `*decoder*.pth`.

    A name that is no path is loaded by diffusers from the hub. Raises UserError for a missing or unsuitable one.
    """
    folder = Path(name).expanduser()
    if folder.is_dir() and not (folder / "config.json").is_file():
        return _from_pair(folder, device)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--autoencoder {name}: is a file; give its folder, with encoder and decoder")
    return _from_diffusers(name, folder, device)


def _from_pair(folder: Path, device: torch.device) -> Autoencoder:
    digest = hashlib.sha256()
    networks = []
    channels = 0
    for part, build in (("encoder", build_encoder), ("decoder", build_decoder)):
        files = sorted(folder.glob(f"*{part}*.pth"))
        if len(files) != 1:
            raise UserError(f"--autoencoder {folder}: has {len(files)} files *{part}*.pth, it needs one")
        digest.update(files[0].read_bytes())
        try:
            weights = torch.load(files[0], map_location="cpu", weights_only=True)
            channels = len(weights["14.bias"]) if part == "encoder" else channels
            network = build(channels, any(".pool." in key for key in weights))
            network.load_state_dict(weights)
        except Exception as error:  # torch raises many kinds for damaged files and other networks
            reason = (str(error).splitlines() or [type(error).__name__])[0][:80]
            raise UserError(f"--autoencoder {files[0]}: is not a tiny {part} ({reason})") from None
        networks.append(network.float().eval().requires_grad_(False).to(device))
    return Autoencoder(folder.resolve().name, digest.hexdigest()[:16], channels, *networks)


def _from_diffusers(name: str, folder: Path, device: torch.device) -> Autoencoder:
    try:
        from diffusers import AutoencoderTiny
    except ImportError as error:
        raise UserError(
            f"--autoencoder {name}: needs diffusers ({error}): pip install 'usb-rsmatch[synthesis]'"
        ) from None
    if folder.is_dir():
        kind = _class_name(folder / "config.json")
        if kind != "AutoencoderTiny":
            raise UserError(f"--autoencoder {name}: is a {kind}, not an AutoencoderTiny")
    try:
        network = AutoencoderTiny.from_pretrained(str(folder) if folder.is_dir() else name)
    except Exception as error:  # errors of the hub, of the network, or about files
        reason = (str(error).splitlines() or [type(error).__name__])[0][:80]
        raise UserError(
            f"--autoencoder {name}: is neither a folder with an autoencoder nor available from the hub ({reason})"
        ) from None
    network = network.float().eval().requires_grad_(False)
    if 2 ** (len(network.config.encoder_block_out_channels) - 1) != FACTOR:
        raise UserError(f"--autoencoder {name}: must reduce the side by {FACTOR}")
    digest = hashlib.sha256()
    for key, tensor in sorted(network.state_dict().items()):
        digest.update(key.encode() + tensor.numpy().tobytes())
    network = network.to(device)
    called = folder.resolve().name if folder.is_dir() else name
    channels = int(network.config.latent_channels)

    def encode(images: Tensor) -> Tensor:
        return network.encode(images * 2 - 1).latents

    def decode(latents: Tensor) -> Tensor:
        return network.decode(latents).sample / 2 + 0.5

    return Autoencoder(called, digest.hexdigest()[:16], channels, encode, decode)


def _class_name(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"--autoencoder: {path} is not a configuration of diffusers") from None
