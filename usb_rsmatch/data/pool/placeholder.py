"""A pool of black placeholder images: enough to build a run's networks when its images are not available."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from usb_rsmatch.data.pool.image_set import ImageSet, real_images
from usb_rsmatch.data.pool.pool import HybridPool
from usb_rsmatch.data.sources.dataset_registry import DataSpec


def placeholder_pool(
    spec: DataSpec, classes: Sequence[str], size: int, counts: Mapping[str, Sequence[int]]
) -> HybridPool:
    """A pool of black images, `size` px a side, that takes no memory.

    `counts` holds the images per class of the parts "labeled", "unlabeled" and "test"; a missing part has one image of
    each class.
    The networks and the sizes of an algorithm's statistics depend on these numbers alone.
    """

    def part(name: str) -> ImageSet:
        labels = np.repeat(np.arange(len(classes)), counts.get(name, [1] * len(classes)))
        black = np.broadcast_to(np.uint8(0), (len(labels), size, size, spec.channels))
        return real_images(black, labels, name == "labeled")

    labeled, unlabeled, test = (part(name) for name in ("labeled", "unlabeled", "test"))
    return HybridPool(spec, tuple(classes), labeled, unlabeled, validation=None, test=test)


def placeholder_from_manifest(manifest: Mapping[str, Any]) -> HybridPool | None:
    """The placeholder of the pool that a `manifest.json` describes; None if the manifest lacks what is needed.

    Images of unknown class are counted as images of the first class: only their number matters.
    """
    try:
        view, shape, classes = manifest["view"], manifest["image_shape"], list(map(str, manifest["classes"]))
        mean, std = (tuple(map(float, view[name])) for name in ("mean", "std"))
        spec = DataSpec(str(manifest["dataset"]), mean, std, bool(view["flip"]), int(shape[0]))
        counts = {}
        for name, part in manifest["parts"].items():
            numbers = [int(part["by_class"][c]) for c in classes]
            counts[name] = [numbers[0] + int(part["count"]) - sum(numbers), *numbers[1:]]
    except (KeyError, TypeError, ValueError, IndexError):
        return None
    return placeholder_pool(spec, classes, int(shape[0]), counts)
