"""OpenMatch (Saito, Kim, Saenko, NeurIPS 2021, arXiv 2105.14148): FixMatch on images that one-vs-all classifiers accept
as inliers.

    p      = softmax(h(f(x)))                            closed-set classifier, K-way
    o_k    = p^k(inlier | x), 1 - o_k = p^k(outlier | x)  one-vs-all classifiers on the same features
    L_cls  = CE(p(x_l), y_l)
    L_ova  = -log o_y(x_l) - min_{k != y} log(1 - o_k(x_l))                               Eq. 1
    L_em   = entropy of the one-vs-all classifiers on x_u                                 Eq. 2
    L_socr = sum_k |o_k(t_1(x_u)) - o_k(t_2(x_u))|^2 + the same of 1 - o_k                Eq. 3
    L_fm   = FixMatch on the pseudo-inliers {x_u : o_q(x_u) > 0.5, q = argmax p(x_u)}
    L      = L_cls + L_ova + lambda_em L_em + lambda_socr L_socr + L_fm

As in the authors' code, 1e-8 is added inside the logarithms of L_ova and L_em, L_em is a mean over classes, and pseudo-
labels of pseudo-inliers are taken at any confidence.
Ours: pseudo-inliers are chosen among the images of the batch by their weak view (the authors choose from the whole pool
before each epoch, and draw a batch of its own from them); t_1 is the weak view of the batch and t_2 a second one; the
labelled images come in one view.
"""

from __future__ import annotations

from typing import Any

import torch
from semilearn.algorithms.utils import SSL_Argument
from torch import Tensor, nn

from usb_rsmatch.algorithms.openset import (
    EPSILON,
    OpenSetAlgorithm,
    linear,
    one_vs_all,
    one_vs_all_loss,
    register_algorithm,
)
from usb_rsmatch.counter_rng import SECOND_VIEW


class OneVsAllHeads(nn.Module):
    """K one-vs-all classifiers, linear on the pooled features: `logits_open` [B, 2, K]."""

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.open_head = linear(num_features, 2 * num_classes, bias=False)

    def forward(self, output: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"logits_open": self.open_head(output["feat"]).unflatten(1, (2, -1))}


def entropy_loss(logits_open: Tensor) -> Tensor:
    """Entropy of the one-vs-all classifiers [B, 2, K], mean over images and classes (Eq. 2).

    `EPSILON` is added inside the logarithm, as in the authors' code.
    """
    p = logits_open.softmax(1)
    return -(p * (p + EPSILON).log()).sum(1).mean()


def soft_consistency_loss(first: Tensor, second: Tensor) -> Tensor:
    """Squared distance of the one-vs-all probabilities of two views, [B, 2, K] each, mean over images (Eq. 3)."""
    return (first.softmax(1) - second.softmax(1)).square().sum((1, 2)).mean()


class OpenMatch(OpenSetAlgorithm):
    """OpenMatch; `start_fix` is the share of training before L_fm acts (10 of the authors' 512 epochs)."""

    Heads = OneVsAllHeads

    def __init__(self, args: Any, net_builder: Any, tb_log: Any = None, logger: Any = None, **kwargs: Any) -> None:
        super().__init__(args, net_builder, tb_log, logger, **kwargs)
        self.p_cutoff, self.lambda_em, self.lambda_socr = args.p_cutoff, args.lambda_em, args.lambda_socr
        self.start_step = int(args.start_fix * args.num_train_iter)

    def train_step(
        self, x_lb: Tensor, y_lb: Tensor, idx_ulb: Tensor, x_ulb_w: Tensor, x_ulb_s: Tensor
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """One step; `idx_ulb` int64 [uB], images float32 [B, 3, H, W], `y_lb` int64 [B]."""
        with self.amp_cm():
            x_ulb_w2 = self.weak_views(idx_ulb, SECOND_VIEW, like=x_ulb_w)
            lb, ulb_w, ulb_w2, ulb_s = self.outputs(x_lb, x_ulb_w, x_ulb_w2, x_ulb_s)

            sup_loss = self.ce_loss(lb["logits"], y_lb, reduction="mean")
            ova_loss = one_vs_all_loss(lb["logits_open"], y_lb)
            em_loss = (entropy_loss(ulb_w["logits_open"]) + entropy_loss(ulb_w2["logits_open"])) / 2
            socr_loss = soft_consistency_loss(ulb_w["logits_open"], ulb_w2["logits_open"])

            with torch.no_grad():
                confidence, pseudo_label = self.compute_prob(ulb_w["logits"]).max(1)  # [uB]
                _, inlier = one_vs_all(ulb_w["logits_open"])
                is_inlier = (inlier.gather(1, pseudo_label[:, None])[:, 0] > 0.5).to(confidence.dtype)
                mask = is_inlier * (confidence >= self.p_cutoff) * float(self.it >= self.start_step)
            per_image = self.ce_loss(ulb_s["logits"], pseudo_label, reduction="none")
            fix_loss = (mask * per_image).sum() / is_inlier.sum().clamp(min=1)  # mean over the pseudo-inliers

            total_loss = sup_loss + ova_loss + self.lambda_em * em_loss + self.lambda_socr * socr_loss
            total_loss = total_loss + self.lambda_u * fix_loss

        feat = {"x_lb": lb["feat"], "x_ulb_w": ulb_w["feat"], "x_ulb_s": ulb_s["feat"]}
        return self.process_out_dict(loss=total_loss, feat=feat), self.process_log_dict(
            sup_loss=sup_loss.detach(),
            ova_loss=ova_loss.detach(),
            em_loss=em_loss.detach(),
            socr_loss=socr_loss.detach(),
            unsup_loss=fix_loss.detach(),
            total_loss=total_loss.detach(),
            inlier_ratio=is_inlier.mean(),
            util_ratio=mask.mean(),
        )

    def outlier_score(self, x: Tensor) -> Tensor:
        """Probability [B] of an outlier by the classifier of the predicted class, as in the paper."""
        output = self.model(x)
        outlier, _ = one_vs_all(output["logits_open"])
        return outlier.gather(1, output["logits"].argmax(1, keepdim=True))[:, 0]

    @staticmethod
    def get_argument() -> list[Any]:
        """OpenMatch's own arguments, with the authors' defaults for CIFAR-10."""
        return [
            SSL_Argument("--p_cutoff", float, 0.0, "confidence from which a pseudo-inlier's pseudo-label is used"),
            SSL_Argument("--lambda_em", float, 0.1, "weight of the one-vs-all classifiers' entropy"),
            SSL_Argument("--lambda_socr", float, 0.5, "weight of the soft consistency (1.0 for CIFAR-100)"),
            SSL_Argument("--start_fix", float, 10 / 512, "share of training before FixMatch on pseudo-inliers starts"),
        ]


def register() -> None:
    """Add `openmatch` to USB's registry, once."""
    register_algorithm("openmatch", OpenMatch)
