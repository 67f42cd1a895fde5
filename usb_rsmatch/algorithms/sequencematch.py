"""SequenceMatch (Nguyen, WACV 2024, arXiv 2310.15787), for USB's wheel, which does not have it.

A medium view x_m is between the weak x_w and the strong x_s; each view learns from the weaker ones.

    L_u = mean(m (CE(p(x_s), y^) + KL(s(x_w) || p(x_m)) + KL(s(x_m) || p(x_s)) + KL(s(x_w) || p(x_s))))
    m   = [max p(x_w) >= FlexMatch's threshold of the class],   s(x) = softmax(p(x) / T)
    L   = CE(p(x_l), y_l) + lambda_u L_u

s is a softmax of probabilities, as in USB's HEAD, to which USB's configurations belong.
"""

from __future__ import annotations

from typing import Any

from semilearn.algorithms.flexmatch.flexmatch import FlexMatch
from semilearn.core.utils import ALGORITHMS
from torch import Tensor

from usb_rsmatch.algorithms.joint_forward import outputs
from usb_rsmatch.algorithms.refixmatch import masked_kl


class SequenceMatch(FlexMatch):
    """FlexMatch's thresholds and pseudo-labels, with a third view."""

    def train_step(
        self, x_lb: Tensor, y_lb: Tensor, idx_ulb: Tensor, x_ulb_w: Tensor, x_ulb_m: Tensor, x_ulb_s: Tensor
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """One step; images float32 [B, 3, H, W], `y_lb` int64 [B], `idx_ulb` int64 [uB] into the pool."""
        with self.amp_cm():
            lb, ulb_w, ulb_m, ulb_s = outputs(self, x_lb, x_ulb_w, x_ulb_m, x_ulb_s)
            sup_loss = self.ce_loss(lb["logits"], y_lb, reduction="mean")

            weak, medium = (self.compute_prob(view["logits"].detach()) for view in (ulb_w, ulb_m))  # [uB, K]
            if self.registered_hook("DistAlignHook"):
                weak = self.call_hook("dist_align", "DistAlignHook", probs_x_ulb=weak)
                medium = self.call_hook("dist_align", "DistAlignHook", probs_x_ulb=medium)
            mask = self.call_hook("masking", "MaskingHook", logits_x_ulb=weak, softmax_x_ulb=False, idx_ulb=idx_ulb)
            pseudo_label = self.call_hook(
                "gen_ulb_targets",
                "PseudoLabelingHook",
                logits=weak,
                use_hard_label=self.use_hard_label,
                T=self.T,
                softmax=False,
            )
            from_weak, from_medium = (weak / self.T).softmax(1), (medium / self.T).softmax(1)
            unsup_loss = (
                self.consistency_loss(ulb_s["logits"], pseudo_label, "ce", mask=mask)
                + masked_kl(from_weak, ulb_m["logits"], mask)
                + masked_kl(from_medium, ulb_s["logits"], mask)
                + masked_kl(from_weak, ulb_s["logits"], mask)
            )
            total_loss = sup_loss + self.lambda_u * unsup_loss

        feat = {"x_lb": lb["feat"], "x_ulb_w": ulb_w["feat"], "x_ulb_s": ulb_s["feat"]}
        return self.process_out_dict(loss=total_loss, feat=feat), self.process_log_dict(
            sup_loss=sup_loss.detach(),
            unsup_loss=unsup_loss.detach(),
            total_loss=total_loss.detach(),
            util_ratio=mask.float().mean(),
        )


def register() -> None:
    """Add `sequencematch` to USB's registry if USB does not have it."""
    if "sequencematch" not in ALGORITHMS:
        ALGORITHMS.register("sequencematch")(SequenceMatch)
