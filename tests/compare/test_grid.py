"""Grids: what they expand to, and what they refuse."""

from __future__ import annotations

import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from usb_rsmatch.compare.grid import Grid, folder_name, parse_grid, plan, read_grid, shard
from usb_rsmatch.errors import UserError

KNOWN = {
    "algorithm",
    "seed",
    "num_labels",
    "lr",
    "synthetic",
    "synthetic_count",
    "synthetic_ratio",
    "rs_base",
}


def load_base(name: str) -> Mapping[str, Any]:
    if name != "quickstart/fixmatch":
        raise UserError(f"no configuration {name}")
    return {"algorithm": "fixmatch", "num_labels": 20, "save_name": "something", "save_dir": "elsewhere"}


def grid_of(**content: Any) -> Grid:
    return parse_grid({"base": "quickstart/fixmatch", **content}, "g.yaml", "g", KNOWN, load_base)


ARMS = {
    "FixMatch, real only": {"synthetic_count": 0},
    "FixMatch": None,
    "RSMatch": {"algorithm": "rsmatch"},
}


def test_a_grid_file_becomes_runs_with_whole_configurations(tmp_path: Path) -> None:
    path = tmp_path / "demo.yaml"
    content = {"base": "quickstart/fixmatch", "axes": {"seed": [0, 1]}, "arms": ARMS, "baseline": "FixMatch"}
    path.write_text(yaml.safe_dump({**content, "config": {"lr": 0.1}, "save_dir": "out"}, sort_keys=False))
    grid = read_grid(path, KNOWN, load_base)
    runs = plan(grid)
    assert [run.name for run in runs] == [
        "fixmatch-real-only__seed-0",
        "fixmatch-real-only__seed-1",
        "fixmatch__seed-0",
        "fixmatch__seed-1",
        "rsmatch__seed-0",
        "rsmatch__seed-1",
    ]
    assert grid.name == "demo" and grid.baseline == "FixMatch"
    assert runs[-1].folder == Path("out/demo/rsmatch__seed-1")
    assert runs[-1].label == "RSMatch  seed=1"
    assert runs[-1].config == {
        "algorithm": "rsmatch",
        "num_labels": 20,
        "lr": 0.1,
        "seed": 1,
        "save_dir": "out/demo",
        "save_name": "rsmatch__seed-1",
    }


def test_named_values_stand_by_their_name_and_carry_any_value() -> None:
    variants = {"sd14": [{"source": "folder:sd14"}], "none": []}
    runs = plan(grid_of(axes={"synthetic": variants, "seed": [3]}))
    assert [run.axes for run in runs] == [{"synthetic": "sd14", "seed": 3}, {"synthetic": "none", "seed": 3}]
    assert [run.config["synthetic"] for run in runs] == list(variants.values())
    assert runs[0].name == "fixmatch__synthetic-sd14__seed-3"


def test_an_arm_that_sets_an_axis_is_not_spread_along_it() -> None:
    arms = {"real": {"synthetic_ratio": 0}, "mixed": {}}
    runs = plan(grid_of(axes={"synthetic_ratio": [0.2, 0.5], "seed": [0, 1]}, arms=arms))
    assert [run.axes for run in runs if run.arm == "real"] == [{"seed": 0}, {"seed": 1}]
    assert len([run for run in runs if run.arm == "mixed"]) == 4


def test_include_and_exclude_take_partial_matches_and_lists() -> None:
    axes = {"num_labels": [20, 40], "seed": [0, 1, 2]}
    kept = plan(grid_of(axes=axes, arms=ARMS, include=[{"arm": "RSMatch"}, {"num_labels": 20, "seed": [0, 1]}]))
    assert len(kept) == 6 + 2 * 2
    kept = plan(grid_of(axes=axes, arms=ARMS, exclude=[{"arm": ["FixMatch", "RSMatch"], "num_labels": 40}]))
    assert len(kept) == 18 - 6


names = st.text(min_size=1, max_size=150)
axis_values = st.lists(
    st.one_of(st.integers(-99, 10**6), st.text(string.ascii_letters + string.digits, min_size=1, max_size=4)),
    min_size=1,
    max_size=4,
    unique_by=lambda value: str(value).lower(),
)
axes_of = st.dictionaries(st.sampled_from(["seed", "num_labels", "lr"]), axis_values, min_size=1)


