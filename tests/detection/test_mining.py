"""The class-wise ranking against a plain-Python window."""

from __future__ import annotations

import math
from collections import deque

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from usb_rsmatch.detection.mining import FEWEST, WINDOW, ClasswiseRanking

batches = st.lists(
    st.lists(st.tuples(st.sampled_from([0.1, 0.25, 0.5, 0.9]), st.integers(0, 2)), min_size=1, max_size=20), max_size=12
)


@settings(max_examples=60)
@given(batches, st.booleans())
def test_ranks_equal_plain_python(stream: list[list[tuple[float, int]]], classwise: bool) -> None:
    ranking, window = ClasswiseRanking(3, classwise), deque(maxlen=WINDOW * 3)
    for number, batch in enumerate(stream):
        if number == len(stream) // 2:  # a restored ranking goes on alike
            restored = ClasswiseRanking(3, classwise)
            restored.load_state_dict(ranking.state_dict())
            ranking = restored
        scores, classes = (torch.tensor(column) for column in zip(*batch, strict=True))
        window.extend((torch.tensor(s).item(), c if classwise else 0) for s, c in batch)
        expected = []
        for score, label in batch:
            same = [s for s, c in window if c == (label if classwise else 0)]
            at_or_below = sum(s <= torch.tensor(score).item() for s in same)
            expected.append(at_or_below / len(same) if len(same) >= FEWEST else 0.0)
        ranks = ranking.rank(scores, classes)
        assert all(math.isclose(a, b, abs_tol=1e-6) for a, b in zip(ranks.tolist(), expected, strict=True))


def test_a_batch_larger_than_the_window_keeps_its_end() -> None:
    ranking = ClasswiseRanking(1)
    ranks = ranking.rank(torch.arange(50.0), torch.zeros(50, dtype=torch.int64))
    assert sorted(ranking.scores.tolist()) == list(range(50 - WINDOW, 50))
    assert ranks[-1] == 1.0


def test_a_state_of_the_first_format_is_taken_over() -> None:
    """It was a ring with the place of its oldest score."""
    ranking = ClasswiseRanking(1)
    ring = torch.arange(float(WINDOW)).roll(5)  # the oldest, 0, stands at place 5
    ranking.load_state_dict({"scores": ring, "classes": torch.zeros(WINDOW, dtype=torch.int64), "position": 5})
    ranking.rank(torch.tensor([100.0]), torch.tensor([0]))
    assert ranking.scores.tolist() == [*range(1, WINDOW), 100]
