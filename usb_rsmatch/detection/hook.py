"""The detection branch as a USB hook: identifies synthetic images, mines examples, trains and evaluates the detector.

`RSMatch.train_step` calls it by name (`identify`, `detection_loss`), as USB calls masking hooks, so that it also works
where step hooks are not called. True provenance is read only by the reference detectors `oracle` and `supervised` and
by metrics.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from semilearn.core.hooks import Hook
from torch import Tensor

from usb_rsmatch.counter_rng import FAKE_DRAW, QUEUE_DRAW, QUEUE_VIEW, generator, uniforms
from usb_rsmatch.data.pool.provenance import Provenance
from usb_rsmatch.detection.detector import TRAINED, in_eight_positions, reads_features, teaches_backbone, widened
from usb_rsmatch.detection.measure import Measured, measured_indices, publish_report, score_images
from usb_rsmatch.detection.mining import ClasswiseRanking
from usb_rsmatch.detection.nnpu import nnpu_loss
from usb_rsmatch.detection.pseudo_fakes import PrincipalComponents
from usb_rsmatch.detection.pseudo_label_statistics import PseudoLabelTally
from usb_rsmatch.detection.queue import ClasswiseSyntheticQueue
from usb_rsmatch.detection.score_file import read_scores
from usb_rsmatch.detection.share_estimation import best_bin_estimate
from usb_rsmatch.distributed import all_gather_batch, local_shard, world_size
from usb_rsmatch.errors import UserError

COMPONENTS_FROM = 512  # images of the pool from which the principal components are computed
COLD_SHARE = 0.1  # share of training in which the detector learns without the queue (ours)
MOMENTUM = 0.7  # of the running average of an image's score over its visits (ours)
MINED_SHARE = 0.3  # share of each pseudo-class, the highest scores, that enters the queue (ours)
MINED_PER_LABELED = 3  # mined images per labelled image in the detector's batch (ours)


def _classes(pseudo_label: Tensor) -> Tensor:
    """Pseudo-labels int64 [B]; of soft ones, the most probable class."""
    return pseudo_label.detach().argmax(1) if pseudo_label.ndim == 2 else pseudo_label.detach()


class SyntheticDetectionHook(Hook):
    """Identification, the class-wise queue of mined synthetic images, and the detector's loss.

    No label marks synthetic images, so the detector starts with labelled images against their reconstructions from
    principal components (`pseudo_fakes`), or against the whole pool: without overfitting, a detector of real against
    mixed images ranks them as one of real against synthetic images does. From the first step on, the images of the pool
    that rank highest within their pseudo-class enter the queue. After `COLD_SHARE` of training (or half of a shorter
    `rs_warmup`) the detector learns from the queue, and after `rs_warmup` of training its scores identify synthetic
    images. Source of the queue: arXiv 2405.16930; how it is filled is our choice.

    `scores` float32 [N] is the running average of each pool image's probability of being synthetic, NaN before its
    first visit. Scores, queue and ranking stay on the device of the batches, so that no step waits for a GPU (except
    for images on disk or with PIL views, whose indices the host needs).
    """

    def __init__(self, algorithm: Any) -> None:
        settings, steps = algorithm.settings, algorithm.num_train_iter
        self.kind, self._adaptive = settings.detector_kind, settings.adaptive
        self.threshold = 0.5 if self._adaptive else float(settings.rs_threshold)
        self._warmup_steps, self._seed = int(settings.rs_warmup * steps), algorithm.args.seed
        self._cold_steps = min(int(COLD_SHARE * steps), self._warmup_steps // 2)
        self._pseudo_fakes = settings.rs_pseudo_fakes
        self._components: PrincipalComponents | None = None
        dataset: Any = None if self.kind == "none" else algorithm.dataset_dict["train_ulb"]
        if dataset is not None and not hasattr(dataset, "set"):
            raise UserError(f"rs_detector: {settings.rs_detector} needs a pool of ours; for USB's own data take none")
        self._dataset = dataset
        length = 0 if self._dataset is None else len(self._dataset)
        self._known: Tensor | None = None
        if self._dataset is not None:  # for metrics and for reference detectors
            self._provenance = torch.from_numpy(np.asarray(dataset.set.provenance, dtype=np.int64))
            self._labels = torch.from_numpy(np.asarray(dataset.set.labels, dtype=np.int64))
        if self.kind in ("oracle", "supervised") and (unknown := int(dataset.set.is_unknown.sum())):
            raise UserError(
                f"rs_detector: {self.kind} needs the provenance of every image, {unknown} of the pool are of unknown "
                "provenance; take csqueue or pu"
            )
        if self.kind == "oracle":
            self._known = (self._provenance == Provenance.SYNTHETIC).float()
        elif self.kind == "random":
            self._known = torch.from_numpy(generator(self._seed, "random detector").random(length, dtype=np.float32))
        elif self.kind == "scores":
            self._known = torch.from_numpy(read_scores(settings.score_file, dataset.set.names))
        classwise = settings.rs_queue == "classwise"
        self.queue = ClasswiseSyntheticQueue(algorithm.num_classes, settings.rs_queue_length, classwise)
        self.ranking = ClasswiseRanking(algorithm.num_classes, classwise)
        self.scores = torch.full((length,), float("nan"))
        self.tally = PseudoLabelTally()
        self.real_share = 0.5  # estimate for `pu`, updated at evaluations
        self._queue_serves = False

    def _follow(self, device: torch.device) -> None:
        """Move the state to the device of a batch; only the first step has to move anything."""
        if self.scores.device != device:
            self.scores = self.scores.to(device)
            self.queue.to(device)
            self.ranking.to(device)
            self._known = None if self._known is None else self._known.to(device)
            self._provenance, self._labels = self._provenance.to(device), self._labels.to(device)

    def state_dict(self) -> dict[str, Any]:
        return {
            "queue": self.queue.state_dict(),
            "ranking": self.ranking.state_dict(),
            "scores": self.scores.cpu().clone(),
            "real_share": self.real_share,
            "threshold": self.threshold,
            "queue_serves": self._queue_serves,
            "tally": self.tally.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.queue.load_state_dict(state["queue"])
        self.ranking.load_state_dict(state["ranking"])
        self.scores.copy_(state["scores"])
        self.real_share, self._queue_serves = state["real_share"], state.get("queue_serves", False)
        if "tally" in state:  # not in older checkpoints
            self.threshold = state["threshold"]
            self.tally.load_state_dict(state["tally"])

    def acts(self, algorithm: Any) -> bool:
        """Whether images are identified at this step: never without a detector, and not before `rs_warmup`."""
        return self.kind != "none" and algorithm.it >= self._warmup_steps

    # called by name within the step -----------------------------------------------------------------------------

    @torch.no_grad()
    def identify(self, algorithm: Any, x_ulb_w: Tensor, idx_ulb: Tensor) -> Tensor:
        """s float [uB]: 1 where an image counts as synthetic, from its weak view [uB, 3, H, W] or running score.

        Before `rs_warmup` of the steps are done, no image counts as synthetic.
        """
        if self.kind == "none":
            return torch.zeros(len(idx_ulb), device=x_ulb_w.device)
        self._follow(x_ulb_w.device)
        active = float(self.acts(algorithm))
        if self._known is not None:
            return (self._known[idx_ulb] > self.threshold).float() * active
        detector = algorithm.detector
        if reads_features(detector):  # this step's features are not computed yet: the scores of earlier visits are used
            score = self.scores[idx_ulb]
        else:
            detector.eval()  # a score depends on its image alone, not on the other images of the batch
            score = widened(detector(x_ulb_w)).sigmoid()
            detector.train()
            self._remember(idx_ulb, score)
        return (score > self.threshold).float() * active

    def observe(self, algorithm: Any, idx_ulb: Tensor, pseudo_label: Tensor, mask: Tensor) -> None:
        """Count the pseudo-labels and the base rule's mask float [uB] of a step, for the metrics alone."""
        if self._dataset is not None:
            idx_ulb, mask = all_gather_batch(idx_ulb), all_gather_batch(mask.detach())
            pseudo_label = all_gather_batch(_classes(pseudo_label))
            self._follow(idx_ulb.device)
            self.tally.add(self._provenance[idx_ulb], self._labels[idx_ulb], pseudo_label, mask)

    def detection_loss(
        self,
        algorithm: Any,
        idx_ulb: Tensor,
        x_lb: Tensor,
        x_ulb_w: Tensor,
        feat: dict[str, Tensor],
        pseudo_label: Tensor,
    ) -> Tensor | None:
        """L_det: labelled images are real, mined ones synthetic (`csqueue`), or the pool is a mixture (`pu`).

        Returns None where no detector is trained. The pseudo-labels int64 [uB] or float [uB, K] of the pool choose the
        queue.
        """
        if self.kind not in TRAINED:
            return None
        real, pool = self._inputs(algorithm, idx_ulb, x_lb, x_ulb_w, feat)
        if self.kind == "pu":
            on_real, on_pool = self._logits(algorithm, real, pool)
            return nnpu_loss(on_real, on_pool, self.real_share)
        if self.kind == "supervised":
            return self._supervised_loss(self._logits(algorithm, pool)[0], idx_ulb)
        self._mine(idx_ulb, pseudo_label)
        synthetic, counted = self._examples(algorithm, x_lb, x_ulb_w)
        on_real, on_synthetic = self._logits(algorithm, real, synthetic)
        missed = (F.softplus(-on_synthetic) * counted).sum() / counted.sum().clamp(min=1)
        return F.softplus(on_real).mean() + missed

    def _inputs(
        self, algorithm: Any, idx_ulb: Tensor, x_lb: Tensor, x_ulb_w: Tensor, feat: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The detector's inputs for labelled and for pool images: images, or features, which are scored here."""
        detector = algorithm.detector
        if not reads_features(detector):
            return x_lb, x_ulb_w
        real, pool = feat["x_lb"], feat["x_ulb_w"]
        if not teaches_backbone(detector):
            real, pool = real.detach(), pool.detach()
        with torch.no_grad():
            self._remember(idx_ulb, widened(detector(pool)).sigmoid())
        return real, pool

    def _logits(self, algorithm: Any, *parts: Tensor) -> tuple[Tensor, ...]:
        """The detector's logits of a batch in parts; images [n, C, S, S] are shown in the eight orientations of a
        square.

        The orientation follows from an image's place in the batch and the step, as mined images are sorted by class.
        """
        if not reads_features(algorithm.detector):
            parts = tuple(
                in_eight_positions(x, local_shard(np.arange(len(x) * world_size())) + algorithm.it) for x in parts
            )
        return widened(algorithm.detector(torch.cat(parts))).split([len(x) for x in parts])

    def _examples(self, algorithm: Any, x_lb: Tensor, x_ulb_w: Tensor) -> tuple[Tensor, Tensor]:
        """Examples of synthetic images, mined or those of the cold start, and weights float [n]: 1 for a valid one."""
        warm = algorithm.it >= self._cold_steps
        if warm and not (self._queue_serves and self.scores.is_cuda):  # a GPU is asked until the queue is first used
            self._queue_serves = len(self.queue) > 0
        if warm and self._queue_serves:
            synthetic, counted = self._sample(algorithm, len(x_lb))
        else:
            synthetic = self._first_examples(algorithm, x_lb, x_ulb_w)
            counted = torch.ones(len(synthetic), device=x_lb.device)
        return (self._features(algorithm, synthetic) if reads_features(algorithm.detector) else synthetic), counted

    def _features(self, algorithm: Any, x: Tensor) -> Tensor:
        """The backbone's features [n, F] of mined images; its running statistics do not change."""
        algorithm.bn_controller.freeze_bn(algorithm.model)
        with torch.set_grad_enabled(teaches_backbone(algorithm.detector)):
            features = widened(algorithm.network(x, only_feat=True))
        algorithm.bn_controller.unfreeze_bn(algorithm.model)
        return features

    def _supervised_loss(self, logits: Tensor, idx_ulb: Tensor) -> Tensor:
        """The loss of the same detector with true provenance, the reference for mining; both classes have equal
        weight.
        """
        synthetic = (self._provenance[idx_ulb] == Provenance.SYNTHETIC).to(logits.dtype)
        share = all_gather_batch(synthetic).mean().clamp(1e-6, 1 - 1e-6)  # of the whole batch, over all processes
        weight = synthetic / share + (1 - synthetic) / (1 - share)
        return F.binary_cross_entropy_with_logits(logits, synthetic, weight)

    def _remember(self, idx_ulb: Tensor, score: Tensor) -> None:
        idx_ulb, score = all_gather_batch(idx_ulb), all_gather_batch(score).to(self.scores.dtype)
        if idx_ulb.is_cuda:  # if an image occurs twice, its last score counts, as on a CPU
            again = (idx_ulb[:, None] == idx_ulb) * torch.arange(len(idx_ulb), device=idx_ulb.device)
            score = score[again.argmax(1)]
        before = self.scores[idx_ulb]
        self.scores[idx_ulb] = torch.where(before.isnan(), score, MOMENTUM * before + (1 - MOMENTUM) * score)

    def _mine(self, idx_ulb: Tensor, pseudo_label: Tensor) -> None:
        """The images of the batch that rank highest within their pseudo-class enter its queue, the others are
        removed.
        """
        idx_ulb, classes = all_gather_batch(idx_ulb), all_gather_batch(_classes(pseudo_label))
        scores = self.scores[idx_ulb]
        top = self.ranking.rank(scores, classes) > 1.0 - MINED_SHARE
        self.queue.push(idx_ulb, classes, scores, top)

    def _sample(self, algorithm: Any, num_labeled: int) -> tuple[Tensor, Tensor]:
        """Weak views [n, 3, H, W] of mined images, drawn by the step's position: this process's part of the batch.

        Also weights float [n]: 1 for a valid example, 0 where the queue is empty (a GPU is not asked beforehand).
        """
        n = MINED_PER_LABELED * num_labeled * world_size()
        positions = np.arange(algorithm.it * n, (algorithm.it + 1) * n)
        draws = uniforms(self._seed, positions, QUEUE_DRAW, 2)
        indices = local_shard(self.queue.sample(n, draws))
        views = self._dataset.weak_views(indices.clamp(min=0), local_shard(positions), QUEUE_VIEW)
        return views.to(self.scores.device, non_blocking=True), (indices >= 0).float()

    def _first_examples(self, algorithm: Any, x_lb: Tensor, x_ulb_w: Tensor) -> Tensor:
        """Views [n, 3, H, W] of the step's pool images, or the labelled views reconstructed (`rs_pseudo_fakes`)."""
        if self._pseudo_fakes == "pool":
            return x_ulb_w[: MINED_PER_LABELED * len(x_lb)]
        if self._components is None:  # a function of the seed and the pool, so checkpoints do not need it
            chosen = generator(self._seed, "components").permutation(len(self._dataset))[:COMPONENTS_FROM]
            views = self._dataset.weak_views(chosen, chosen, QUEUE_VIEW)
            self._components = PrincipalComponents(views.cpu(), x_lb.device)
        n = len(x_lb) * world_size()
        positions = local_shard(np.arange(algorithm.it * n, (algorithm.it + 1) * n))
        draws = uniforms(self._seed, positions, FAKE_DRAW, 1)[:, 0]
        return self._components.rebuild(x_lb, draws.to(x_lb.device, non_blocking=True))

    # measuring --------------------------------------------------------------------------------------------------

    def after_train_step(self, algorithm: Any) -> None:
        """At evaluations, measure how well the pool's scores separate real from synthetic images, and estimate the
        share.
        """
        if self.every_n_iters(algorithm, algorithm.num_eval_iter) or self.is_last_iter(algorithm):
            self.measure(algorithm)

    def measure(self, algorithm: Any) -> None:
        """Score the pool and publish the metrics; update the estimated share, which `pu` and `adaptive` use."""
        if self.kind == "none":
            return
        indices = measured_indices(self._dataset.set, self._seed)
        scores = self.pool_scores(algorithm, indices)
        share = self._estimate_share(algorithm, scores) if self.kind in TRAINED and len(indices) else None
        measured = Measured(indices, scores, share, self.queue.indices, self.tally.report())
        publish_report(algorithm, self._dataset.set, measured)

    def _estimate_share(self, algorithm: Any, scores: np.ndarray) -> float:
        """The share of synthetic images in the pool, from its scores float [n] and those of the labelled images.

        The detector was trained on the labelled images, so the estimate tends to be too high (our choice; there are too
        few of them to hold some out). Where training uses the share, it is clipped to 5 to 95 %.
        """
        labeled = algorithm.dataset_dict["train_lb"]
        real = score_images(algorithm, labeled, np.arange(len(labeled)), algorithm.synthetic_probability)
        share = best_bin_estimate(torch.from_numpy(real), torch.from_numpy(scores))
        self.real_share = float(np.clip(1.0 - share, 0.05, 0.95))
        if self._adaptive:
            at = np.quantile(scores, self.real_share).astype(np.float32)
            self.threshold = float(np.nextafter(at, np.float32(-1)))  # scores may be exactly 1, and those must count
        return share

    def pool_scores(self, algorithm: Any, indices: np.ndarray) -> np.ndarray:
        """The probability of being synthetic, float32 [n], of pool images: the given scores, or the detector's."""
        if self._known is not None:
            return self._known.cpu()[torch.from_numpy(indices)].numpy()
        return score_images(algorithm, self._dataset, indices, algorithm.synthetic_probability)
