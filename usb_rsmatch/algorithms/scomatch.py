"""SCOMatch (Wang et al., ECCV 2024): outliers are class K + 1, learnt from a queue of the least likely inliers.

    r        = softmax over K + 1 classes, p = softmax over the first K of the same logits
    L_s      = CE(r(x_l), y_l)
    L_s^o    = mean([score < tau] CE(r(queued image), K + 1))              once the queue holds a batch
    L_u^o    = mean(m CE(r(x_s), argmax r(x_w))),  m = [max r >= tau]      where argmax r is a class
                                                   m = [max r >= tau_o]    where it is K + 1
    L_u^c    = mean([max r >= tau] [argmax r <= K] CE(p(x_s), argmax p(x_w)))
    L        = L_s + L_s^o + L_u^c + L_u^o
    tau_o    = tau * (confident outliers / confident inliers), clipped to [0.75, 0.95], over half a pass of the pool

At each step the image of the batch with the smallest max_{k <= K} r_k enters the queue of length max(8K, 256) and
replaces the oldest. All this as in the authors' code (CIFAR-10 branch); the paper's equation numbers are not known to
us. L_u^c is masked by the largest of all K + 1 probabilities r, not of the K probabilities p. Ours: one unlabelled
batch serves both losses (theirs draws two from the same pool, and takes max r from the other one); the backbone's own
classifier computes the first K logits, one more linear unit the last; the queue holds pool indices, and sampled images
get new views.
"""

from __future__ import annotations

from typing import Any

import torch
from semilearn.algorithms.utils import SSL_Argument
from semilearn.core.hooks import Hook
from torch import Tensor, nn

from usb_rsmatch.algorithms.openset import OpenSetAlgorithm, linear, refuse_several_processes, register_algorithm
from usb_rsmatch.counter_rng import OUTLIER_VIEW, generator

LOWEST, HIGHEST = 0.75, 0.95  # of the threshold for outliers (authors)


class OutlierHead(nn.Module):
    """One more logit, for outliers, after the backbone's K: `logits_open` [B, K + 1]."""

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.outlier_head = linear(num_features, 1, bias=False)

    def forward(self, output: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"logits_open": torch.cat([output["logits"], self.outlier_head(output["feat"])], 1)}


class OutlierQueueHook(Hook):
    """The queue of likely outliers and the threshold for outliers, which are SCOMatch's whole state.

    `indices` int64 [L] and `scores` float32 [L] (greatest inlier probability) of queued images, the newest last.
    """

    def __init__(self, length: int, window: int, threshold: float) -> None:
        self.length, self.window, self.threshold = length, window, threshold
        self.indices = torch.empty(0, dtype=torch.int64)
        self.scores = torch.empty(0)
        self.threshold_open: float | Tensor = threshold
        self.confident = torch.zeros(2)  # inliers, outliers since the threshold was last set

    def push(self, algorithm: Any, indices: Tensor, scores: Tensor, count: int) -> None:
        """The `count` images with the smallest scores replace the oldest; `indices` int64 [B], `scores` float [B]."""
        least = scores.argsort()[:count]
        self.indices = torch.cat([self.indices.to(indices.device), indices[least]])[-self.length :]
        self.scores = torch.cat([self.scores.to(scores.device), scores[least].float()])[-self.length :]

    def sample(self, algorithm: Any, count: int) -> tuple[Tensor, Tensor] | None:
        """`count` different queued images by the step, as indices and scores; None while there are fewer."""
        if len(self.indices) < count:
            return None
        order = generator(algorithm.args.seed, "scomatch", algorithm.it).permutation(len(self.indices))
        chosen = torch.from_numpy(order[:count]).to(self.indices.device, non_blocking=True)
        return self.indices[chosen], self.scores[chosen]

    def outlier_threshold(self, algorithm: Any) -> float | Tensor:
        """tau_o, updated after each window of steps."""
        if algorithm.it > 0 and algorithm.it % self.window == 0:
            inliers, outliers = self.confident.double()
            ratio = torch.where(inliers > 0, outliers / inliers, 1.0)
            self.threshold_open = (self.threshold * ratio).clamp(LOWEST, HIGHEST)
            self.confident = torch.zeros_like(self.confident)
        return self.threshold_open

    def count(self, algorithm: Any, is_outlier: Tensor, sure: Tensor) -> None:
        """Count confident inliers and outliers; both arguments bool [B]: predicted as outlier, and confident."""
        kinds = torch.stack([sure & ~is_outlier, sure & is_outlier]).sum(1)
        self.confident = self.confident.to(kinds.device) + kinds


