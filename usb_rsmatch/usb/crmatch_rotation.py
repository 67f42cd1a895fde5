"""CRMatch's rotated images as a function of the step, instead of its own loader, which would restart on resume."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from usb_rsmatch.counter_rng import ROTATION_VIEW, Order
from usb_rsmatch.data.views.batched import WHOLE, Share, positions_of


class RotatedBatches:
    """An endless iterator over weak views of the pool's images, rotated by 0, 90, 180 and 270 degrees.

    `step()` returns the training step of the next batch. A batch is four views [B, 3, S, S] and their labels int64
    [B, 4], as CRMatch's own loader returns them (`algorithms/crmatch/crmatch.py:33-62`).
    """

    def __init__(self, dataset: Any, batch_size: int, step: Callable[[], int], share: Share = WHOLE) -> None:
        self.dataset, self.batch_size, self.step, self.share = dataset, batch_size, step, share
        self.order = Order(dataset.seed, "rotation", len(dataset))

    def __iter__(self) -> Iterator[list[Tensor]]:
        return self

    def __next__(self) -> list[Tensor]:
        positions = positions_of(self.step(), self.batch_size, self.share)
        views = self.dataset.weak_views(self.order.index(positions), positions, ROTATION_VIEW)
        turned = [views.rot90(quarters, (2, 3)) for quarters in range(4)]
        return [*turned, torch.arange(4).expand(len(positions), 4)]


@contextlib.contextmanager
def without_usb_rotation_loader(algorithm: Any) -> Iterator[None]:
    """A context that keeps CRMatch from building its own loader, which cannot read grey images and starts workers."""
    rotates = getattr(algorithm, "use_rot", None)
    if not rotates:
        yield
        return
    algorithm.use_rot = False
    try:
        yield
    finally:
        algorithm.use_rot = rotates
