"""The tally of pseudo-labels against plain Python over arbitrary batches."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from usb_rsmatch.detection.pseudo_label_statistics import PseudoLabelTally

image = st.tuples(st.integers(0, 2), st.integers(-1, 3), st.integers(0, 3), st.floats(0, 1, width=32))
batches = st.lists(st.lists(image, min_size=1, max_size=9), max_size=4)


def fill(tally: PseudoLabelTally, batch: list[tuple[int, int, int, float]], soft: bool) -> None:
    provenance, labels, pseudo, mask = (torch.tensor(column) for column in zip(*batch, strict=True))
    tally.add(provenance, labels, torch.eye(4)[pseudo] if soft else pseudo, mask)


@given(batches=batches, soft=st.booleans())
def test_it_counts_what_plain_python_counts(batches: list[list[tuple[int, int, int, float]]], soft: bool) -> None:
    tally = PseudoLabelTally()
    for batch in batches:
        fill(tally, batch, soft)
    images = [image for batch in batches for image in batch]
    for part, report in tally.report().items():
        mine = [image for image in images if image[0] == ("real", "synthetic", "unknown").index(part)]
        known = sum(mask for _, label, _, mask in mine if label >= 0)
        right = sum(mask for _, label, pseudo, mask in mine if label == pseudo)
        assert report["utilisation"] == (pytest.approx(sum(m for *_, m in mine) / len(mine)) if mine else None)
        if part == "unknown":
            assert mine and "accuracy" not in report
        else:
            assert report["accuracy"] == (pytest.approx(right / known) if known else None)
    assert ("unknown" in tally.report()) == any(image[0] == 2 for image in images)
    assert tally.report() == tally.report()
    fill(tally, [(0, 1, 1, 1.0)], soft)  # counting starts anew
    assert tally.report()["real"] == {"utilisation": 1.0, "accuracy": 1.0}


def test_its_state_goes_on() -> None:
    one, other = PseudoLabelTally(), PseudoLabelTally()
    fill(one, [(0, 1, 1, 1.0), (1, 2, 0, 0.5)], soft=False)
    other.load_state_dict(one.state_dict())
    fill(one, [(0, 0, 1, 1.0)], soft=False)
    fill(other, [(0, 0, 1, 1.0)], soft=False)
    assert (
        one.report()
        == other.report()
        == {
            "real": {"utilisation": 1.0, "accuracy": 0.5},
            "synthetic": {"utilisation": 0.5, "accuracy": 0.0},
        }
    )


def test_a_state_without_images_of_unknown_provenance_is_read() -> None:
    """Checkpoints of before them have two rows."""
    tally, older = PseudoLabelTally(), PseudoLabelTally()
    fill(older, [(0, 1, 1, 1.0), (1, 2, 2, 0.5)], soft=False)
    state = older.state_dict()
    tally.load_state_dict({**state, "sums": state["sums"][:2]})
    assert tally.report() == older.report()
