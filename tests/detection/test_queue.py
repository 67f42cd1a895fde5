"""The class-wise queue against a plain-Python model of deques, over arbitrary histories."""

from __future__ import annotations

import io
from collections import Counter, deque
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from usb_rsmatch.detection.queue import ClasswiseSyntheticQueue
from usb_rsmatch.errors import UserError

CLASSES, LENGTH = 3, 4


class Model:
    """What the queue promises, one image at a time."""

    def __init__(self, num_classes: int, length: int, classwise: bool) -> None:
        self.classwise = classwise
        queues = num_classes if classwise else 1
        self.queues: list[deque[tuple[int, float]]] = [
            deque(maxlen=length if classwise else num_classes * length) for _ in range(queues)
        ]

    def push(self, entries: list[tuple[int, int, float]]) -> None:
        last = {index: (place, c, score) for place, (index, c, score) in enumerate(entries)}
        for queue in self.queues:
            kept = [entry for entry in queue if entry[0] not in last]
            queue.clear()
            queue.extend(kept)
        for index, (_, c, score) in sorted(last.items(), key=lambda item: item[1][0]):
            self.queues[c if self.classwise else 0].append((index, score))

    def push_chosen(self, entries: list[tuple[tuple[int, int, float], bool]]) -> None:
        last = {entry[0]: chosen for entry, chosen in entries}  # if an image is given twice, its last entry counts
        for queue in self.queues:
            kept = [entry for entry in queue if last.get(entry[0], True)]
            queue.clear()
            queue.extend(kept)
        final = {entry[0]: place for place, (entry, _) in enumerate(entries)}
        self.push([entry for place, (entry, chosen) in enumerate(entries) if chosen and final[entry[0]] == place])


index = st.integers(0, 15)
score = st.floats(0, 1, width=32)
entry = st.tuples(index, st.integers(0, CLASSES - 1), score)
operation = st.one_of(
    st.tuples(st.just("push"), st.lists(entry, max_size=12)),
    st.tuples(st.just("push_chosen"), st.lists(st.tuples(entry, st.booleans()), max_size=12)),
    st.tuples(st.just("reload"), st.none()),
)


def apply(queue: ClasswiseSyntheticQueue, name: str, argument: Any) -> ClasswiseSyntheticQueue:
    if name in ("push", "push_chosen"):
        entries, chosen = argument, None
        if name == "push_chosen":
            entries, chosen = [entry for entry, _ in argument], torch.tensor([c for _, c in argument], dtype=torch.bool)
        indices, classes, scores = zip(*entries, strict=True) if entries else ((), (), ())
        queue.push(torch.tensor(indices).long(), torch.tensor(classes).long(), torch.tensor(scores), chosen)
    else:
        buffer = io.BytesIO()
        torch.save(queue.state_dict(), buffer)
        buffer.seek(0)
        queue = ClasswiseSyntheticQueue(queue.num_classes, queue.length, queue.classwise)
        queue.load_state_dict(torch.load(buffer, weights_only=True))
    return queue


