"""Counter-based random numbers and orders: pure functions of (seed, position), independent of workers and resumes."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

# The constants of SplitMix64: Steele, Lea & Flood, "Fast splittable pseudorandom number generators" (OOPSLA 2014).
_GOLDEN, _MIX_1, _MIX_2 = map(np.uint64, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_27, _30, _31, _40 = map(np.uint64, (27, 30, 31, 40))

# Each use of random numbers has its own number, the argument `view` below. New numbers are added only here.
UNLABELED = range(8)  # the views of an unlabelled image, in the order of its batch
LABELED_VIEW, LABELED_STRONG_VIEW = 8, 10  # the second for DeFixMatch only
QUARTER_TURN = 9  # ReMixMatch's rotation
QUEUE_VIEW, QUEUE_DRAW = 16, 17  # the view of a mined image, and the choice of that image
FAKE_DRAW = 18  # principal components of a pseudo-fake
SECOND_VIEW = 24  # OpenMatch's second weak view
OUTLIER_VIEW = 25  # an image of SCOMatch's queue
ROTATION_VIEW = 26  # CRMatch's rotated image


def derive(seed: int, *names: int | str) -> int:
    """A stable 63-bit number for (seed, names), equal on every machine and Python version."""
    text = "\x1f".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(seed: int, *names: int | str) -> np.random.Generator:
    """A separate counter-based generator for (seed, names): for splits, choices and orders."""
    return np.random.Generator(np.random.Philox(key=derive(seed, *names)))


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser on uint64 arrays, whose multiplication wraps modulo 2^64."""
    x = (x ^ (x >> _30)) * _MIX_1
    x = (x ^ (x >> _27)) * _MIX_2
    return x ^ (x >> _31)


def uniforms(seed: int, positions: np.ndarray | Tensor, view: int, n: int) -> Tensor:
    """`n` uniform numbers for each position, each a pure function of (seed, position, view, draw number).

    `positions` is int64 [B] on the host. Returns float32 [B, n] on the host, in [0, 1) with 24 random bits. Computed by
    NumPy, which takes a third of torch's time for so few numbers.
    """
    stream = np.uint64(derive(seed, "view", view))
    state = _mix(np.asarray(positions).astype(np.uint64) + stream)
    bits = _mix(state[:, None] + np.arange(1, n + 1, dtype=np.uint64) * _GOLDEN)
    return torch.from_numpy((bits >> _40).astype(np.float32) * np.float32(1.0 / (1 << 24)))


class Order:
    """The sample at each position of an endless stream: a new permutation for every epoch, indexed directly."""

    def __init__(self, seed: int, stream: str, size: int) -> None:
        if size <= 0:
            raise ValueError(f"an order needs at least one sample, got {size}")
        self.seed, self.stream, self.size = seed, stream, size
        self._permutations: dict[int, np.ndarray] = {}

    def _permutation(self, epoch: int) -> np.ndarray:
        if epoch not in self._permutations:
            if len(self._permutations) >= 4:  # a batch can span two epochs, a prefetching loader one more
                self._permutations.pop(min(self._permutations))
            self._permutations[epoch] = generator(self.seed, "order", self.stream, epoch).permutation(self.size)
        return self._permutations[epoch]

    def index(self, positions: np.ndarray) -> np.ndarray:
        """Indices int64 of the samples at `positions` (int64, any shape)."""
        positions = np.asarray(positions, dtype=np.int64)
        epochs, offsets = np.divmod(positions, self.size)
        indices = np.empty_like(positions)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            indices[here] = self._permutation(int(epoch))[offsets[here]]
        return indices


@contextlib.contextmanager
def seeded_globals(seed: int, position: int, view: int) -> Iterator[None]:
    """A context that seeds the global CPU generators of Python, NumPy and torch for one view of one sample.

    Their previous states are restored afterwards.
    """
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
