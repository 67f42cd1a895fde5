"""Pseudo-fakes: real images reconstructed from principal components, the first negative examples of the detector."""

from __future__ import annotations

import torch
from torch import Tensor

LOW, HIGH = 0.80, 0.95  # share of the pool's variance that a reconstruction keeps (ours)


class PrincipalComponents:
    """Reconstructs images from a random number of leading principal components of the pool (our choice).

    A low-rank model loses what generators lose too: fine detail and noise that the object does not explain. This needs
    no synthetic image and costs one small eigenvalue problem at the start of a run.
    """

    def __init__(self, images: Tensor, device: torch.device | str = "cpu") -> None:
        """`images` float [n, C, H, W] are views of the pool; a few hundred suffice. Reconstruction runs on `device`."""
        flat = images.flatten(1).double()
        self.mean = flat.mean(0)
        centred = flat - self.mean
        values, vectors = torch.linalg.eigh(centred @ centred.T)  # n x n, however large the images are
        values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
        kept = values > 1e-9 * values[0].clamp(min=1e-30)
        self.basis = centred.T @ vectors[:, kept] / values[kept].sqrt()  # [d, r], orthonormal
        explained = values[kept].cumsum(0) / values.sum()
        self.fewest = int((explained < LOW).sum()) + 1
        self.most = max(self.fewest, int((explained < HIGH).sum()) + 1)
        self.mean, self.basis = self.mean.float().to(device), self.basis.float().to(device)
        self.low, self.high = float(images.min()), float(images.max())

    def rebuild(self, images: Tensor, draws: Tensor) -> Tensor:
        """Images float [B, C, H, W] reconstructed from as many components as `draws` float [B] in [0, 1) select."""
        count = self.fewest + (draws * (self.most - self.fewest + 1)).long()
        precision = torch.promote_types(images.dtype, torch.float32)
        mean, basis = self.mean.to(precision), self.basis.to(precision)
        weights = (images.flatten(1).to(precision) - mean) @ basis
        weights = weights * (torch.arange(basis.shape[1], device=images.device) < count[:, None])
        return (weights @ basis.T + mean).view_as(images).clamp(self.low, self.high)
