"""Evaluation metrics equal those of scikit-learn, also if classes are missing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from usb_rsmatch.usb.evaluation import classification_metrics, confusion_matrix


@settings(max_examples=80, deadline=None)
@given(classes=st.integers(2, 12), n=st.integers(1, 60), seed=st.integers(0, 10**6), missing=st.integers(0, 10))
def test_metrics_equal_scikit_learns(classes: int, n: int, seed: int, missing: int) -> None:
    """Random scores; with `missing`, some classes occur neither in the data nor in the predictions."""
    rng = np.random.default_rng(seed)
    used = max(1, classes - missing)
    targets = rng.integers(0, used, n)
    scores = rng.normal(size=(n, classes)).astype(np.float32)
    scores[:, rng.integers(0, classes)] -= 10.0 * (missing % 2)
    scores[np.arange(n), targets] += 1.0
    predicted = scores.argmax(1)
    got = classification_metrics(torch.from_numpy(scores), torch.from_numpy(targets))

    macro = {"average": "macro", "zero_division": 0}
    assert got["top-1-acc"] == pytest.approx(reference.accuracy_score(targets, predicted))
    recalls = [float((predicted[targets == k] == k).mean()) for k in np.unique(targets)]
    assert got["balanced_acc"] == pytest.approx(np.mean(recalls))
    assert got["precision"] == pytest.approx(reference.precision_score(targets, predicted, **macro))
    assert got["recall"] == pytest.approx(reference.recall_score(targets, predicted, **macro))
    assert got["F1"] == pytest.approx(reference.f1_score(targets, predicted, **macro))
    if classes > 5:
        top5 = reference.top_k_accuracy_score(targets, scores, k=5, labels=np.arange(classes))
        assert got["top-5-acc"] == pytest.approx(top5)
    else:
        assert "top-5-acc" not in got
    probability = torch.from_numpy(scores).double().softmax(1).numpy()
    loss = reference.log_loss(targets, probability, labels=np.arange(classes))
    assert got["loss"] == pytest.approx(loss, rel=1e-4, abs=1e-6)
    matrix = confusion_matrix(torch.from_numpy(targets), torch.from_numpy(predicted), classes)
    assert np.array_equal(matrix.numpy(), reference.confusion_matrix(targets, predicted, labels=np.arange(classes)))


def test_images_of_unknown_class_are_ignored() -> None:
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, -1, 2, 1, -1, 0])
    known = targets >= 0
    assert classification_metrics(logits, targets) == classification_metrics(logits[known], targets[known])


def test_the_loss_of_bfloat16_logits_is_computed_in_float32() -> None:
    logits = (10 * torch.randn(50, 4, generator=torch.Generator().manual_seed(0))).bfloat16()
    targets = torch.arange(50) % 4
    assert classification_metrics(logits, targets)["loss"] == pytest.approx(
        F.cross_entropy(logits.double(), targets).item(), rel=1e-6
    )
