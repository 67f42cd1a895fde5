"""CSQueue, the class-wise queue of mined synthetic images: it stores pool indices and scores, no pixels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from usb_rsmatch.errors import UserError


class ClasswiseSyntheticQueue:
    """A first-in first-out queue for each class, of pool indices and their scores.

    Source: CSQueue of RSMatch (arXiv 2405.16930), as third parties describe it; storing indices, moving entries
    between classes and balanced sampling are our choice. An index is in at most one queue.

    `indices` int64 [Q, L] and `scores` float32 [Q, L] hold one queue per row, the newest entry last; empty places, at
    the front, have index -1. No shape depends on the content, so that no step waits for a GPU.
    """

    def __init__(
        self, num_classes: int, length: int, classwise: bool = True, device: torch.device | str = "cpu"
    ) -> None:
        """`length` entries per class; with `classwise=False` one queue of `num_classes * length`, class 0."""
        if num_classes < 1 or length < 1:
            raise UserError(f"a queue needs at least one class and one entry, got {num_classes} and {length}")
        self.num_classes, self.length, self.classwise = num_classes, length, classwise
        shape = (num_classes, length) if classwise else (1, num_classes * length)
        self.indices = torch.full(shape, -1, dtype=torch.int64, device=device)
        self.scores = torch.zeros(shape, device=device)

    def to(self, device: torch.device | str) -> None:
        """Move the entries to a device."""
        self.indices, self.scores = self.indices.to(device), self.scores.to(device)

    def __len__(self) -> int:
        """The number of all entries; waits for a GPU."""
        return int(self.counts().sum())

    def counts(self) -> Tensor:
        """Entries of each queue, int64 [Q]."""
        return (self.indices >= 0).sum(1)

    def push(self, indices: Tensor, classes: Tensor, scores: Tensor, chosen: Tensor | None = None) -> None:
        """Append images `indices` int64 [B] to the queues of `classes` int64 [B] with `scores` float [B].

        Only images marked by `chosen` bool [B] enter (all without it); the others are removed from their queue. An
        image that is already queued moves to the back of its new queue with its new score; if it occurs twice in the
        batch, the last occurrence counts. Entries beyond a queue's length are removed at the front.
        """
        (queues, capacity), device = self.indices.shape, self.indices.device
        chosen = torch.ones_like(indices, dtype=torch.bool) if chosen is None else chosen
        if not self.classwise:
            classes = torch.zeros_like(classes)
        rows = torch.arange(queues, device=device)[:, None].expand(queues, capacity)
        all_indices = torch.cat([self.indices.flatten(), indices.to(device, torch.int64)])
        all_classes = torch.cat([rows.flatten(), classes.to(device, torch.int64)])
        all_scores = torch.cat([self.scores.flatten(), scores.detach().to(device, torch.float32)])
        all_chosen = torch.cat([torch.ones_like(rows, dtype=torch.bool).flatten(), chosen.to(device)])

        # The last occurrence of an index counts: in a stable sort, the one before another value.
        value, order = all_indices.sort(stable=True)
        last = value >= 0
        last[:-1] &= value[:-1] != value[1:]
        stays = torch.empty_like(last).scatter_(0, order, last) & all_chosen
        queue, order = torch.where(stays, all_classes, queues).sort(stable=True)  # oldest first within each queue
        from_back = torch.searchsorted(queue, queue, right=True) - torch.arange(len(queue), device=device)
        place = torch.where((queue < queues) & (from_back <= capacity), (queue + 1) * capacity - from_back, -1)
        self.indices, self.scores = (
            torch.full((queues * capacity + 1,), empty, dtype=values.dtype, device=device)
            .scatter_(0, place + 1, values[order])[1:]  # removed entries go to an extra place before the first
            .view(queues, capacity)
            for values, empty in ((all_indices, -1), (all_scores, 0.0))
        )

    def sample(self, n: int, uniforms: Tensor) -> Tensor:
        """`n` queued pool indices int64 [n], evenly distributed over the classes with entries; -1 if all are empty.

        A pure function of the queue and of `uniforms` float [n, 2] in [0, 1): the first number of row i selects
        the class within the i-th of n equal parts of the filled classes, the second selects the entry.
        """
        capacity, device = self.indices.shape[1], self.indices.device
        draws = uniforms.to(device, torch.float64, non_blocking=True)
        counts = self.counts()
        empty = counts == 0
        filled, number = empty.byte().argsort(stable=True), (~empty).sum()
        slot = (torch.arange(n, device=device) + draws[:, 0]) / n * number
        chosen = filled[torch.minimum(slot.long(), number - 1)]
        count = counts[chosen]
        place = (capacity - count + (draws[:, 1] * count).long()).clamp_(max=capacity - 1)
        return self.indices[chosen, place]

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values only, so that `torch.load(weights_only=True)` can load them.

        `indices` int64 [n], `classes` int64 [n] and `scores` float32 [n] of the entries, the oldest of each queue
        first.
        """
        indices, scores = self.indices.cpu(), self.scores.cpu()
        filled = indices >= 0
        return {
            "num_classes": self.num_classes,
            "length": self.length,
            "classwise": self.classwise,
            "indices": indices[filled],
            "classes": filled.nonzero()[:, 0],
            "scores": scores[filled],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the entries of `state` to this queue's device. UserError if it was saved with other settings."""
        for name in ("num_classes", "length", "classwise"):
            if state[name] != getattr(self, name):
                raise UserError(f"the saved queue has {name} {state[name]}, this one {getattr(self, name)}")
        self.indices = torch.full_like(self.indices, -1)
        self.scores = torch.zeros_like(self.scores)
        self.push(state["indices"], state["classes"], state["scores"])
