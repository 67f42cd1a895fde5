"""The estimated share of synthetic images among those of unknown provenance, in words."""

from __future__ import annotations

from typing import Any

ASSUMPTIONS = (
    "The share of synthetic images among those of unknown provenance is estimated from the detector's scores of them "
    "and of real images that it was not trained on: the validation images, or with too few of them the test images. "
    "It assumes that the real images of unknown provenance come from the same source as these. The interval (95 %) is "
    "a bootstrap over images, widened for the variation between trainings. It does not cover that the detector was "
    "trained on the images of unknown provenance, and images of a generator that the detector misses are not counted."
)


def share_text(report: dict[str, Any]) -> str:
    """The estimate in words: `31.2 % (95 %: 25.0 to 37.4 %) of 800 images`."""
    if report["estimate"] is None:
        return f"not estimated for {report['images']} images: {report['reason']}"
    low, high = (100 * report[end] for end in ("low", "high"))
    return f"{100 * report['estimate']:.1f} % (95 %: {low:.1f} to {high:.1f} %) of {report['images']} images"
