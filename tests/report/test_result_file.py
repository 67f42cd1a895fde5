"""Reading result files: the real schema in, one line for anything else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from usb_rsmatch.errors import UserError
from usb_rsmatch.report.result_file import read_result

Write = Callable[..., Path]
FIGURES = {"auroc": 0.97, "ap": 0.9, "fpr95": 0.1}


def test_every_field_is_read(write_result: Write) -> None:
    path = write_result("run", seed=3, accuracy__last=0.5, detection={**FIGURES, "by_generator": {"sd 1.4": FIGURES}})
    result = read_result(path)
    assert (result.seed, result.last, result.best, result.best_iteration) == (3, 0.5, 0.95, 600)
    assert result.auroc == 0.97 and result.detection_by_generator == {"sd 1.4": FIGURES}
    assert result.pool == (600, (("flow", 600),), 0) and result.share_synthetic == 0.5
    assert result.describe_pool() == "600 real + 600 synthetic (flow)"
    assert result.versions["torch"] == "2.14.1" and result.validation is None


def test_a_pool_of_one_kind_has_no_figures_of_detection(write_result: Write) -> None:
    figures = dict.fromkeys(FIGURES)
    pool = {"real": 1200, "synthetic": 0, "by_generator": {"flow": 0}}
    result = read_result(write_result("run", pool=pool, detection={**figures, "by_generator": {}}))
    assert result.auroc is None and result.describe_pool() == "1,200 real"


def test_memory_that_the_system_does_not_tell_is_none(write_result: Write) -> None:
    """Windows has no peak of a process that Python could ask for."""
    assert read_result(write_result("run", peak_memory_mib=None)).peak_memory_mib is None


def test_a_data_set_without_a_pool_is_read(write_result: Write) -> None:
    result = read_result(write_result("run", pool=None))
    assert result.pool == (0, (), 0) and result.describe_pool() == "USB's own" and result.share_synthetic == 0


def test_a_file_cut_off_anywhere_is_refused(write_result: Write) -> None:
    path = write_result("run", detection={**FIGURES, "by_generator": {}})
    whole = path.read_text().rstrip()
    for length in range(len(whole)):
        path.write_text(whole[:length])
        with pytest.raises(UserError, match="incomplete"):
            read_result(path)


def test_every_missing_field_is_named(write_result: Write) -> None:
    path = write_result("run", detection={**FIGURES, "by_generator": {"flow": FIGURES}})
    whole = json.loads(path.read_text())

    def fields(content: dict[str, Any], at: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
        inner = [
            place for key, value in content.items() if isinstance(value, dict) for place in fields(value, (*at, key))
        ]
        return [*((*at, key) for key in content), *inner]

    # names of generators and packages, and what later versions added
    optional = {"flow", "torch", "semilearn", "device", "threads", "finished"}
    for place in fields(whole):
        content = json.loads(json.dumps(whole))
        parent = content
        for key in place[:-1]:
            parent = parent[key]
        del parent[place[-1]]
        path.write_text(json.dumps(content))
        if place[-1] not in optional:
            with pytest.raises(UserError) as error:
                read_result(path)
            assert place[-1] in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"accuracy__last": 93.1}, "accuracy.last cannot be 93.1"),
        ({"accuracy__last": "0.9"}, "accuracy.last"),
        ({"accuracy__last": float("nan")}, "accuracy.last cannot be nan"),
        ({"accuracy__last": True}, "accuracy.last"),
        ({"accuracy__best_iteration": 5000}, "past the last iteration"),
        ({"seed": -1}, "seed cannot be -1"),
        ({"seed": 0.5}, "seed cannot be 0.5"),
        ({"algorithm": ""}, "algorithm cannot be ''"),
        ({"pool__synthetic": 5}, "not the sum"),
        ({"pool__by_generator": [1]}, "pool.by_generator is not a mapping"),
        ({"detection": {**FIGURES, "auroc": 1.5, "by_generator": {}}}, "detection.auroc cannot be 1.5"),
        ({"config_sha256": "abc"}, "not a SHA-256"),
        ({"versions": {}}, "does not contain usb_rsmatch"),
        ({"time": None}, "time is not a mapping"),
        ({"peak_memory_mib": 10**400}, "peak_memory_mib cannot be inf"),
        ({"seed": 10**400}, "seed cannot be inf"),
        ({"dataset": ["a\nb"]}, "dataset cannot be"),
    ],
)
def test_edited_files_are_refused(write_result: Write, changes: dict[str, Any], complaint: str) -> None:
    path = write_result("run")
    content = json.loads(path.read_text())
    for name, value in changes.items():
        *places, last = name.split("__")
        parent = content
        for place in places:
            parent = parent[place]
        parent[last] = value
    path.write_text(json.dumps(content))
    with pytest.raises(UserError) as error:
        read_result(path)
    assert complaint in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_best_under_the_last_is_refused(write_result: Write) -> None:
    path = write_result("run")
    path.write_text(path.read_text().replace('"best": 0.95', '"best": 0.1'))
    with pytest.raises(UserError, match=r"accuracy\.best is under"):
        read_result(path)


@pytest.mark.parametrize("text", ["[]", "null", "3", '"text"', "[" * 100_000])
def test_other_json_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"result\.json"):
        read_result(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot read"):
        read_result(path)
