"""The share of images of unknown provenance: near the truth with a good detector, and none where it cannot tell."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from usb_rsmatch.detection.audit_verdict import CANNOT_TELL, DIFFERENT, REASONS
from usb_rsmatch.detection.unknown_share import unknown_share


class ScoredImages:
    """A validation set whose images are single numbers, which are also their scores."""

    def __init__(self, scores: np.ndarray) -> None:
        self.scores = torch.from_numpy(scores)

    def __len__(self) -> int:
        return len(self.scores)

    def plain_views(self, indices: np.ndarray) -> torch.Tensor:
        return self.scores[indices]


def estimate(share: float, shift: float, size: int = 32) -> dict[str, Any]:
    """The estimate for 1,000 images, of which a share has log odds that are higher by `shift`."""
    rng = np.random.default_rng(0)
    real, mixed = rng.normal(-2, 1, 800), rng.normal(-2, 1, 1000)
    mixed[: int(1000 * share)] += shift
    algorithm = SimpleNamespace(
        dataset_dict={"eval": ScoredImages(real)},
        synthetic_probability=torch.sigmoid,
        averaged_weights=nullcontext,
        device=torch.device("cpu"),
        args=SimpleNamespace(img_size=size),
    )
    return unknown_share(algorithm, 1 / (1 + np.exp(-mixed)), seed=0)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.7])
def test_the_interval_holds_the_share_where_the_classes_separate(share: float) -> None:
    found = estimate(share, shift=4)
    assert found["low"] <= share <= found["high"] and abs(found["estimate"] - share) < 0.06
    assert found["high"] - found["low"] < 0.5 and (found["real_images"], found["real_part"]) == (800, "test")


@pytest.mark.parametrize(
    ("share", "shift", "size", "said"),
    [(0.8, 0.5, 32, CANNOT_TELL), (0.0, 0, 8, CANNOT_TELL), (1.0, 4, 32, DIFFERENT)],
    ids=["classes overlap", "nothing found on small images", "all differ"],
)
def test_no_share_is_stated_where_an_audit_states_none(share: float, shift: float, size: int, said: str) -> None:
    found = estimate(share, shift, size)
    assert found["estimate"] is found["low"] is found["high"] is None and found["reason"] == REASONS[said]
