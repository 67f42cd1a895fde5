"""What the audit says of scores whose share is known: of mixtures, of a shift of all images, of nothing to be found."""

from __future__ import annotations

import numpy as np
import pytest

from usb_rsmatch.detection.audit_verdict import CANNOT_TELL, DIFFERENT, SHARE, Verdict, verdict
from usb_rsmatch.detection.share_estimation import Scored


def found(share: float, distance: float, side: int = 32) -> Verdict:
    """Of 1,000 normal scores and of 2,000, of which a share is shifted by `distance`; three independent trainings."""
    trainings = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        pool = rng.normal(size=2000) + distance * (np.arange(2000) < share * 2000)
        trainings.append([Scored(rng.normal(size=1000), pool, np.arange(2000))])
    return verdict(trainings, side, 0)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.25, 0.5, 0.8])
def test_a_share_of_well_separated_images_is_in_its_interval(share: float) -> None:
    result = found(share, 3.0)
    assert result.said == SHARE and result.share.low <= share <= result.share.high
    assert result.share.high - result.share.low < 0.25


def test_no_share_is_stated_where_all_images_differ_or_the_classes_overlap() -> None:
    assert found(1.0, 3.0).said == DIFFERENT
    edited = found(1.0, 0.8)
    assert edited.said != SHARE and (edited.share.low, edited.share.high) == (0.0, 1.0)


@pytest.mark.parametrize(("share", "distance"), [(0.25, 1.5), (0.6, 0.8), (0.5, 1.0), (0.1, 1.0)])
def test_an_interval_of_overlapping_classes_contains_the_share(share: float, distance: float) -> None:
    result = found(share, distance)
    assert result.share.low <= share <= result.share.high


def test_finding_nothing_on_tiny_images_says_nothing() -> None:
    assert found(0.0, 0.0).said == SHARE and found(0.0, 0.0, side=8).said == CANNOT_TELL
