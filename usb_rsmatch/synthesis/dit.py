"""The transformer (DiT) that predicts a velocity field for latents of an autoencoder."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usb_rsmatch.synthesis.difficulty_encoder import DifficultyEncoder

CLASS_TOKENS = 2
HEAD = 64  # channels of an attention head
LARGEST_SIDE = 16  # tokens of a side; larger latents are divided into patches


class VelocityTransformer(nn.Module):
    """A DiT: latents become tokens, time, class and difficulty set the scale, shift and gate of each layer norm.

    Learned class tokens are put before the image's tokens. Latents [C, h, w] of more than 16 positions a side are
    divided into square patches. The label `num_classes` means "no class".
    Source: Peebles & Xie 2212.09748 (adaLN-Zero); the class tokens and sizes are our choice.
    """

    def __init__(
        self, latent_shape: tuple[int, int, int], num_classes: int, width: int, depth: int, difficulty: bool = False
    ) -> None:
        super().__init__()
        channels, height, side = latent_shape
        self.patch = next(size for size in range(1, side + 1) if side % size == 0 and side // size <= LARGEST_SIDE)
        positions = (height // self.patch) * (side // self.patch)
        self.width = width
        self.first = nn.Linear(channels * self.patch**2, width)
        self.position = nn.Parameter(0.02 * torch.randn(1, positions, width))
        self.tokens = nn.Embedding(num_classes + 1, CLASS_TOKENS * width)
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(num_classes + 1, width)
        self.blocks = nn.ModuleList(TransformerBlock(width) for _ in range(depth))
        self.modulate = nn.Linear(width, 2 * width)
        self.last = nn.Linear(width, channels * self.patch**2)
        for layer in (self.modulate, self.last):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.difficulty = DifficultyEncoder(num_classes, width) if difficulty else None

    def forward(self, x: Tensor, t: Tensor, labels: Tensor, difficulty: Tensor | None = None) -> Tensor:
        """Velocity [B, C, h, w] at latents `x` [B, C, h, w], times `t` [B] in [0, 1], int64 `labels` [B].

        `difficulty` float32 [B] in [0, 1], NaN for none, is for a network that is built with it.
        """
        height, width = (side // self.patch for side in x.shape[-2:])
        folded = F.pixel_unshuffle(x, self.patch)
        h = self.first(folded.flatten(2).transpose(1, 2)) + self.position
        h = torch.cat([self.tokens(labels).view(len(x), CLASS_TOKENS, self.width).to(h.dtype), h], dim=1)
        condition = self.time(_fourier(t, self.width)) + self.label(labels)
        if self.difficulty is not None and difficulty is not None:
            condition = condition + self.difficulty(labels, difficulty)
        condition = F.silu(condition)
        for block in self.blocks:
            h = block(h, condition)
        scale, shift = self.modulate(condition)[:, None].chunk(2, dim=-1)
        h = F.layer_norm(h[:, CLASS_TOKENS:], (self.width,)) * (1 + scale) + shift
        out = self.last(h).transpose(1, 2).unflatten(2, (height, width))
        return F.pixel_shuffle(out, self.patch)


class TransformerBlock(nn.Module):
    """Self-attention and a two-layer MLP, each with a layer norm and a gate that the condition sets; starts at 0."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = max(1, width // HEAD)
        self.modulate = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        """Tokens [B, N, width] and condition [B, width] to tokens of the same shape."""
        scale_1, shift_1, gate_1, scale_2, shift_2, gate_2 = self.modulate(condition)[:, None].chunk(6, dim=-1)
        width = h.shape[-1]
        x = F.layer_norm(h, (width,)) * (1 + scale_1) + shift_1
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        h = h + gate_1 * self.out(attended)
        return h + gate_2 * self.mlp(F.layer_norm(h, (width,)) * (1 + scale_2) + shift_2)


def _fourier(t: Tensor, width: int) -> Tensor:
    """Cosines and sines [B, width] of times [B], with periods from about 6 down to 0.006."""
    rates = torch.exp(torch.linspace(0, math.log(1000), width // 2, device=t.device))
    angles = t[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], dim=1)
