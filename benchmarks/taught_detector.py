"""The reference of `benchmarks.detection`: a small CNN on image and residual that is taught true provenance."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usb_rsmatch.counter_rng import generator
from usb_rsmatch.detection.detector import ResidualDetector, blur_residual, contrast_free_residual, in_eight_positions
from usb_rsmatch.detection.metrics import auroc

FOLDS, STEPS, BATCH, WIDTH, LEARNING_RATE = 2, 700, 64, 16, 1e-2


def image_and_residual(x: Tensor) -> Tensor:
    """Normalised images [B, 3, H, W], their residual, and their residuals free of contrast: [B, 12, H, W]."""
    return torch.cat([x, blur_residual(x), contrast_free_residual(x)], 1)


def taught_auroc(images: np.ndarray, is_synthetic: np.ndarray, seed: int, steps: int = STEPS) -> float | None:
    """AUROC on images uint8 [N, H, W, 3] of detectors that learnt from the other fold with true provenance bool [N]."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    x = (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True)
    order, scores = generator(seed, "taught folds").permutation(len(x)), np.empty(len(x))
    for fold in range(FOLDS):
        held, learnt = order[fold::FOLDS], np.setdiff1d(order, order[fold::FOLDS])
        detector = _train(x[learnt], is_synthetic[learnt], seed + fold, steps)
        with torch.no_grad():
            scores[held] = torch.cat([detector(part) for part in x[held].split(500)]).numpy()
    return auroc(scores, is_synthetic)


def _train(x: Tensor, is_synthetic: np.ndarray, seed: int, steps: int) -> nn.Module:
    torch.manual_seed(seed)
    draw = generator(seed, "taught")
    detector = ResidualDetector(image_and_residual, WIDTH, channels=12)
    optimiser = torch.optim.AdamW(detector.parameters(), LEARNING_RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=steps)
    sides = [np.flatnonzero(~is_synthetic), np.flatnonzero(is_synthetic)]
    for _ in range(steps):
        chosen = np.concatenate([draw.choice(side, BATCH // 2) for side in sides])
        logits = detector(in_eight_positions(x[chosen], draw.integers(8, size=BATCH)))
        target = torch.from_numpy(is_synthetic[chosen]).float()
        optimiser.zero_grad()
        F.binary_cross_entropy_with_logits(logits, target).backward()
        optimiser.step()
        schedule.step()
    return detector.eval()
