"""Positive-unlabelled learning with real as the known class: share of synthetic images, and nnPU."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def best_bin_estimate(
    real_scores: Tensor, pool_scores: Tensor, delta: float = 0.1, gamma: float = 0.01
) -> float:
    """Share of synthetic images in the pool, from scores (high = synthetic) of known real and of pool images.

    `real_scores` float [n] of real images that the detector was not fitted to, or the share comes out too
    high; `pool_scores` float [m]. For any threshold z real images are at most q_pool(z) / q_real(z) of
    the pool, q being the share of scores up to z; z is taken where that bound and its margin of error, at
    confidence 1 - `delta`, are least. Source: BBE, Garg et al. 2021 (arXiv 2111.00980, algorithm 1),
    `delta` and `gamma` as there; its positives are our real images. Raises ValueError for no scores.
    """
    n, m = len(real_scores), len(pool_scores)
    if not n or not m:
        raise ValueError("an estimate needs scores of real images and of the pool")
    real, pool = real_scores.double().sort().values, pool_scores.double().sort().values
    thresholds = torch.unique(real)  # from one real score up to the next only q_pool grows
    q_real = torch.searchsorted(real, thresholds, right=True).double() / n
    q_pool = torch.searchsorted(pool, thresholds, right=True).double() / m
    margin = math.sqrt(math.log(4 / delta) / (2 * n)) + math.sqrt(math.log(4 / delta) / (2 * m))
    best = torch.argmin((q_pool + (1 + gamma) * margin) / q_real)
    return 1.0 - min(1.0, float(q_pool[best] / q_real[best]))


def nnpu_loss(
    logits_real: Tensor,
    logits_pool: Tensor,
    prior_real: float | Tensor,
    beta: float = 0.0,
    gamma: float = 1.0,
) -> Tensor:
    """Non-negative risk from logits (high = synthetic) of labelled real images [n] and of the pool [m].

        R = pi E_real[l(real)] + max(0, E_pool[l(synthetic)] - pi E_real[l(synthetic)])

    with l the logistic loss and pi = `prior_real`. Where the second part falls under -`beta` the detector
    has overfitted: the value is R's first part less `beta`, but the gradient is that of -`gamma` times
    the second part alone, which undoes it. Source: nnPU, Kiryo et al. 2017 (arXiv 1703.00593, eq. 6 and
    algorithm 1); its positives are our real images.
    """
    risk_real = prior_real * F.softplus(logits_real).mean()
    risk_synthetic = F.softplus(-logits_pool).mean() - prior_real * F.softplus(-logits_real).mean()
    undo = -gamma * risk_synthetic
    overfitted = undo + (risk_real - beta - undo).detach()
    return torch.where(risk_synthetic < -beta, overfitted, risk_real + risk_synthetic)
