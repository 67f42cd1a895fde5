"""The nnPU loss: positive-unlabelled learning in which real images are the known class."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from usb_rsmatch.distributed import all_gather_batch


def nnpu_loss(
    logits_real: Tensor,
    logits_pool: Tensor,
    prior_real: float | Tensor,
    beta: float = 0.0,
    gamma: float = 1.0,
) -> Tensor:
    """Non-negative risk from logits (high = synthetic) of labelled real images [n] and of the pool [m].

        R = pi E_real[l(real)] + max(0, E_pool[l(synthetic)] - pi E_real[l(synthetic)])

    with l the logistic loss and pi = `prior_real`. If the second part is below -`beta`, the detector has overfitted:
    the value is then R's first part minus `beta`, but the gradient is that of -`gamma` times the second part alone,
    which reverses the overfitting. Source: nnPU, Kiryo et al. 2017 (arXiv 1703.00593, eq. 6 and
    algorithm 1); its positives are our real images. With several processes the mean of their values, and of their
    gradients, is that of the whole batch: whether the detector has overfitted is decided by the whole batch's part.
    """
    risk_real = prior_real * F.softplus(logits_real).mean()
    risk_synthetic = F.softplus(-logits_pool).mean() - prior_real * F.softplus(-logits_real).mean()
    part = all_gather_batch(risk_synthetic.detach()[None]).mean()  # the batches of all processes have one size
    undo = -gamma * risk_synthetic
    overfitted = undo + (risk_real - beta - undo).detach()
    return torch.where(part < -beta, overfitted, risk_real + risk_synthetic)
