"""The detector without labels: it finds what it should, repeats itself, and refuses what it cannot learn from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from usb_rsmatch.detection import audit_detector
from usb_rsmatch.detection.metrics import auroc
from usb_rsmatch.errors import UserError


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_detector, "STEPS", (100, 200))
    monkeypatch.setattr(audit_detector, "COLD", 100)


def sides(share: float = 0.5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Real digits, and other real ones of which a share is blurred, as few-step generators blur."""
    real = np.rint(load_digits().images * (255 / 16)).astype(np.uint8)[np.random.default_rng(0).permutation(1797)]
    pool, count = real[200:440].astype(np.float64), round(share * 240)
    for axis in (1, 2):
        pool[:count] = (pool[:count] + np.roll(pool[:count], 1, axis=axis)) / 2
    return real[:200, ..., None], np.rint(pool).astype(np.uint8)[..., None], np.arange(240) < count


def test_held_out_images_are_told_apart_without_a_label() -> None:
    real, pool, truth = sides()
    look = audit_detector.Look.of(real)
    steps: list[int] = []
    detectors = audit_detector.train_folds(real, pool, look, seed=0, tell=steps.append)
    fold = audit_detector.folds(len(pool), 0, "pool")
    assert len(detectors) == audit_detector.FOLDS and np.bincount(fold).tolist() == [120, 120]
    for k, detector in enumerate(detectors):
        found = auroc(audit_detector.logits(detector, pool[fold == k], look), truth[fold == k])
        assert found is not None and found > 0.8, found
    assert max(steps) < audit_detector.STEPS[1] and not detectors[0].training


def test_the_same_seed_gives_the_same_detector_and_leaves_the_global_generators_alone() -> None:
    real, pool, _ = sides()
    look = audit_detector.Look.of(real)
    before = torch.random.get_rng_state()
    first, again, other = (audit_detector.train_folds(real[:60], pool[:60], look, seed)[0] for seed in (0, 0, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_what_it_cannot_learn_from_is_told() -> None:
    real, pool, _ = sides()
    look = audit_detector.Look.of(real)
    with pytest.raises(UserError, match="39 trusted real images are too few"):
        audit_detector.train_folds(real[:39], pool, look, 0)
    with pytest.raises(UserError, match="3 audited images are too few"):
        audit_detector.train_folds(real, pool[:3], look, 0)
    with pytest.raises(UserError, match="images of 7 px are too small"):
        audit_detector.train_folds(real[:, :7, :7], pool[:, :7, :7], look, 0)


def test_a_look_is_the_trusted_images_own() -> None:
    real, _, _ = sides()
    seen = audit_detector.Look.of(real)(torch.from_numpy(real.transpose(0, 3, 1, 2)))
    assert seen.shape[1] == 3 and abs(float(seen.mean())) < 1e-4 and abs(float(seen.std()) - 1) < 1e-3
    flat = audit_detector.Look.of(np.full((4, 8, 8, 3), 7, np.uint8))
    assert len(flat.mean) == 3 and min(flat.std) > 0
