"""The difficulty encoder: turns a class and a difficulty score into a condition of a generator's network."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

FREQUENCIES = 4
CLASS_WIDTH = 64


class DifficultyEncoder(nn.Module):
    """An MLP on the class and the score, whose output is added to the other conditions.

    It starts at 0, so that training begins as without it, and it is 0 for images without a score.
    Source: an MLP on class label and score, arXiv 2411.18109; its layout is our choice.
    """

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.label = nn.Embedding(num_classes + 1, CLASS_WIDTH)  # the last one means "no class"
        last = nn.Linear(width, width)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.mlp = nn.Sequential(nn.Linear(CLASS_WIDTH + 1 + 2 * FREQUENCIES, width), nn.SiLU(), last)

    def forward(self, labels: Tensor, difficulty: Tensor) -> Tensor:
        """Conditions [B, width] of int64 `labels` [B] and scores float32 [B] in [0, 1], NaN for none."""
        known = ~difficulty.isnan()
        score = difficulty.nan_to_num(0.0)[:, None]
        rates = math.pi * torch.arange(1, FREQUENCIES + 1, device=score.device)
        features = torch.cat([score, (score * rates).sin(), (score * rates).cos()], dim=1)
        return self.mlp(torch.cat([self.label(labels), features], dim=1)) * known[:, None]
