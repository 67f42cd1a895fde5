"""Classification metrics on tensors, correct for any number of classes and for classes missing from the data."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def confusion_matrix(targets: Tensor, predictions: Tensor, num_classes: int) -> Tensor:
    """Counts int64 [K, K], true class by predicted class."""
    flat = targets.long() * num_classes + predictions.long()
    return torch.bincount(flat, minlength=num_classes * num_classes).reshape(num_classes, num_classes)


def classification_metrics(logits: Tensor, targets: Tensor) -> dict[str, float]:
    """USB's evaluation metrics from logits [N, K] and classes [N]; with scikit-learn's macro averages.

    Balanced accuracy averages over the classes in the data; precision, recall and F1 over those in the data or among
    the predictions. `top-5-acc` is included for more than five classes. Targets of -1 are ignored.
    """
    known = targets >= 0
    logits, targets = logits[known].float(), targets[known]
    num_classes = logits.shape[1]
    predictions = logits.argmax(dim=1)
    matrix = confusion_matrix(targets, predictions, num_classes).double()
    hits, true, predicted = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    present, seen = true > 0, (true + predicted) > 0
    recall = hits / true.clamp(min=1)
    precision = hits / predicted.clamp(min=1)
    f1 = 2 * hits / (true + predicted).clamp(min=1)
    metrics = {
        "loss": F.cross_entropy(logits, targets).item(),
        "top-1-acc": (predictions == targets).double().mean().item(),
        "balanced_acc": recall[present].mean().item(),
        "precision": precision[seen].mean().item(),
        "recall": recall[seen].mean().item(),
        "F1": f1[seen].mean().item(),
    }
    if num_classes > 5:
        top5 = logits.topk(5, dim=1).indices
        metrics["top-5-acc"] = (top5 == targets[:, None]).any(1).double().mean().item()
    return metrics
