"""State as tensors and plain values: every type is restored exactly from a file that cannot execute code."""

from __future__ import annotations

import enum
import random
from collections import Counter, deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from usb_rsmatch.usb.state import capture, pack, restore, unpack

DTYPES = [np.bool_, np.uint8, np.int8, np.int16, np.int32, np.int64, np.uint32, np.float16, np.float32, np.float64]
ARRAYS = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
)
KEYS = st.one_of(st.integers(-9, 9), st.text(max_size=4), st.tuples(st.integers(0, 3), st.text(max_size=2)))
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    ARRAYS,
    ARRAYS.map(lambda array: torch.from_numpy(array.copy())),
    st.dictionaries(KEYS, st.integers(0, 9), max_size=3).map(Counter),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.lists(inner, max_size=3).map(lambda items: deque(items, maxlen=5)),
        st.dictionaries(KEYS, inner, max_size=3),
    ),
    max_leaves=8,
)


def same(first: Any, second: Any) -> bool:
    """Equal in type, shape, dtype and value; NaN equals NaN."""
    if type(first) is not type(second):
        return False
    if isinstance(first, torch.Tensor):
        return (
            first.dtype == second.dtype
            and torch.equal(first.isnan(), second.isnan())
            and same(first.nan_to_num().tolist(), second.nan_to_num().tolist())
            and first.shape == second.shape
        )
    if isinstance(first, np.ndarray):
        floats = first.dtype.kind == "f"
        return (
            first.dtype == second.dtype
            and first.shape == second.shape
            and bool(np.array_equal(first, second, equal_nan=floats))
        )
    if isinstance(first, dict):
        return list(first) == list(second) and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple, deque)):
        lengths = len(first) == len(second) and getattr(first, "maxlen", 0) == getattr(second, "maxlen", 0)
        return lengths and all(same(a, b) for a, b in zip(first, second, strict=True))
    return first == second or (first != first and second != second)


@settings(max_examples=150, deadline=None)
@given(VALUES)
def test_every_value_is_restored_from_a_file_loaded_with_weights_only(value: Any) -> None:
    import io

    file = io.BytesIO()
    torch.save(pack(value), file)
    file.seek(0)
    assert same(unpack(torch.load(file, weights_only=True)), value)


def test_packed_and_unpacked_values_are_copies() -> None:
    tensor, array = torch.zeros(3), np.zeros(3)
    kept = pack([tensor, array])
    tensor += 1
    array += 1
    first, second = unpack(kept), unpack(kept)
    first[0] += 5
    first[1] += 5
    assert second[0].sum() == 0 and second[1].sum() == 0


def test_packed_tensors_have_no_graph_and_numpy_scalars_become_plain_numbers() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    assert not pack(parameter * 2).requires_grad
    assert [type(pack(scalar)) for scalar in (np.float64(1), np.int32(1), np.bool_(True))] == [float, int, bool]


class Colour(enum.IntEnum):
    RED = 1


@pytest.mark.parametrize(
    "value",
    [object(), len, Colour.RED, np.array(["text"]), np.array([None]), np.datetime64("2024-01"), Path("a"), {1}, b"a"],
    ids=lambda value: type(value).__name__,
)
def test_values_without_a_plain_form_raise_a_type_error(value: Any) -> None:
    with pytest.raises(TypeError):
        pack(value)
    with pytest.raises(TypeError):
        pack({"inside": [value]})


def test_the_generators_of_python_and_numpy_are_restored() -> None:
    kept = pack([random.getstate(), np.random.get_state()])
    expected = random.random(), np.random.rand(3).tolist()
    python, numpy = unpack(kept)
    random.setstate(python)
    np.random.set_state(numpy)
    assert (random.random(), np.random.rand(3).tolist()) == expected


def test_capture_collects_the_state_and_restore_sets_it() -> None:
    owner = SimpleNamespace(
        count=3, means=torch.arange(3.0), seen=deque([1], maxlen=2), handle=open, _private=1, config={"lr": 0.1}
    )
    state = capture(owner, frozenset({"config"}))
    assert state.keys() == {"count", "means", "seen"}
    other = SimpleNamespace(count=0, means=torch.zeros(3, dtype=torch.float64), handle=len)
    restore(other, state)
    assert other.count == 3 and other.seen.maxlen == 2 and other.handle is len
    assert torch.equal(other.means, torch.arange(3.0))


def test_an_owner_s_own_state_dict_is_used() -> None:
    layer, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    restore(other, capture(layer))
    assert torch.equal(layer.weight, other.weight)