@settings(max_examples=300, deadline=None)
@given(classwise=st.booleans(), operations=st.lists(operation, max_size=12))
def test_any_history_gives_what_deques_give(classwise: bool, operations: list[tuple[str, Any]]) -> None:
    queue, model = ClasswiseSyntheticQueue(CLASSES, LENGTH, classwise), Model(CLASSES, LENGTH, classwise)
    for name, argument in operations:
        queue = apply(queue, name, argument)
        if name != "reload":
            getattr(model, name)(argument)
        for c, expected in enumerate(model.queues):
            mine = queue.indices[c] >= 0
            entries = zip(queue.indices[c, mine].tolist(), queue.scores[c, mine].tolist(), strict=True)
            assert list(entries) == list(expected)
        assert queue.counts().tolist() == [len(q) for q in model.queues]
        assert len(queue) == sum(map(len, model.queues))


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(0, LENGTH), min_size=CLASSES, max_size=CLASSES),
    n=st.integers(1, 24),
    seed=st.integers(0, 2**31),
)
def test_samples_are_balanced_pure_and_from_the_queue(sizes: list[int], n: int, seed: int) -> None:
    queue = ClasswiseSyntheticQueue(CLASSES, LENGTH)
    classes = torch.tensor([c for c, size in enumerate(sizes) for _ in range(size)], dtype=torch.int64)
    queue.push(100 * classes + torch.arange(len(classes)), classes, torch.ones(len(classes)))
    uniforms = torch.rand(n, 2, generator=torch.Generator().manual_seed(seed))
    uniforms[0] = 1 - 2**-24  # the largest number that a draw gives
    drawn = queue.sample(n, uniforms)
    assert torch.equal(drawn, queue.sample(n, uniforms.clone()))
    assert drawn.shape == (n,)
    if not sum(sizes):
        assert set(drawn.tolist()) == {-1}
        return
    assert set(drawn.tolist()) <= set(queue.indices.flatten().tolist()) - {-1}
    counts = Counter(int(i) // 100 for i in drawn)
    share = n / sum(size > 0 for size in sizes)
    for c, size in enumerate(sizes):
        assert abs(counts[c] - (share if size else 0)) < 2


def test_samples_are_uniform_within_a_class() -> None:
    queue = ClasswiseSyntheticQueue(2, 8)
    queue.push(torch.arange(11), torch.tensor([0] * 3 + [1] * 8), torch.rand(11))
    drawn = queue.sample(8000, torch.rand(8000, 2, generator=torch.Generator().manual_seed(0)))
    counts = np.bincount(drawn.numpy(), minlength=11)
    assert counts[:3].sum() == 4000
    assert chisquare(counts[:3]).pvalue > 1e-3 and chisquare(counts[3:]).pvalue > 1e-3


def test_scores_carry_no_gradient() -> None:
    queue = ClasswiseSyntheticQueue(2, 2)
    queue.push(torch.tensor([1, 2]), torch.tensor([0, 1]), torch.tensor([0.5, 0.9], requires_grad=True))
    assert not queue.scores.requires_grad


def test_an_image_that_is_not_chosen_again_leaves() -> None:
    queue = ClasswiseSyntheticQueue(2, 2)
    queue.push(torch.tensor([1, 2, 3]), torch.tensor([0, 1, 1]), torch.ones(3))
    queue.push(torch.tensor([2, 5]), torch.tensor([0, 0]), torch.ones(2), torch.tensor([False, True]))
    assert queue.indices.tolist() == [[1, 5], [-1, 3]]


def test_a_saved_state_is_a_copy_and_must_fit() -> None:
    queue = ClasswiseSyntheticQueue(2, 2)
    queue.push(torch.tensor([1, 2]), torch.tensor([0, 1]), torch.tensor([0.5, 0.6]))
    state = queue.state_dict()
    queue.push(torch.tensor([1, 3]), torch.tensor([0, 0]), torch.tensor([0.1, 0.7]))
    assert state["indices"].tolist() == [1, 2] and state["scores"][0] == 0.5
    with pytest.raises(UserError, match="length 2, this one 3"):
        ClasswiseSyntheticQueue(2, 3).load_state_dict(state)


def test_a_state_of_the_first_format_is_taken_over() -> None:
    """It held the entries of all queues in the order in which they came."""
    state = {
        "num_classes": 2,
        "length": 2,
        "classwise": True,
        "indices": torch.tensor([7, 3, 9]),
        "classes": torch.tensor([1, 0, 1]),
        "scores": torch.tensor([0.7, 0.3, 0.9]),
    }
    queue = ClasswiseSyntheticQueue(2, 2)
    queue.load_state_dict(state)
    assert queue.indices.tolist() == [[-1, 3], [7, 9]]
    torch.testing.assert_close(queue.scores, torch.tensor([[0.0, 0.3], [0.7, 0.9]]))
    again = queue.state_dict()
    assert again["indices"].tolist() == [3, 7, 9] and again["classes"].tolist() == [0, 1, 1]


@pytest.mark.parametrize(("classes", "length"), [(0, 4), (4, 0)])
def test_an_empty_queue_cannot_be_made(classes: int, length: int) -> None:
    with pytest.raises(UserError, match="at least one"):
        ClasswiseSyntheticQueue(classes, length)
