"""UASD (Chen, Zhu, Li, Gong, AAAI 2020): self-distillation from averaged predictions, filtered by their uncertainty.

    q(x)   = mean of all predictions p(x) so far               soft target, preserves uncertainty
    f(x)   = [max q(x) >= tau],  tau = mean of max q over validation images        filters out-of-distribution images
    L      = CE(p(x_l), y_l) + w(t) CE(p(x_u), q(x_u)) over images with f = 1
    w(t)   = exp(-5 (1 - t / T)^2) after a first part with w = 0

As in the authors' code, every visit of an image counts in its average, and w is 0 for a fifth of training and reaches 1
at two fifths. The paper's equation numbers are not known to us. Ours: without a validation set (`validation_count: 0`)
tau is computed from the labelled images; with one, some of its images are visited at each step, a tenth of the labelled
batch. The authors' unlabelled loss covers the labelled images too, ours only the pool's.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from semilearn.algorithms.utils import SSL_Argument
from semilearn.core.algorithmbase import AlgorithmBase
from semilearn.core.hooks import Hook
from torch import Tensor

from usb_rsmatch.algorithms.openset import refuse_several_processes, register_algorithm


class AveragedPredictions(Hook):
    """Sums of all predictions of each image: `sums` float32 [N, K]; a row of zeros was never visited."""

    def __init__(self, size: int, num_classes: int) -> None:
        self.sums = torch.zeros(size, num_classes)

    def add(self, algorithm: Any, indices: Tensor, probs: Tensor) -> None:
        """Add a prediction [B, K] for each of the images int64 [B]; an image may occur twice."""
        self.sums = self.sums.to(probs.device)
        self.sums.index_add_(0, indices.to(probs.device, non_blocking=True), probs.detach().float())

    def target(self, algorithm: Any, indices: Tensor) -> Tensor:
        """q float32 [B, K]; 0 for an image that was never visited, which is below every threshold."""
        self.sums = self.sums.to(indices.device)
        sums = self.sums[indices]
        return sums / sums.sum(1, keepdim=True).clamp(min=1.0)

    def mean_confidence(self, algorithm: Any) -> Tensor:
        """Mean of max q over the visited images, float32; 1 before there are any."""
        total = self.sums.sum(1)
        visited = total > 0
        confidence = torch.where(visited, self.sums.amax(1) / total, 0.0)
        return torch.where(visited.any(), confidence.sum() / visited.sum(), 1.0)


def ramp_up(progress: float, start: float, end: float) -> float:
    """w(t): 0 before `start`, exp(-5 (1 - t / end)^2) up to `end`, then 1; all in shares of training."""
    if progress >= end:
        return 1.0
    return 0.0 if progress < start else math.exp(-5.0 * (1.0 - progress / end) ** 2)


class UASD(AlgorithmBase):
    """UASD; its averages, of the pool and of the reference images for tau, are in two hooks."""

    def __init__(self, args: Any, net_builder: Any, tb_log: Any = None, logger: Any = None, **kwargs: Any) -> None:
        refuse_several_processes(args, "uasd")
        super().__init__(args, net_builder, tb_log, logger, **kwargs)
        self.ramp_start, self.ramp_end = args.uasd_start, args.uasd_ramp

    def set_hooks(self) -> None:
        from usb_rsmatch.algorithms.outlier_score import (
            OutlierHook,  # late: semilearn may be importing this module
        )

        self.validation = self.dataset_dict.get("validation")
        reference = self.dataset_dict["train_lb"] if self.validation is None else self.validation
        for name, dataset in (("Pool", self.dataset_dict["train_ulb"]), ("Reference", reference)):
            self.register_hook(AveragedPredictions(len(dataset), self.num_classes), f"{name}Hook", "HIGH")
        super().set_hooks()
        self.register_hook(OutlierHook(), "OutlierHook", "HIGH")  # after USB's own: it uses this step's EMA weights

    def visit_reference(self, idx_lb: Tensor, logits_lb: Tensor) -> None:
        """Add the predictions of this step's reference images: the labelled batch, or some of the validation set."""
        if self.validation is None:
            self.call_hook("add", "ReferenceHook", indices=idx_lb, probs=self.compute_prob(logits_lb))
            return
        count = max(1, len(idx_lb) // 10)
        index = np.arange(self.it * count, (self.it + 1) * count) % len(self.validation)
        with torch.no_grad():
            self.bn_controller.freeze_bn(self.model)
            logits = self.model(self.validation.plain_views(index).to(logits_lb.device))["logits"]
            self.bn_controller.unfreeze_bn(self.model)
        self.call_hook("add", "ReferenceHook", indices=torch.from_numpy(index), probs=self.compute_prob(logits))

    def train_step(
        self, idx_lb: Tensor, x_lb: Tensor, y_lb: Tensor, idx_ulb: Tensor, x_ulb_w: Tensor
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """One step; `idx_*` int64 [B], images float32 [B, 3, H, W], `y_lb` int64 [B]."""
        with self.amp_cm():
            if self.use_cat:
                output = self.model(torch.cat([x_lb, x_ulb_w]))
                logits_lb, logits_ulb = output["logits"].split([len(x_lb), len(x_ulb_w)])
                feat_lb, feat_ulb = output["feat"].split([len(x_lb), len(x_ulb_w)])
            else:
                output_lb, output_ulb = self.model(x_lb), self.model(x_ulb_w)
                logits_lb, logits_ulb = output_lb["logits"], output_ulb["logits"]
                feat_lb, feat_ulb = output_lb["feat"], output_ulb["feat"]

            sup_loss = self.ce_loss(logits_lb, y_lb, reduction="mean")

            q = self.call_hook("target", "PoolHook", indices=idx_ulb).to(logits_ulb.dtype)  # [uB, K]
            tau = self.call_hook("mean_confidence", "ReferenceHook")
            mask = (q.amax(1) >= tau).to(logits_ulb.dtype)
            per_image = self.ce_loss(logits_ulb, q, reduction="none")
            unsup_loss = (mask * per_image).sum() / mask.sum().clamp(min=1)  # mean over the images that pass the filter

            weight = ramp_up(self.it / self.num_train_iter, self.ramp_start, self.ramp_end)
            total_loss = sup_loss + self.lambda_u * weight * unsup_loss

        self.call_hook("add", "PoolHook", indices=idx_ulb, probs=self.compute_prob(logits_ulb))
        self.visit_reference(idx_lb, logits_lb)
        feat = {"x_lb": feat_lb, "x_ulb_w": feat_ulb}
        return self.process_out_dict(loss=total_loss, feat=feat), self.process_log_dict(
            sup_loss=sup_loss.detach(),
            unsup_loss=unsup_loss.detach(),
            total_loss=total_loss.detach(),
            threshold=tau,
            util_ratio=mask.mean(),
        )

    def outlier_score(self, x: Tensor) -> Tensor:
        """1 - max p(x) [B]: the filter's uncertainty, for images that need no history."""
        return 1.0 - self.compute_prob(self.model(x)["logits"]).amax(1)

    @staticmethod
    def get_argument() -> list[Any]:
        """UASD's own arguments; 100,000 and 200,000 of the authors' 500,000 steps as shares of training."""
        return [
            SSL_Argument("--uasd_start", float, 0.2, "share of training before the distillation starts"),
            SSL_Argument("--uasd_ramp", float, 0.4, "share of training at which its weight reaches 1"),
        ]


def register() -> None:
    """Add `uasd` to USB's registry, once."""
    register_algorithm("uasd", UASD)
