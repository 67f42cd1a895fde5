"""ReFixMatch (Nguyen & Yang, 2023, arXiv 2308.07509), for USB's wheel, which does not have it.

    L_s  = CE(p(x_l), y_l)
    L_u  = mean([max p(x_w) >= tau] CE(p(x_s), y^))         y^: the weak view's class, or soft with temperature T
    L_re = mean([max p(x_w) < tau] KL(softmax(p(x_w) / 0.5) || softmax(z(x_s) / 0.5)))      z: the logits
    L    = L_s + lambda_u (L_u + L_re)

L_re takes the softmax of probabilities, with the temperature of USB's HEAD, to which USB's configurations belong.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from semilearn.algorithms.fixmatch.fixmatch import FixMatch
from semilearn.core.utils import ALGORITHMS
from torch import Tensor

from usb_rsmatch.algorithms.joint_forward import outputs

TEMPERATURE = 0.5  # of both sides of L_re (USB's HEAD)


def masked_kl(target: Tensor, logits: Tensor, mask: Tensor) -> Tensor:
    """Mean over images [B] of mask KL(target || softmax(logits)), both [B, K]."""
    return (F.kl_div(F.log_softmax(logits, -1), target, reduction="none").sum(1) * mask).mean()


class ReFixMatch(FixMatch):
    """FixMatch, plus the divergence of the strong from the weak view on images below FixMatch's threshold."""

    def train_step(
        self, x_lb: Tensor, y_lb: Tensor, x_ulb_w: Tensor, x_ulb_s: Tensor
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """One step; images float32 [B, 3, H, W], `y_lb` int64 [B]."""
        with self.amp_cm():
            lb, ulb_w, ulb_s = outputs(self, x_lb, x_ulb_w, x_ulb_s)
            sup_loss = self.ce_loss(lb["logits"], y_lb, reduction="mean")

            p = self.compute_prob(ulb_w["logits"].detach())  # [uB, K]
            if self.registered_hook("DistAlignHook"):
                p = self.call_hook("dist_align", "DistAlignHook", probs_x_ulb=p)
            mask = self.call_hook("masking", "MaskingHook", logits_x_ulb=p, softmax_x_ulb=False)
            pseudo_label = self.call_hook(
                "gen_ulb_targets",
                "PseudoLabelingHook",
                logits=p,
                use_hard_label=self.use_hard_label,
                T=self.T,
                softmax=False,
            )
            unsup_loss = self.consistency_loss(ulb_s["logits"], pseudo_label, "ce", mask=mask)
            refix_loss = masked_kl((p / TEMPERATURE).softmax(1), ulb_s["logits"] / TEMPERATURE, 1.0 - mask)
            total_loss = sup_loss + self.lambda_u * (unsup_loss + refix_loss)

        feat = {"x_lb": lb["feat"], "x_ulb_w": ulb_w["feat"], "x_ulb_s": ulb_s["feat"]}
        return self.process_out_dict(loss=total_loss, feat=feat), self.process_log_dict(
            sup_loss=sup_loss.detach(),
            unsup_loss=unsup_loss.detach(),
            refix_loss=refix_loss.detach(),
            total_loss=total_loss.detach(),
            util_ratio=mask.float().mean(),
        )


def register() -> None:
    """Add `refixmatch` to USB's registry if USB does not have it."""
    if "refixmatch" not in ALGORITHMS:
        ALGORITHMS.register("refixmatch")(ReFixMatch)
