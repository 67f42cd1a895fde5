"""Variants of RSMatch that were tried and not adopted; `plugins: [usb_rsmatch.algorithms.rsmatch_variants]` adds them.

Each one changes RSMatch in one point. Notation as in `rsmatch`: m is the base rule's mask, s = 1 where an image was
identified as synthetic, q the main head's pseudo-label, h and g are the main and the dummy head, p_g =
softmax(g(f(x_w))). All are ours; `config/method/variants.yaml` compares them.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from semilearn.core.utils import ALGORITHMS
from torch import Tensor

from usb_rsmatch.algorithms.rsmatch import RSMatch
from usb_rsmatch.detection.detector import widened

LOWER_CUTOFF = 0.8
PRETRAINING = 0.3  # share of training
OWN_FROM = 0.8  # threshold of the dummy head's confidence, which grows more slowly than the main head's


class OtherMask(RSMatch):
    """RSMatch with `masked` in place of m, for both heads."""

    @abstractmethod
    def masked(self, mask: Tensor, confidence: Tensor, synthetic: Tensor) -> Tensor:
        """The new m float [uB] from the base rule's m, the pseudo-labels' confidence max p, and s, all float [uB]."""

    def call_hook(self, fn_name: str, hook_name: str | None = None, *args: Any, **kwargs: Any) -> Any:
        result = super().call_hook(fn_name, hook_name, *args, **kwargs)
        if hook_name == "MaskingHook" and fn_name == "masking":
            p = kwargs["logits_x_ulb"].detach()  # probabilities of most base rules, logits of FreeMatch and Dash
            p = p.softmax(dim=1) if kwargs.get("softmax_x_ulb", True) else p
            assert self.mask is not None
            self.mask = self.masked(self.mask, p.max(dim=1).values, self.synthetic.to(self.mask.dtype))
            return self.for_main(self.mask)
        return result


class LowerCutoff(OtherMask):
    """m = max(m, s [max p >= 0.8]): synthetic images have a lower threshold."""

    def masked(self, mask: Tensor, confidence: Tensor, synthetic: Tensor) -> Tensor:
        return torch.maximum(mask, synthetic * (confidence >= LOWER_CUTOFF))


class HalfWeight(OtherMask):
    """m = m (1 - s / 2): synthetic images have half the weight."""

    def masked(self, mask: Tensor, confidence: Tensor, synthetic: Tensor) -> Tensor:
        return mask * (1 - 0.5 * synthetic)


class Pretraining(OtherMask):
    """m = m s at first: only synthetic images of the pool are used for 30 % of training, then all."""

    def masked(self, mask: Tensor, confidence: Tensor, synthetic: Tensor) -> Tensor:
        return mask * synthetic if self.it < PRETRAINING * self.args.num_train_iter else mask


class FurtherLoss(RSMatch):
    """RSMatch with `further_loss` added to L."""

    @abstractmethod
    def further_loss(self, feat: dict[str, Tensor], y_lb: Tensor) -> Tensor:
        """The loss, from the backbone's features [B, F] of the step's images and the labels int64 [B]."""

    def train_step(
        self,
        idx_ulb: Tensor,
        x_lb: Tensor,
        y_lb: Tensor,
        x_ulb_w: Tensor,
        x_ulb_s: Tensor,
        idx_lb: Tensor | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        out_dict, log_dict = super().train_step(idx_ulb, x_lb, y_lb, x_ulb_w, x_ulb_s, idx_lb)
        feat = {name: widened(value) for name, value in out_dict["feat"].items()}  # of half precision with `amp`
        out_dict["loss"] = out_dict["loss"] + self.further_loss(feat, y_lb)
        log_dict["train/total_loss"] = out_dict["loss"].detach()
        return out_dict, log_dict


class DummyOnLabeled(FurtherLoss):
    """L + CE(g(f(x_l)), y): the dummy head learns from labelled images too."""

    def further_loss(self, feat: dict[str, Tensor], y_lb: Tensor) -> Tensor:
        return F.cross_entropy(self.network.dummy_head(feat["x_lb"]), y_lb)


class OwnPseudoLabels(DummyOnLabeled):
    """L + mean(s [max p_g >= 0.8] CE(g(f(x_s)), argmax p_g)), instead of L_syn (with `rs_synthetic_to: main`)."""

    def further_loss(self, feat: dict[str, Tensor], y_lb: Tensor) -> Tensor:
        with torch.no_grad():
            confidence, own = self.network.dummy_head(feat["x_ulb_w"]).softmax(dim=1).max(dim=1)
        loss = F.cross_entropy(self.network.dummy_head(feat["x_ulb_s"]), own, reduction="none")
        return super().further_loss(feat, y_lb) + (self.synthetic * (confidence >= OWN_FROM) * loss).mean()


class ConsistentHeads(FurtherLoss):
    """L + mean(s KL(h(f(x_s)) || g(f(x_s)))): the dummy head follows the main head, which gets no gradient from it."""

    def further_loss(self, feat: dict[str, Tensor], y_lb: Tensor) -> Tensor:
        with torch.no_grad():
            followed = self.network(feat["x_ulb_s"], only_fc=True).softmax(dim=1)
        log_q = self.network.dummy_head(feat["x_ulb_s"]).log_softmax(dim=1)
        return (self.synthetic * F.kl_div(log_q, followed, reduction="none").sum(dim=1)).mean()


WAYS: dict[str, type[RSMatch]] = {
    "rsmatch_lower_cutoff": LowerCutoff,
    "rsmatch_half_weight": HalfWeight,
    "rsmatch_pretraining": Pretraining,
    "rsmatch_dummy_on_labeled": DummyOnLabeled,
    "rsmatch_own_pseudo_labels": OwnPseudoLabels,
    "rsmatch_consistent_heads": ConsistentHeads,
}
for _name, _way in WAYS.items():
    ALGORITHMS.register(_name)(_way)
