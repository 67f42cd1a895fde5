"""Random draws and order as pure functions of (seed, position): workers, batches and resumes change nothing."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

# The constants of SplitMix64 as signed 64-bit numbers: Steele, Lea & Flood, "Fast splittable pseudorandom number
# generators" (OOPSLA 2014).
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)

# Whoever draws for a position has a number of its own, the `view` below. A new one is added here and nowhere else.
UNLABELED = range(8)  # the views of an unlabelled image, in the order of its batch
LABELED_VIEW = 8
QUARTER_TURN = 9  # ReMixMatch's rotation
QUEUE_VIEW, QUEUE_DRAW = 16, 17  # a mined image seen again, and which one it is
FAKE_DRAW = 18  # principal components of a pseudo-fake
SECOND_VIEW = 24  # OpenMatch's second weak view
OUTLIER_VIEW = 25  # an image of SCOMatch's queue
ROTATION_VIEW = 26  # CRMatch's rotated image


def derive(seed: int, *names: int | str) -> int:
    """A stable 63-bit number for (seed, names), equal on every machine and Python version."""
    text = "\x1f".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(seed: int, *names: int | str) -> np.random.Generator:
    """A counter-based generator of its own for (seed, names): splits, choices, orders."""
    return np.random.Generator(np.random.Philox(key=derive(seed, *names)))


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift: torch's int64 shift keeps the sign, so the sign's copies are masked off."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64 tensors, where multiplication wraps modulo 2^64."""
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def uniforms(seed: int, positions: Tensor, view: int, n: int) -> Tensor:
    """`n` uniform numbers for each position, each a pure function of (seed, position, view, draw number).

    `positions` is int64 [B]; gives float32 [B, n] in [0, 1) with 24 random bits, on the device of `positions`.
    """
    stream = derive(seed, "view", view)
    draws = torch.arange(1, n + 1, device=positions.device, dtype=torch.int64) * _GOLDEN
    state = _mix(positions.to(torch.int64) + stream)
    bits = _mix(state[:, None] + draws[None, :])
    return _shift_right(bits, 40).to(torch.float32) * (1.0 / (1 << 24))


class Order:
    """Which sample stands at a position of an endless stream: a fresh permutation an epoch, indexed directly."""

    def __init__(self, seed: int, stream: str, size: int) -> None:
        if size <= 0:
            raise ValueError(f"an order needs at least one sample, got {size}")
        self.seed, self.stream, self.size = seed, stream, size
        self._permutations: dict[int, np.ndarray] = {}

    def _permutation(self, epoch: int) -> np.ndarray:
        if epoch not in self._permutations:
            if len(self._permutations) >= 4:  # a batch can span two epochs, a prefetcher one more
                self._permutations.pop(min(self._permutations))
            self._permutations[epoch] = generator(self.seed, "order", self.stream, epoch).permutation(self.size)
        return self._permutations[epoch]

    def index(self, positions: np.ndarray) -> np.ndarray:
        """Indices int64 of the samples standing at `positions` (int64, any shape)."""
        positions = np.asarray(positions, dtype=np.int64)
        epochs, offsets = np.divmod(positions, self.size)
        indices = np.empty_like(positions)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            indices[here] = self._permutation(int(epoch))[offsets[here]]
        return indices


@contextlib.contextmanager
def keyed_globals(seed: int, position: int, view: int) -> Iterator[None]:
    """Seed the global CPU generators of Python, NumPy and torch for one view of one sample; restore them after it."""
    key = derive(seed, "view", view, position)
    states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    random.seed(key)
    np.random.seed(key & 0xFFFFFFFF)
    torch.random.default_generator.manual_seed(key)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.random.set_rng_state(states[2])