class SCOMatch(OpenSetAlgorithm):
    """SCOMatch, with the state in `OutlierQueueHook`."""

    Heads = OutlierHead

    def __init__(self, args: Any, net_builder: Any, tb_log: Any = None, logger: Any = None, **kwargs: Any) -> None:
        refuse_several_processes(args, "scomatch")
        super().__init__(args, net_builder, tb_log, logger, **kwargs)
        self.p_cutoff, self.T, self.enqueued = args.p_cutoff, args.T, args.sco_enqueue

    def set_hooks(self) -> None:
        args = self.args
        length = args.sco_queue_length or max(8 * self.num_classes, 256)
        window = max(1, len(self.dataset_dict["train_ulb"]) // (2 * args.batch_size * args.uratio))
        self.register_hook(OutlierQueueHook(length, window, args.p_cutoff), "OutlierQueueHook", "HIGH")
        super().set_hooks()

    def train_step(
        self, x_lb: Tensor, y_lb: Tensor, idx_ulb: Tensor, x_ulb_w: Tensor, x_ulb_s: Tensor
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """One step; `idx_ulb` int64 [uB], images float32 [B, 3, H, W], `y_lb` int64 [B]."""
        classes = self.num_classes
        threshold_open = self.call_hook("outlier_threshold", "OutlierQueueHook")
        queued = self.call_hook("sample", "OutlierQueueHook", count=len(x_lb))
        with self.amp_cm():
            views = [x_lb, x_ulb_w, x_ulb_s]
            if queued is not None:
                views.append(self.weak_views(queued[0], OUTLIER_VIEW, like=x_lb))
            lb, ulb_w, ulb_s, *outliers = self.outputs(*views)

            sup_loss = self.ce_loss(lb["logits_open"], y_lb, reduction="mean")
            sup_open_loss = sup_loss.new_zeros(())
            if queued is not None:
                mask_queue = (queued[1] < self.p_cutoff).to(sup_loss)
                targets = torch.full_like(y_lb, classes)
                per_image = self.ce_loss(outliers[0]["logits_open"], targets, reduction="none")
                sup_open_loss = (mask_queue * per_image).mean()

            with torch.no_grad():
                r = self.compute_prob(ulb_w["logits_open"] / self.T)  # [uB, K + 1]
                p = self.compute_prob(ulb_w["logits"] / self.T)  # [uB, K]
                confidence_open, target_open = r.max(1)
                target = p.argmax(1)
                is_outlier = target_open == classes
                sure = confidence_open >= self.p_cutoff
                mask_open = torch.where(is_outlier, confidence_open >= threshold_open, sure).to(r.dtype)
                mask = (sure & ~is_outlier).to(r.dtype)
                self.call_hook("count", "OutlierQueueHook", is_outlier=is_outlier, sure=sure)
                score = r[:, :classes].amax(1)
                self.call_hook("push", "OutlierQueueHook", indices=idx_ulb, scores=score, count=self.enqueued)
            unsup_open_loss = self.consistency_loss(ulb_s["logits_open"], target_open, "ce", mask=mask_open)
            unsup_loss = self.consistency_loss(ulb_s["logits"], target, "ce", mask=mask)

            total_loss = sup_loss + sup_open_loss + self.lambda_u * (unsup_loss + unsup_open_loss)

        feat = {"x_lb": lb["feat"], "x_ulb_w": ulb_w["feat"], "x_ulb_s": ulb_s["feat"]}
        return self.process_out_dict(loss=total_loss, feat=feat), self.process_log_dict(
            sup_loss=sup_loss.detach(),
            sup_open_loss=sup_open_loss.detach(),
            unsup_loss=unsup_loss.detach(),
            unsup_open_loss=unsup_open_loss.detach(),
            total_loss=total_loss.detach(),
            outlier_ratio=is_outlier.float().mean(),
            outlier_threshold=threshold_open,
            util_ratio=mask.mean(),
        )

    def outlier_score(self, x: Tensor) -> Tensor:
        """Probability [B] of the (K + 1)th class."""
        return self.model(x)["logits_open"].softmax(1)[:, -1]

    @staticmethod
    def get_argument() -> list[Any]:
        """SCOMatch's own arguments, with the authors' defaults for CIFAR."""
        return [
            SSL_Argument("--p_cutoff", float, 0.95, "confidence of pseudo-labels (tau)"),
            SSL_Argument("--T", float, 1.0, "temperature of pseudo-labels"),
            SSL_Argument("--sco_queue_length", int, 0, "images in the queue; 0 is max(8 classes, 256)"),
            SSL_Argument("--sco_enqueue", int, 1, "images that enter the queue at a step"),
        ]


def register() -> None:
    """Add `scomatch` to USB's registry, once."""
    register_algorithm("scomatch", SCOMatch)
