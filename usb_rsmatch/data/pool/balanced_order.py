"""Orders in which every prefix is balanced: over classes, over generators, over sources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from usb_rsmatch import counter_rng


def interleave(sizes: Sequence[int]) -> np.ndarray:
    """Group numbers int64 [sum(sizes)] of which every prefix holds the groups in proportion to their sizes.

    Group g's i-th member stands at (i + 1/2) / sizes[g], so a prefix strays from proportion by half a member
    a group.
    """
    groups = np.repeat(np.arange(len(sizes)), sizes)
    if sum(n > 0 for n in sizes) <= 1:  # nothing to interleave
        return groups
    share = np.concatenate([(np.arange(n) + 0.5) / n for n in sizes if n] or [np.empty(0)])
    return groups[np.lexsort((groups, share))]


def merge(orders: Sequence[np.ndarray]) -> np.ndarray:
    """Several orders as one, each kept and all in proportion to their lengths at every prefix."""
    groups = interleave([len(order) for order in orders])
    merged = np.empty(len(groups), dtype=np.int64)
    for number, order in enumerate(orders):
        merged[groups == number] = order
    return merged


def balanced_order(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random order of labels [N] of which every prefix holds the classes equally often, give or take one.

    A class that runs out leaves its turns to the others; images of unknown class (-1) take turns as one
    class.
    """
    shuffled = rng.permutation(len(labels))
    drawn = labels[shuffled]
    if len(labels) and labels.min() >= -(2**15) and labels.max() < 2**15:
        drawn = drawn.astype(np.int16)  # which NumPy sorts in one pass
    by_class = np.argsort(drawn, kind="stable")
    ordered = drawn[by_class]
    starts = np.searchsorted(ordered, ordered)  # where each class begins
    turn = np.empty(len(labels), dtype=np.int64)
    turn[by_class] = np.arange(len(labels)) - starts
    return shuffled[np.argsort(turn, kind="stable")]


def draw_order(
    labels: np.ndarray,
    generator: np.ndarray,
    generators: Sequence[str],
    seed: int,
    limits: Mapping[str, int] | None = None,
) -> np.ndarray:
    """The order int64 [N] in which a source's images are drawn: generators in proportion, classes balanced.

    It is a function of the seed, the generators' names and the images' own order; smaller draws are prefixes
    of larger ones. `limits` bounds the images of the generators that it names and leaves out the others.
    """
    orders = []
    for number, name in enumerate(generators):
        members = np.flatnonzero(generator == number)
        rng = counter_rng.generator(seed, "synthetic", name)
        order = members[balanced_order(labels[members], rng)]
        orders.append(order if limits is None else order[: limits.get(name, 0)])
    return merge(orders)
