"""What a detector's scores of a collection allow to say: a share with its interval, or why no share is stated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from usb_rsmatch.detection.metrics import auroc
from usb_rsmatch.detection.share_estimation import Scored, Share, contamination_share, standard_scores

SHARE, CANNOT_TELL, DIFFERENT = "share", "cannot tell", "histories differ"
REASONS = {
    CANNOT_TELL: "cannot tell, the detector does not separate the images well enough; 0 to 100 % could be synthetic",
    DIFFERENT: "nearly every image differs from the real ones, as all synthetic or all edited ones do",
}
SEPARATED = 0.8  # AUROC of real against synthetic images that a stated share needs
WHOLE = 0.85  # share from which on the audited images may as well all be real ones of another history
SMALLEST = 16  # pixels: on smaller images a detector misses whole generators, and finding nothing says nothing
LEAST_FOUND = 0.01  # share under which the classes' separation cannot be estimated
RESAMPLES = 100  # bootstrap resamples a training


@dataclass(frozen=True)
class Verdict:
    """`said` is `SHARE`, `CANNOT_TELL` or `DIFFERENT`; `separation` the estimated AUROC of real against synthetic.

    `apart` is the AUROC of held-out trusted against audited images, 0.5 where both sides are alike. Where no share is
    stated, `share` runs from 0 to 1.
    """

    said: str
    share: Share
    separation: float | None
    apart: float


def verdict(trainings: Sequence[Sequence[Scored]], side: int, seed: int) -> Verdict:
    """The verdict from the held-out scores of several trainings, on images of `side` pixels (all rules are ours).

    The estimate is the mean over trainings. The interval adds the bootstrap over images and the variation between
    trainings as independent errors, and to its upper end the share of synthetic images that rank among real ones, or
    the share by moments (`_share_of_shift`) if that is larger. No share is stated if (nearly) all audited images
    differ, because real images of another history differ so as well, or if the classes overlap too much. If nothing is
    found, the upper end is the share that could be hidden at an AUROC of `SEPARATED`.
    """
    shares = [contamination_share([_joined(parts)], seed + number, RESAMPLES) for number, parts in enumerate(trainings)]
    estimates = np.array([share.estimate for share in shares])
    parts = [part for training in trainings for part in training]
    apart = float(np.mean([_apart(part) for part in parts]))
    n, m = (sum(len(getattr(part, name)) for part in trainings[0]) for name in ("real", "pool"))
    estimate = float(estimates.mean())
    images = float(np.mean([max(s.estimate - s.low, s.high - s.estimate) for s in shares]))
    # The variation of one training is unknown; what is assumed is larger than usual.
    spread = 2 * float(estimates.std(ddof=1)) if len(estimates) > 1 else images
    reach = float(np.hypot(images, spread))
    low = max(0.0, estimate - reach)
    separation = min(1.0, 0.5 + max(0.0, apart - 0.5) / estimate) if estimate > LEAST_FOUND else None
    noise = 2 * np.sqrt((n + m + 1) / (12 * n * m))  # of an AUROC of 0.5
    hidden = (max(0.0, apart - 0.5) + noise) / (SEPARATED - 0.5)
    nothing = Share(estimate, 0.0, 1.0)
    if estimate > WHOLE:
        return Verdict(DIFFERENT, nothing, separation, apart)
    if low == 0 or apart - 0.5 < noise:
        high = min(1.0, max(estimate + reach, hidden))
        if side < SMALLEST or high > 0.5:
            return Verdict(CANNOT_TELL, nothing, separation, apart)
        return Verdict(SHARE, Share(estimate, 0.0, high), separation, apart)
    if separation is None or separation < SEPARATED:
        return Verdict(CANNOT_TELL, nothing, separation, apart)
    shifted = float(np.mean([_share_of_shift(_joined(parts)) for parts in trainings]))
    high = min(1.0, max(estimate * (2 - separation), shifted) + reach)
    if high - low > 0.5:
        return Verdict(CANNOT_TELL, nothing, separation, apart)
    return Verdict(SHARE, Share(estimate, low, high), separation, apart)


def _share_of_shift(part: Scored) -> float:
    """The share by moments if synthetic scores are spread like real ones: their shift widens the pool's scores.

    A share p shifted by a has the mean p a and the additional variance p (1 - p) a^2. Unlike BBE it does not assume
    that some real images look more real than any synthetic one.
    """
    shift = float(np.mean(part.pool) - np.mean(part.real))
    wider = max(0.0, float(np.var(part.pool) - np.var(part.real)))
    return shift**2 / (shift**2 + wider) if shift > 0 else 0.0


def _joined(parts: Sequence[Scored]) -> Scored:
    """The scores of all folds on one scale: an estimate for each fold would have few images."""
    scaled = [(standard_scores(p.real, p.real), standard_scores(p.pool, p.real), p.rows) for p in parts]
    return Scored(*(np.concatenate(column) for column in zip(*scaled, strict=True)))


def _apart(part: Scored) -> float:
    truth = np.repeat([False, True], [len(part.real), len(part.pool)])
    return auroc(np.concatenate([part.real, part.pool]), truth) or 0.5
