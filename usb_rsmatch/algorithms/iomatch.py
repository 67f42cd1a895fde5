"""IOMatch (Li, Qi, Shi, Gao, ICCV 2023, arXiv 2308.13168): inliers and outliers are used jointly, as K + 1 classes.

    p     = softmax(h(f(x)))                            closed-set classifier, K-way
    o_k   = p^k(inlier | g(f(x)))                       multi-binary (one-vs-all) classifiers on a projection g
    p~    = DA(p(x_w))                                  distribution alignment
    q~_k  = p~_k o_k  for k <= K,   q~_{K+1} = sum_k p~_k (1 - o_k)          unified open-set target
    S     = sum_k p~_k o_k                              inlier score
    L_s   = CE(p(x_l), y_l)
    L_mb  = -log o_y(x_l) - min_{k != y} log(1 - o_k(x_l))
    L_ui  = mean([max p~ >= tau_p] [S > 0.5] CE(p(x_s), p~))
    L_op  = mean([max q~ >= tau_q] CE(psi(x_s), q~))    open-set classifier psi, (K + 1)-way on g
    L     = L_s + lambda_mb L_mb + lambda_u L_ui + lambda_op L_op

As in the authors' code, 1e-8 is added inside the logarithms of L_mb, targets are soft and L_op starts after the first
of 256 epochs. Not implemented: the optional rotation loss, which is off in all of their CIFAR settings.
"""

from __future__ import annotations

from typing import Any

import torch
from semilearn.algorithms.hooks import DistAlignQueueHook
from semilearn.algorithms.utils import SSL_Argument, concat_all_gather, str2bool
from torch import Tensor, nn

from usb_rsmatch.algorithms.openset import OpenSetAlgorithm, linear, one_vs_all, one_vs_all_loss, register_algorithm

PROJECTION = 128  # dimensions of g (authors)


class IOMatchHeads(nn.Module):
    """Projection g, multi-binary classifiers `logits_mb` [B, 2, K] and open-set classifier `logits_open` [B, K + 1]."""

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.projection = nn.Sequential(
            nn.Linear(num_features, num_features), nn.ReLU(), nn.Linear(num_features, PROJECTION)
        )
        self.binary_head = linear(PROJECTION, 2 * num_classes, bias=False)
        self.open_head = linear(PROJECTION, num_classes + 1, bias=True)

    def forward(self, output: dict[str, Tensor]) -> dict[str, Tensor]:
        projected = self.projection(output["feat"])
        return {
            "logits_mb": self.binary_head(projected).unflatten(1, (2, -1)),
            "logits_open": self.open_head(projected),
        }


def open_set_target(p: Tensor, inlier: Tensor) -> Tensor:
    """q~ [B, K + 1] from the closed-set target [B, K] and the probabilities o [B, K] of an inlier."""
    return torch.cat([p * inlier, (p * (1 - inlier)).sum(1, keepdim=True)], 1)


class DistAlignHook(DistAlignQueueHook):
    """USB's alignment with uniform classes, bit for bit, without USB's wait for a GPU in each step."""

    def update_p(self, algorithm: Any, probs_x_ulb: Tensor, probs_x_lb: Tensor | None = None) -> None:
        """Replace the oldest mean prediction by that of a batch [B, K]."""
        kept, device = ("p_target", "p_model", "p_model_ptr"), probs_x_ulb.device
        self.p_target, self.p_model, self.p_model_ptr = (getattr(self, name).to(device) for name in kept)
        if algorithm.distributed and algorithm.world_size > 1:
            probs_x_ulb = concat_all_gather(probs_x_ulb)
        self.p_model.index_copy_(0, self.p_model_ptr, probs_x_ulb.detach().mean(0, keepdim=True))
        self.p_model_ptr = (self.p_model_ptr + 1) % self.queue_length


