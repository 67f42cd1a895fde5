"""Orders whose prefixes are balanced, for all sizes that hypothesis thinks of."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from usb_rsmatch.data.pool.balanced_order import balanced_order, draw_order, interleave, merge

sizes = st.lists(st.integers(0, 40), min_size=1, max_size=6)
labels = st.lists(st.integers(-1, 4), max_size=60).map(lambda values: np.array(values, dtype=np.int64))


@given(sizes)
def test_every_prefix_is_in_proportion(sizes: list[int]) -> None:
    groups = interleave(sizes)
    assert np.bincount(groups, minlength=len(sizes)).tolist() == sizes
    total = sum(sizes)
    for k in range(1, total + 1):
        counts = np.bincount(groups[:k], minlength=len(sizes))
        share = np.array(sizes) * k / total
        assert np.abs(counts - share).max() <= 0.5 + len(sizes) / 2


@given(sizes)
def test_merged_orders_keep_their_own(sizes: list[int]) -> None:
    orders = [np.arange(100 * g, 100 * g + n) for g, n in enumerate(sizes)]
    merged = merge(orders)
    for g, order in enumerate(orders):
        assert merged[(merged >= 100 * g) & (merged < 100 * g + 100)].tolist() == order.tolist()


@given(labels, st.integers(0, 99))
def test_every_prefix_holds_the_classes_equally(labels: np.ndarray, seed: int) -> None:
    order = balanced_order(labels, np.random.default_rng(seed))
    assert sorted(order) == list(range(len(labels)))
    sizes = {c: int((labels == c).sum()) for c in np.unique(labels)}
    for k in range(len(order) + 1):
        counts = {c: int((labels[order[:k]] == c).sum()) for c in sizes}
        most = max(counts.values(), default=0)
        for c, n in counts.items():
            assert n >= min(most - 1, sizes[c])


@given(labels, st.integers(0, 2**31))
def test_draws_depend_on_the_seed_alone(labels: np.ndarray, seed: int) -> None:
    generator = (np.arange(len(labels)) % 3).astype(np.int16)
    names = ("a", "b", "c")
    order = draw_order(labels, generator, names, seed)
    assert sorted(order) == list(range(len(labels)))
    assert order.tolist() == draw_order(labels, generator, names, seed).tolist()


def test_other_seeds_draw_others() -> None:
    labels, generator = np.arange(100) % 10, np.zeros(100, dtype=np.int16)
    first, second = (draw_order(labels, generator, ("g",), seed)[:20] for seed in (0, 1))
    assert set(first) != set(second)


@given(st.integers(0, 20), st.integers(0, 20))
def test_limits_bound_generators(first: int, second: int) -> None:
    labels, generator = np.arange(60) % 5, (np.arange(60) % 3).astype(np.int16)
    order = draw_order(labels, generator, ("a", "b", "c"), 0, {"a": first, "c": second})
    assert np.bincount(generator[order], minlength=3).tolist() == [first, 0, second]


def test_a_name_derived_from_the_path_does_not_change_the_order() -> None:
    labels, generator = np.arange(60) % 3, np.zeros(60, dtype=np.int64)
    first = draw_order(labels, generator, ["old"], 0, unnamed="old")
    assert np.array_equal(first, draw_order(labels, generator, ["new"], 0, unnamed="new"))
    assert not np.array_equal(first, draw_order(labels, generator, ["new"], 0))
