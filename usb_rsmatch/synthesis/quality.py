"""Image quality of generated images, measured by a small classifier trained on the real ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usb_rsmatch.counter_rng import Order, derive, generator
from usb_rsmatch.synthesis.flow_settings import pick_device

HELD_OUT = 0.25  # share of the real images that the classifier is not trained on; the figures' reference
CLASSIFIER_STEPS = 800
BATCH = 128
NETWORK = "small classifier trained on the real images"
NEIGHBOURS = 3  # of precision and recall, as in their paper
LIMIT = 5_000  # images of a side for distances between all pairs


@dataclass(frozen=True)
class Quality:
    """Quality figures of generated images; those named `real_` are of real images, for comparison.

    The Frechet distances are between features of this classifier, as shares of the real features' total variance.
    They compare generators of one real data set with each other, and are not comparable with an Inception FID.
    """

    network: str  # whose features the distances, precision, recall and diversity use
    classifier_frechet: float  # between held-out real images and generated ones
    real_classifier_frechet: float  # between held-out real images and the classifier's training images
    diversity: float  # mean distance between two images of a class, divided by that of held-out real images
    classifier_kernel: float  # like classifier_frechet: the kernel distance
    real_classifier_kernel: float
    precision: float  # share of generated images near real ones
    recall: float  # share of held-out real images near generated ones
    real_precision: float  # both for as many real images that the classifier was trained on, instead of generated ones
    real_recall: float
    class_accuracy: float  # share of images for which the classifier predicts the intended class
    real_class_accuracy: float  # the same for held-out real images


def measure(
    real_images: np.ndarray,
    real_labels: np.ndarray,
    images: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    seed: int = 0,
    *,
    steps: int = CLASSIFIER_STEPS,
    device: str = "auto",
) -> Quality:
    """Quality of generated `images` (uint8 [M, H, W, C]) with intended `labels` (int64 [M]).

    They are compared with real images of the same classes (uint8 [N, H, W, C], labels int64 [N], at least some
    hundreds). A quarter of these is held out from the classifier, which trains for `steps` of batch 128.
    Source: Frechet distance as Heusel et al. 1706.08500 (eq. 6), kernel distance as Binkowski et al. 1801.01401,
    precision and recall as Kynkaanniemi et al. 1904.06991, all on other features; the rest our choice.
    """
    order = generator(seed, "quality", "split").permutation(len(real_images))
    cut = round(len(order) * HELD_OUT)
    held_out, train = order[:cut], order[cut:]
    where = pick_device(device)
    classifier = train_classifier(real_images[train], real_labels[train], num_classes, steps, seed, where)
    # The classifier is trained on all classes; features are compared only for the generated ones.
    held_out, train = (rows[np.isin(real_labels[rows], labels)] for rows in (held_out, train))
    train_feat, _ = _features(classifier, real_images[train], where)
    scale = np.sqrt(train_feat.var(axis=0).sum())  # the unit of distances: the standard deviation of real images
    held_out_feat, held_out_predicted = _features(classifier, real_images[held_out], where)
    feat, predicted = _features(classifier, images, where)
    precision, recall = precision_and_recall(held_out_feat, feat)
    real_precision, real_recall = precision_and_recall(held_out_feat, train_feat)
    return Quality(
        network=NETWORK,
        classifier_kernel=kernel_distance(held_out_feat / scale, feat / scale),
        real_classifier_kernel=kernel_distance(held_out_feat / scale, train_feat / scale),
        precision=precision,
        recall=recall,
        real_precision=real_precision,
        real_recall=real_recall,
        classifier_frechet=frechet_distance(held_out_feat / scale, feat / scale),
        real_classifier_frechet=frechet_distance(held_out_feat / scale, train_feat / scale),
        diversity=relative_diversity(held_out_feat, real_labels[held_out], feat, labels),
        class_accuracy=float((predicted == labels).mean()),
        real_class_accuracy=float((held_out_predicted == real_labels[held_out]).mean()),
    )


def frechet_distance(feat_a: np.ndarray, feat_b: np.ndarray) -> float:
    """Squared Frechet distance between Gaussians fitted to two sets of features, [N, D] and [M, D].

    |mean_a - mean_b|^2 + trace(cov_a + cov_b - 2 (cov_a^1/2 cov_b cov_a^1/2)^1/2), where the matrix under the
    last root is symmetric, so that only its eigenvalues are needed.
    """
    a, b = feat_a.astype(np.float64), feat_b.astype(np.float64)
    cov_a, cov_b = np.atleast_2d(np.cov(a, rowvar=False)), np.atleast_2d(np.cov(b, rowvar=False))
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(min=0)).sum()
    offset = a.mean(axis=0) - b.mean(axis=0)
    return float(max(0.0, offset @ offset + np.trace(cov_a) + np.trace(cov_b) - 2 * cross))


def kernel_distance(feat_a: np.ndarray, feat_b: np.ndarray) -> float:
    """Squared maximum mean discrepancy of two sets of features, [N, D] and [M, D], unbiased, so it may be below 0.

    The kernel is (a . b / D + 1)^3, of the first 5,000 features of each set.
    Source: Binkowski et al. 1801.01401 (section 4), in one block instead of a mean over subsets.
    """
    a, b = feat_a[:LIMIT].astype(np.float64), feat_b[:LIMIT].astype(np.float64)

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def within(x: np.ndarray) -> float:
        values = kernel(x, x)
        return float((values.sum() - np.trace(values)) / (len(x) * (len(x) - 1)))

    return within(a) + within(b) - 2 * float(kernel(a, b).mean())


def precision_and_recall(real_feat: np.ndarray, feat: np.ndarray) -> tuple[float, float]:
    """Precision and recall in [0, 1] of generated features [M, D] against real ones [N, D].

    Precision is the share of generated features within the distance of a real one to its third neighbour; recall is
    the same with the roles exchanged. Of equally many of each side, at most 5,000, since both depend on the number.
    Source: Kynkaanniemi et al. 1904.06991 (eqs. 1 and 2).
    """
    count = min(len(real_feat), len(feat), LIMIT)
    if count <= NEIGHBOURS:
        return float("nan"), float("nan")
    real, made = (torch.from_numpy(np.ascontiguousarray(side[:count], dtype=np.float64)) for side in (real_feat, feat))
    return _share_inside(real, made), _share_inside(made, real)


def _share_inside(reference: Tensor, feat: Tensor) -> float:
    """The share of features within the third-neighbour distance of any reference feature."""
    radius = torch.cdist(reference, reference).kthvalue(NEIGHBOURS + 1, dim=1).values  # the nearest is itself
    return float((torch.cdist(feat, reference) <= radius).any(dim=1).double().mean())


def relative_diversity(real_feat: np.ndarray, real_labels: np.ndarray, feat: np.ndarray, labels: np.ndarray) -> float:
    """Mean distance between two generated images of a class, divided by that of real ones, averaged over classes.

    Features [N, D] and [M, D], labels [N] and [M]. 1 means as diverse as real images, 0 means one image repeated.
    Classes with fewer than two real or two generated images are excluded; returns NaN if no class is left.
    """
    ratios = []
    for label in np.intersect1d(real_labels, labels):
        generated, real = feat[labels == label], real_feat[real_labels == label]
        if len(generated) > 1 and len(real) > 1 and (spread := _mean_distance(real)) > 0:
            ratios.append(_mean_distance(generated) / spread)
    return float(np.mean(ratios)) if ratios else float("nan")


def _mean_distance(feat: np.ndarray, limit: int = 1000) -> float:
    """Mean Euclidean distance of two different rows of features [N, D], over the first `limit` rows."""
    rows = torch.from_numpy(np.ascontiguousarray(feat[:limit], dtype=np.float64))
    return float(F.pdist(rows).mean())


class _Classifier(nn.Module):
    """Three convolutions, 64 features and a linear head, for images of 8 to 64 px."""

    def __init__(self, image_size: int, channels: int, num_classes: int) -> None:
        super().__init__()
        stride = max(1, image_size // 16)
        self.trunk = nn.Sequential(
            *_convolution(channels, 16, stride),
            *_convolution(16, 32),
            nn.AdaptiveMaxPool2d(8),
            *_convolution(32, 64),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * 16, 64),
        )
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(64, num_classes))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images [B, C, H, W] to features [B, 64] and logits [B, K]."""
        feat = self.trunk(x)
        return feat, self.head(feat)