class IOMatch(OpenSetAlgorithm):
    """IOMatch; `op_warmup` is the share of training before L_op acts (one of the authors' 256 epochs)."""

    Heads = IOMatchHeads

    def __init__(self, args: Any, net_builder: Any, tb_log: Any = None, logger: Any = None, **kwargs: Any) -> None:
        super().__init__(args, net_builder, tb_log, logger, **kwargs)
        self.p_cutoff, self.q_cutoff, self.align = args.p_cutoff, args.q_cutoff, args.dist_align
        self.lambda_mb, self.lambda_op = args.mb_loss_ratio, args.op_loss_ratio
        self.start_step = int(args.op_warmup * args.num_train_iter)

    def set_hooks(self) -> None:
        hook = DistAlignHook(self.num_classes, queue_length=self.args.da_len, p_target_type="uniform")
        self.register_hook(hook, "DistAlignHook")
        super().set_hooks()

    def train_step(
        self, x_lb: Tensor, y_lb: Tensor, x_ulb_w: Tensor, x_ulb_s: Tensor
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """One step; images float32 [B, 3, H, W], `y_lb` int64 [B]."""
        with self.amp_cm():
            lb, ulb_w, ulb_s = self.outputs(x_lb, x_ulb_w, x_ulb_s)

            sup_loss = self.ce_loss(lb["logits"], y_lb, reduction="mean")
            mb_loss = one_vs_all_loss(lb["logits_mb"], y_lb)

            with torch.no_grad():
                p = self.compute_prob(ulb_w["logits"])  # [uB, K]
                if self.align:
                    p = self.call_hook("dist_align", "DistAlignHook", probs_x_ulb=p)
                _, inlier = one_vs_all(ulb_w["logits_mb"])
                q = open_set_target(p, inlier)  # [uB, K + 1]
                is_inlier = (p * inlier).sum(1) > 0.5
                mask_p = ((p.amax(1) >= self.p_cutoff) & is_inlier).to(p.dtype)
                mask_q = (q.amax(1) >= self.q_cutoff).to(p.dtype) * float(self.it >= self.start_step)
            ui_loss = self.consistency_loss(ulb_s["logits"], p, "ce", mask=mask_p)
            op_loss = self.consistency_loss(ulb_s["logits_open"], q, "ce", mask=mask_q)

            total_loss = sup_loss + self.lambda_mb * mb_loss + self.lambda_u * ui_loss + self.lambda_op * op_loss

        feat = {"x_lb": lb["feat"], "x_ulb_w": ulb_w["feat"], "x_ulb_s": ulb_s["feat"]}
        return self.process_out_dict(loss=total_loss, feat=feat), self.process_log_dict(
            sup_loss=sup_loss.detach(),
            mb_loss=mb_loss.detach(),
            unsup_loss=ui_loss.detach(),
            op_loss=op_loss.detach(),
            total_loss=total_loss.detach(),
            inlier_ratio=is_inlier.float().mean(),
            util_ratio=mask_p.mean(),
        )

    def outlier_score(self, x: Tensor) -> Tensor:
        """Probability [B] of the (K + 1)th class by the open-set classifier, which the paper uses at test time."""
        return self.model(x)["logits_open"].softmax(1)[:, -1]

    @staticmethod
    def get_argument() -> list[Any]:
        """IOMatch's own arguments, with the authors' defaults."""
        return [
            SSL_Argument("--p_cutoff", float, 0.95, "confidence of the closed-set target (tau_p)"),
            SSL_Argument("--q_cutoff", float, 0.5, "confidence of the open-set target (tau_q)"),
            SSL_Argument("--dist_align", str2bool, True, "align the closed-set targets with uniform classes"),
            SSL_Argument("--da_len", int, 128, "steps over which the alignment averages"),
            SSL_Argument("--mb_loss_ratio", float, 1.0, "weight of the multi-binary loss"),
            SSL_Argument("--op_loss_ratio", float, 1.0, "weight of the open-set loss"),
            SSL_Argument("--op_warmup", float, 1 / 256, "share of training before the open-set loss starts"),
        ]


def register() -> None:
    """Add `iomatch` to USB's registry, once."""
    register_algorithm("iomatch", IOMatch)
