"""The plan: however it is cut into shards, every image is made once, in the same batch, under the same name."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from usb_rsmatch.data.sources.class_names import plain
from usb_rsmatch.errors import UserError
from usb_rsmatch.synthesis.plan import Plan, folder_names

NAMES = st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=8, unique=True)


@given(st.integers(1, 200), st.integers(1, 20), st.integers(1, 5), st.integers(1, 7), st.integers(1, 6))
def test_shards_make_every_image_once(count: int, batch: int, group: int, classes: int, shards: int) -> None:
    plan = Plan(tuple("abcdefg"[:classes]), tuple(range(classes)), count, batch, group)
    groups = [g for part in range(shards) for g in plan.groups_of_shard(f"{part + 1}/{shards}")]
    batches = [b for g in groups for b in plan.batches_of(g)]
    assert sorted(batches) == list(range(len(plan)))
    items = [item for b in sorted(batches) for item in plan.items(b)]
    assert len(items) == len({item.file for item in items}) == count
    np.testing.assert_array_equal([item.label for item in items], plan.labels())
    counts = np.bincount(plan.labels(), minlength=classes)
    assert counts.max() - counts.min() <= 1
    for label in range(classes):
        assert [item.ordinal for item in items if item.label == label] == list(range(counts[label]))


@given(NAMES)
def test_every_class_has_a_folder_of_its_own_that_no_file_system_refuses(names: list[str]) -> None:
    folders = folder_names(tuple(names))
    assert len({folder.casefold() for folder in folders}) == len(names)
    for folder in folders:
        assert folder and not folder.startswith((".", "__")) and not set(folder) & set('/\\:*?"<>|\0')


def test_plain_names_stay_and_odd_ones_still_name_their_class() -> None:
    assert folder_names(("cat", "Ankle boot", "n02123045")) == ("cat", "Ankle boot", "n02123045")
    (garment,) = folder_names(("T-shirt/top",))
    assert "/" not in garment and plain(garment) == plain("T-shirt/top")


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2"])
def test_a_shard_that_there_is_not_is_refused(shard: str) -> None:
    with pytest.raises(UserError, match="I/N"):
        Plan(("a",), (0,), 4, 2).groups_of_shard(shard)
