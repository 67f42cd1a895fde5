"""Class names and numbers of a source: exact first, similar only where one class fits, two readings refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from usb_rsmatch.data.sources.class_names import ClassIndex, label_range_problem
from usb_rsmatch.errors import UserError


@pytest.mark.parametrize("classes", [tuple("ABCabc"), ("C", "C++"), ("0.5", "05"), ("B", "B+", "B-")])
def test_classes_that_differ_only_in_case_or_punctuation_stay_apart(classes: tuple[str, ...]) -> None:
    index = ClassIndex(classes)
    assert index.of_names(classes, "x").tolist() == list(range(len(classes))) and not index.notes


def test_a_similar_name_is_noted_and_an_ambiguous_one_is_refused() -> None:
    index = ClassIndex(("T-shirt/top", "dog"))
    assert index.of_names(["t_shirt_top", "dog"], "x").tolist() == [0, 1]
    assert index.notes == ["x: 't_shirt_top' is read as the class 'T-shirt/top'"]
    with pytest.raises(UserError, match=r"class name 'c' could be 'C' or 'C\+\+'"):
        ClassIndex(("C", "C++")).of_names(["c"], "x")
    with pytest.raises(UserError, match="'B-' and 'B' would both become the class 'B'"):
        ClassIndex(("A", "B")).of_names(["B", "B-"], "x")


def test_a_mapping_is_followed_exactly_before_similar_names() -> None:
    index = ClassIndex(("cat", "dog"), mapping={"A": "dog", "a": "cat", "7": "dog"})
    assert index.of_names(["A", "a"], "x").tolist() == [1, 0]
    assert index.of_numbers(np.array([7, 0, -1]), "x").tolist() == [1, 0, -1]


def test_numbers_are_names_where_all_classes_are_numbers() -> None:
    classes = tuple(sorted(map(str, range(12))))  # 0, 1, 10, 11, 2, ...
    expected = [classes.index(str(number)) for number in range(12)]
    assert ClassIndex(classes).of_numbers(np.arange(12), "x").tolist() == expected
    floats = [f"{number}.0" for number in range(12)]
    assert ClassIndex(classes).of_names(floats, "x", numeric=True).tolist() == expected
    assert ClassIndex(("100", "200")).of_numbers(np.array([0, 1]), "x").tolist() == [0, 1]


@pytest.mark.parametrize(
    ("classes", "values"), [(("cat", "dog", "1"), [1]), (tuple(map(str, range(1, 11))), range(10))]
)
def test_a_number_with_two_readings_is_refused(classes: tuple[str, ...], values: list[int]) -> None:
    with pytest.raises(UserError, match="label 1 has two readings: as a name it is the class '1', as a position"):
        ClassIndex(classes).of_numbers(np.array(values), "x")


@pytest.mark.parametrize(("labels", "hint"), [([0, 1, 255], "255 often means unlabelled"), ([1, 2, 3], "begin at 1")])
def test_a_label_out_of_range_names_the_likely_cause(labels: list[int], hint: str) -> None:
    with pytest.raises(UserError, match=f"is out of range, the classes are 0 to 2 .*{hint}"):
        ClassIndex(("a", "b", "c")).of_numbers(np.array(labels), "x")


@pytest.mark.parametrize(
    ("labels", "problem"),
    [([0, 1, 2], None), ([1, 2, 3], "labels begin at 1"), ([0, 1, 255], "label 255"), (range(256), None), ([-1], None)],
)
def test_unusual_label_ranges_of_a_data_set(labels: list[int], problem: str | None) -> None:
    said = label_range_problem(np.array(labels), "x")
    assert said is None if problem is None else said is not None and problem in said


@given(st.lists(st.text(min_size=1, max_size=4), min_size=2, max_size=8, unique=True), st.randoms())
def test_exact_names_are_never_changed(names: list[str], random: object) -> None:
    import unicodedata

    classes = tuple({unicodedata.normalize("NFC", name): None for name in names})
    order = list(classes)
    random.shuffle(order)  # type: ignore[attr-defined]
    assert ClassIndex(classes).of_names(order, "x").tolist() == [classes.index(name) for name in order]


def test_classes_that_look_identical_are_refused() -> None:
    """In Unicode's two forms of an accent they would become one class, and the other would be empty."""
    with pytest.raises(UserError, match="two classes are both displayed as 'é'"):
        ClassIndex(["C", "e\u0301", "\u00e9"])


def test_names_that_are_no_class_are_noted_unless_they_are_mapped() -> None:
    names = ["airplane", "aeroplane", "aeroplane", "cat", "background", None]
    index = ClassIndex(("airplane", "cat"))
    assert index.of_names(names, "x").tolist() == [0, -1, -1, 1, -1, -1]
    (note,) = index.notes
    assert note.startswith(
        "x: 3 images have no class, as the data set lacks 'aeroplane', 'background'; give the source"
    )
    mapped = ClassIndex(("airplane", "cat"), mapping={"aeroplane": "airplane", "background": None})
    assert mapped.of_names(names, "x").tolist() == [0, 0, 0, 1, -1, -1] and mapped.notes == []