def _convolution(channels: int, width: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]


def train_classifier(
    images: np.ndarray, labels: np.ndarray, num_classes: int, steps: int, seed: int, device: torch.device
) -> _Classifier:
    """Train a classifier on `images` (uint8 [N, H, W, C]); the same seed gives the same classifier."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(derive(seed, "quality", "weights"))
        classifier = _Classifier(images.shape[1], images.shape[3], num_classes).to(device)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    order = Order(seed, "quality", len(images))
    for step in range(steps):
        index = order.index(np.arange(step * BATCH, (step + 1) * BATCH))
        _, logits = classifier(_tensor(images[index], device))
        loss = F.cross_entropy(logits, torch.from_numpy(labels[index]).long().to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return classifier.eval()


@torch.inference_mode()
def class_log_probabilities(classifier: _Classifier, images: np.ndarray, device: torch.device) -> np.ndarray:
    """Logarithms of the predicted probabilities, float64 [N, K], of `images` (uint8 [N, H, W, C])."""
    parts = [classifier(_tensor(images[i : i + 512], device))[1] for i in range(0, len(images), 512)]
    return torch.cat(parts).double().log_softmax(dim=1).cpu().numpy()


@torch.inference_mode()
def _features(classifier: _Classifier, images: np.ndarray, device: torch.device) -> tuple[np.ndarray, np.ndarray]:
    """Features float32 [N, 64] and predicted classes int64 [N] of `images` (uint8 [N, H, W, C])."""
    parts = [classifier(_tensor(images[i : i + 512], device)) for i in range(0, len(images), 512)]
    feat, logits = (torch.cat(part).cpu() for part in zip(*parts, strict=True))
    return feat.numpy(), logits.argmax(dim=1).numpy()


def _tensor(images: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(device).float() / 127.5 - 1
