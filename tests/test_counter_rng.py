"""Counter-based random numbers: pure functions of seed and position, uniform, independent of batch and order."""

from __future__ import annotations

import random

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from usb_rsmatch import counter_rng
from usb_rsmatch.counter_rng import Order, derive, generator, seeded_globals, uniforms
from usb_rsmatch.data.views.batched import UNLABELED_VIEWS

MASK = (1 << 64) - 1


def splitmix(state: int) -> int:
    """SplitMix64's finaliser in plain Python, from the paper."""
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
    return state ^ (state >> 31)


@given(st.integers(0, 2**31), st.integers(0, 2**40), st.integers(0, 20), st.integers(1, 8))
def test_uniforms_equal_plain_python(seed: int, position: int, view: int, n: int) -> None:
    drawn = uniforms(seed, torch.tensor([position]), view, n)[0].tolist()
    state = splitmix((position + derive(seed, "view", view)) & MASK)
    expected = [(splitmix((state + i * 0x9E3779B97F4A7C15) & MASK) >> 40) / 2**24 for i in range(1, n + 1)]
    assert drawn == expected


def test_no_two_uses_have_the_same_number() -> None:
    numbers = [value for name, value in vars(counter_rng).items() if name.endswith(("_VIEW", "_DRAW", "_TURN"))]
    numbers += counter_rng.UNLABELED
    assert len(numbers) >= 16 and len(set(numbers)) == len(numbers)
    assert max(map(len, UNLABELED_VIEWS.values())) <= len(counter_rng.UNLABELED)


def test_modules_take_their_numbers_from_the_table() -> None:
    """Every name ending in _VIEW, _DRAW or _TURN in any module has the value that `counter_rng` gives it."""
    import importlib
    import pkgutil

    import usb_rsmatch

    for module in pkgutil.walk_packages(usb_rsmatch.__path__, "usb_rsmatch."):
        if module.name.endswith("__main__") or ".config_data" in module.name:
            continue
        for name, value in vars(importlib.import_module(module.name)).items():
            if name.endswith(("_VIEW", "_DRAW", "_TURN")) and isinstance(value, int):
                assert getattr(counter_rng, name, None) == value, f"{module.name}.{name}"


def test_uniforms_are_uniform_and_uncorrelated() -> None:
    drawn = uniforms(0, torch.arange(50_000), 0, 4).double().numpy()
    assert abs(drawn.mean() - 0.5) < 0.003 and abs(drawn.var() - 1 / 12) < 0.002
    counts = np.histogram(drawn, bins=64, range=(0, 1))[0]
    chi2 = ((counts - drawn.size / 64) ** 2 / (drawn.size / 64)).sum()
    assert chi2 < 112  # 99.99 % of a chi-square with 63 degrees of freedom
    other = uniforms(0, torch.arange(50_000), 1, 4).double().numpy()
    following = drawn[1:, 0], drawn[:-1, 0]
    for a, b in ((drawn[:, 0], drawn[:, 1]), (drawn[:, 0], other[:, 0]), following):
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.02


@settings(max_examples=50)
@given(st.integers(0, 1000), st.integers(1, 50), st.lists(st.integers(0, 500), min_size=1, max_size=40))
def test_order_is_a_permutation_per_epoch_whatever_the_batches(seed: int, size: int, positions: list[int]) -> None:
    order = Order(seed, "unlabeled", size)
    for epoch in (0, 3):
        assert sorted(order.index(np.arange(epoch * size, (epoch + 1) * size))) == list(range(size))
    at_once = order.index(np.array(positions))
    one_by_one = [int(Order(seed, "unlabeled", size).index(np.array([p]))[0]) for p in positions]
    assert at_once.tolist() == one_by_one


def test_epochs_seeds_and_streams_differ() -> None:
    first = Order(0, "labeled", 1000).index(np.arange(2000))
    assert (first[:1000] != first[1000:]).any()
    assert (first != Order(1, "labeled", 1000).index(np.arange(2000))).any()
    assert (first != Order(0, "unlabeled", 1000).index(np.arange(2000))).any()


def test_global_generators_are_seeded_inside_and_restored_after() -> None:
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    expected = random.random(), np.random.rand(), torch.rand(1).item()
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    draws = []
    for _ in range(2):
        with seeded_globals(0, 7, 0):
            draws.append((random.random(), np.random.rand(), torch.rand(1).item()))
    with seeded_globals(0, 8, 0):
        assert random.random() != draws[0][0]
    assert draws[0] == draws[1]
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected


def test_named_generators_are_stable() -> None:
    """Compared with recorded numbers: a change here would silently change every split."""
    assert derive(0, "split", "digits") == 3124504854411179849
    assert generator(0, "split").integers(0, 1000, 4).tolist() == [125, 917, 115, 420]
