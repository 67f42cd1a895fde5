"""The small class-conditional network that predicts a velocity field for images of 8 to 64 pixels."""

from __future__ import annotations

import itertools
import math
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usb_rsmatch.synthesis.difficulty_encoder import DifficultyEncoder

Layer = TypeVar("Layer", bound=nn.Module)


class VelocityUNet(nn.Module):
    """A U-Net on pixel-unshuffled images; skip connections are added, which costs less than a concatenation.

    From 16 px on, blocks of 2 x 2 pixels become channels, from 48 px on blocks of 4 x 4, so that the finest grid has 8
    to 24 positions per side. Sizes that are not divisible are padded, and the result is cropped. The label
    `num_classes` means "no class". With `difficulty` a score is a further condition. The layout is our choice; the
    conditioning by adaptive normalisation is that of Dhariwal & Nichol 2105.05233 (section 3).
    """

    def __init__(
        self, image_size: tuple[int, int], channels: int, num_classes: int, width: int, difficulty: bool = False
    ) -> None:
        super().__init__()
        size = max(image_size)
        self.fold = 1 if size < 16 else 2 if size < 48 else 4
        widths = [width, 2 * width] if size < 16 * self.fold else [width, 2 * width, 2 * width]
        multiple = self.fold << (len(widths) - 1)
        self.padding = (0, -image_size[1] % multiple, 0, -image_size[0] % multiple)
        self.frequencies, embedding = width, 4 * width
        self.time = nn.Sequential(nn.Linear(2 * width, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.label = nn.Embedding(num_classes + 1, embedding)
        self.first = nn.Conv2d(channels * self.fold**2, width, 3, padding=1)
        levels = list(itertools.pairwise(widths))
        self.down = nn.ModuleList(Stage(2, fine, embedding) for fine, _ in levels)
        self.shrink = nn.ModuleList(nn.Conv2d(fine, coarse, 2, stride=2) for fine, coarse in levels)
        self.middle = Stage(3, widths[-1], embedding)
        self.grow = nn.ModuleList(nn.ConvTranspose2d(coarse, fine, 2, stride=2) for fine, coarse in levels[::-1])
        self.up = nn.ModuleList(Stage(2, fine, embedding) for fine, _ in levels[::-1])
        self.last = nn.Sequential(
            ChannelNorm(width), nn.SiLU(), _zeroed(nn.Conv2d(width, channels * self.fold**2, 3, padding=1))
        )
        # Built last, so that a network without it starts with the same random weights as before it existed.
        self.difficulty = DifficultyEncoder(num_classes, embedding) if difficulty else None

    def forward(self, x: Tensor, t: Tensor, labels: Tensor, difficulty: Tensor | None = None) -> Tensor:
        """Velocity [B, C, H, W] at images `x` [B, C, H, W], times `t` [B] in [0, 1], int64 `labels` [B].

        `difficulty` float32 [B] in [0, 1], NaN for none, is for a network that is built with it.
        """
        height, width = x.shape[-2:]
        if any(self.padding):
            x = F.pad(x, self.padding, mode="replicate")
        condition = self.time(_fourier(t, self.frequencies)) + self.label(labels)
        if self.difficulty is not None and difficulty is not None:
            condition = condition + self.difficulty(labels, difficulty)
        condition = F.silu(condition)
        h = self.first(F.pixel_unshuffle(x, self.fold).contiguous(memory_format=torch.channels_last))
        skips = []
        for stage, shrink in zip(self.down, self.shrink, strict=True):
            h = stage(h, condition)
            skips.append(h)
            h = shrink(h)
        h = self.middle(h, condition)
        for grow, stage in zip(self.grow, self.up, strict=True):
            h = stage(grow(h) + skips.pop(), condition)
        return F.pixel_shuffle(self.last(h), self.fold)[..., :height, :width]


class Stage(nn.Module):
    """Residual blocks at one resolution."""

    def __init__(self, depth: int, width: int, embedding: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ResidualBlock(width, embedding) for _ in range(depth))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Features [B, width, h, w] and condition [B, embedding] to features of the same shape."""
        for block in self.blocks:
            x = block(x, condition)
        return x


class ResidualBlock(nn.Module):
    """Norm, scale and shift by the condition, then two 3 x 3 convolutions, plus a skip connection.

    A block has one norm, over channels only: in bfloat16 on a CPU a group norm is slower than a convolution.
    """

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(width)
        self.condition = _zeroed(nn.Linear(embedding, 2 * width))
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = _zeroed(nn.Conv2d(width, width, 3, padding=1))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Features [B, width, h, w] and condition [B, embedding] to features of the same shape."""
        scale, shift = self.condition(condition)[:, :, None, None].chunk(2, dim=1)
        h = torch.addcmul(shift, self.norm(x), 1 + scale)
        return x + self.conv2(F.silu(self.conv1(h)))


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each position; it needs no copy in channels-last memory."""

    def forward(self, x: Tensor) -> Tensor:
        """Features [B, C, h, w] to features of the same shape."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _fourier(t: Tensor, frequencies: int) -> Tensor:
    """Sines and cosines [B, 2 * frequencies] of times [B], with periods from about 6 down to 0.06."""
    rates = torch.exp(torch.linspace(0, math.log(100), frequencies, device=t.device))
    angles = t[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def _zeroed(layer: Layer) -> Layer:
    """Set the layer's weights to 0, so that a block starts as the identity; returns the layer."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