@given(axes_of, st.integers(1, 3), st.data())
def test_count_is_the_product_without_the_excluded(axes: dict[str, list[Any]], arms: int, data: st.DataObject) -> None:
    named = {f"arm {index}": {"rs_base": str(index)} for index in range(arms)}
    key = data.draw(st.sampled_from(sorted(axes)))
    value = data.draw(st.sampled_from(axes[key]))
    total = arms
    for values in axes.values():
        total *= len(values)
    runs = plan(grid_of(axes=axes, arms=named))
    assert len(runs) == total
    assert len({run.name.lower() for run in runs}) == total
    assert all(set(run.name) <= set(string.ascii_letters + string.digits + "._+-") for run in runs)
    again = plan(grid_of(axes=axes, arms={**named, "later": {"rs_base": "later"}}))
    assert again[:total] == runs, "a later arm changes neither order nor names"
    if total > total // len(axes[key]):
        kept = [run for run in runs if run.axes[key] != value]
        if kept:
            assert plan(grid_of(axes=axes, arms=named, exclude=[{key: value}])) == kept


@given(names, st.dictionaries(st.sampled_from(["seed", "synthetic"]), names))
def test_any_name_gives_a_file_name(arm: str, axes: dict[str, str]) -> None:
    name = folder_name(arm, axes)
    assert 0 < len(name) <= 120
    assert set(name) <= set(string.ascii_letters + string.digits + "._+-") and name[0] not in ".-"


@given(st.integers(1, 40), st.integers(1, 7))
def test_shards_share_out_every_run_once(count: int, parts: int) -> None:
    runs = plan(grid_of(axes={"seed": list(range(count))}))
    shards = [shard(runs, f"{part}/{parts}") for part in range(1, parts + 1)]
    assert sorted(run.name for part in shards for run in part) == sorted(run.name for run in runs)
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "1/0", "-1/2"])
def test_a_wrong_shard_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="I/N"):
        shard(plan(grid_of()), text)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"axis": {}}, "unknown grid key 'axis': did you mean 'axes'"),
        ({"axes": {"num_lables": [1]}}, "not a configuration key: did you mean 'num_labels'"),
        ({"axes": {"seed": []}}, "axis seed is empty"),
        ({"axes": {"seed": {}}}, "axis seed is empty"),
        ({"axes": {"seed": 3}}, "takes a list"),
        ({"axes": {"seed": [0, 1, 0]}}, "twice"),
        ({"axes": {"synthetic": [[{"source": "folder:a"}]]}}, "name the value"),
        ({"axes": [1]}, "axes takes a mapping"),
        ({"axes": {"save_name": ["a"]}}, "cannot set save_name"),
        ({"arms": {}}, "arms takes"),
        ({"arms": {"a": {"learning_rate": 1}}}, "arm 'a' sets 'learning_rate'"),
        ({"arms": {"a": 3}}, "arm 'a' takes a mapping"),
        ({"arms": ARMS, "baseline": "Fixmatch"}, "is not an arm: did you mean 'FixMatch'"),
        ({"exclude": {"seed": 1}}, "takes a list"),
        ({"exclude": [{"lr": 1}]}, "neither `arm` nor an axis"),
        ({"name": "../up"}, "folder name"),
        ({"base": "nowhere"}, "no configuration nowhere"),
        ({"arms": {"a": {}, "b": {}}}, "duplicate run"),
        ({"arms": {"a b": {}, "a, b": {"lr": 1}}}, "share the folder"),
        ({"arms": {"configs": {}}}, "the grid's own"),
        ({"axes": {"seed": [0]}, "exclude": [{"seed": 0}]}, "no runs"),
        ({"axes": {"seed": [0]}, "exclude": [{"seed": 1}]}, "matches no run"),
        ({"arms": ARMS, "include": [{"arm": "RSmatch"}]}, "matches no run"),
    ],
)
def test_bad_grids_are_refused_in_one_line(content: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError) as error:
        plan(grid_of(**content))
    assert complaint in str(error.value) and "\n" not in str(error.value)


def test_a_grid_needs_a_base() -> None:
    with pytest.raises(UserError, match="needs `base`"):
        parse_grid({"axes": {"seed": [0]}}, "g.yaml", "g", KNOWN, load_base)
