"""Drawing orders in which every prefix is balanced over classes, generators and sources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from usb_rsmatch import counter_rng


def interleave(sizes: Sequence[int]) -> np.ndarray:
    """Group numbers int64 [sum(sizes)]; every prefix holds the groups in proportion to their sizes.

    Member i of group g has the position (i + 1/2) / sizes[g], so a prefix deviates from the exact proportion by at
    most half a member per group.
    """
    groups = np.repeat(np.arange(len(sizes)), sizes)
    if sum(n > 0 for n in sizes) <= 1:  # nothing to interleave
        return groups
    share = np.concatenate([(np.arange(n) + 0.5) / n for n in sizes if n] or [np.empty(0)])
    return groups[np.lexsort((groups, share))]


def merge(orders: Sequence[np.ndarray]) -> np.ndarray:
    """Merge several orders: each keeps its own order, and every prefix holds them in proportion to their lengths."""
    groups = interleave([len(order) for order in orders])
    merged = np.empty(len(groups), dtype=np.int64)
    for number, order in enumerate(orders):
        merged[groups == number] = order
    return merged


def balanced_order(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random order of labels [N]; in every prefix the class counts differ by at most one.

    When a class is exhausted, the others continue; images of unknown class (-1) form one class.
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
    unnamed: str | None = None,
) -> np.ndarray:
    """The order int64 [N] in which a source's images are drawn: generators in proportion, classes balanced.

    The order depends on the seed, the generators' names and the images' own order; a smaller draw is a prefix of a
    larger one. `limits` is the maximum number of images per generator; generators that it does not name get none.
    `unnamed` is a generator whose name was only derived from the path of its images: it counts as nameless, so that
    moving or renaming a folder does not change what is drawn.
    """
    orders = []
    for number, name in enumerate(generators):
        members = np.flatnonzero(generator == number)
        rng = counter_rng.generator(seed, "synthetic", "" if name == unnamed else name)
        order = members[balanced_order(labels[members], rng)]
        orders.append(order if limits is None else order[: limits.get(name, 0)])
    return merge(orders)
