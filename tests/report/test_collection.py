"""Which results may share a table, and under which names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from usb_rsmatch.errors import UserError
from usb_rsmatch.report.collection import collect

Write = Callable[..., Path]
MakeGrid = Callable[..., Path]
ARMS = {"real only": {"synthetic_count": 0}, "FixMatch": {}, "RSMatch": {"algorithm": "rsmatch"}}
SEEDS = {"seed": [0, 1]}


def test_a_grids_results_stand_in_its_order_with_its_names(finished_grid: MakeGrid) -> None:
    folder = finished_grid(lambda run: 0.9, arms=ARMS, axes={"num_labels": [40, 20], **SEEDS}, baseline="FixMatch")
    found = collect(folder)
    assert (found.name, found.baseline, found.axes, found.remarks) == ("grid", "FixMatch", ["num_labels"], [])
    assert len(found.records) == 12
    assert [(record.arm, record.axes, record.result.seed) for record in found.records[:2]] == [
        ("real only", {"num_labels": 40}, 0),
        ("real only", {"num_labels": 40}, 1),
    ]
    above = collect(folder.parent)
    assert above == found


def test_missing_and_foreign_results_are_remarked_on(finished_grid: MakeGrid) -> None:
    folder = finished_grid(lambda run: 0.9, arms=ARMS, axes=SEEDS)
    (folder / "fixmatch__seed-1").rename(folder / "an-older-arm__seed-1")
    found = collect(folder)
    assert len(found.records) == 5
    assert found.remarks == [
        "1 of 6 runs have no result yet",
        "results in the folder that are no longer in the grid are not included: 1",
    ]
    change(folder / "fixmatch__seed-0" / "result.json", shortcuts=["file size alone tells real from synthetic"])
    assert collect(folder).remarks[2:] == ["shortcut: file size alone tells real from synthetic"]
    for path in folder.glob("*__seed-*"):
        shutil.rmtree(path)
    with pytest.raises(UserError, match=r"no result\.json"):
        collect(folder)


def change(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **changes}))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"config_sha256": "0" * 64}, "another configuration"),
        ({"dataset": "fashionmnist"}, "differ in dataset (digits; fashionmnist)"),
        ({"iterations": 900}, "differ in iterations (1200; 900)"),
        ({"pool": {"real": 1, "synthetic": 0, "by_generator": {}}}, "differ in pool"),
        ({"algorithm": "flexmatch"}, "differ in algorithm"),
    ],
)
def test_what_the_grid_did_not_ask_for_is_refused(
    finished_grid: MakeGrid, changes: dict[str, Any], complaint: str
) -> None:
    folder = finished_grid(lambda run: 0.9, arms=ARMS, axes=SEEDS)
    change(folder / "fixmatch__seed-1" / "result.json", **changes)
    with pytest.raises(UserError) as error:
        collect(folder)
    assert complaint in str(error.value) and "fixmatch__seed-1" in str(error.value)


def test_a_whole_arm_of_another_length_is_refused_unless_varied(finished_grid: MakeGrid) -> None:
    folder = finished_grid(lambda run: 0.9, arms=ARMS, axes=SEEDS)
    for path in folder.glob("fixmatch__*/result.json"):
        change(path, iterations=900)
    with pytest.raises(UserError, match="iterations"):
        collect(folder)
    record = json.loads((folder / "grid.json").read_text())
    change(folder / "grid.json", varied=[*record["varied"], "num_train_iter"])
    assert len(collect(folder).records) == 6


def test_loose_results_share_a_table_when_they_are_alike(write_result: Write, tmp_path: Path) -> None:
    for seed in range(2):
        write_result(f"a{seed}", seed=seed)
        write_result(f"b{seed}", seed=seed, algorithm="softmatch")
    found = collect(tmp_path / "results")
    assert [record.arm for record in found.records] == ["fixmatch", "fixmatch", "softmatch", "softmatch"]
    assert found.name == "results" and found.baseline is None

    write_result("a2", seed=1)
    with pytest.raises(UserError, match="are the same run: fixmatch, seed 1"):
        collect(tmp_path / "results")


def test_loose_results_of_different_pools_need_asking_for(write_result: Write, tmp_path: Path) -> None:
    write_result("a")
    write_result("b", pool={"real": 600, "synthetic": 0, "by_generator": {}})
    write_result("c", num_labels=40)
    with pytest.raises(UserError, match=r"differ in pool .*--mixed"):
        collect(tmp_path / "results")
    found = collect(tmp_path / "results", mixed=True)
    assert found.axes == ["num_labels"] and found.remarks == ["mixed on request: 2 different pools share this table"]
    assert {record.arm for record in found.records} == {
        "fixmatch, 600 real",
        "fixmatch, 600 real + 600 synthetic (flow)",
    }


def test_several_grids_need_asking_for(finished_grid: MakeGrid, write_result: Write, tmp_path: Path) -> None:
    for name in ("one", "two"):
        finished_grid(lambda run: 0.9, arms=ARMS, axes=SEEDS, name=name)
    write_result("loose")
    with pytest.raises(UserError, match="several comparisons"):
        collect(tmp_path)
    found = collect(tmp_path, mixed=True)
    assert len(found.records) == 13
    assert {record.arm.partition(":")[0] for record in found.records} == {"one", "two", tmp_path.name}


def test_a_folder_without_results_and_a_damaged_record_are_named(finished_grid: MakeGrid, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        collect(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no result\.json"):
        collect(tmp_path)
    folder = finished_grid(lambda run: 0.9, axes=SEEDS)
    (folder / "grid.json").write_text('{"name": "grid"')
    with pytest.raises(UserError, match=r"grid\.json is damaged"):
        collect(folder)
