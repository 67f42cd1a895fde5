"""Collects the results of one comparison: finds them below a folder, assigns them to their grid, checks them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from usb_rsmatch.errors import UserError
from usb_rsmatch.report.grid_record import NAME, GridRecord, read_record
from usb_rsmatch.report.result_file import Result, Scalar, read_result

# Properties of a result, and the keys that determine them: all runs of a grid that varies none of them are equal.
DECIDED_BY = {
    "dataset": {"dataset"},
    "num_labels": {"dataset", "num_labels"},
    "iterations": {"num_train_iter"},
    "pool": {
        *("dataset", "data_dir", "num_labels", "ulb_num_labels", "include_lb_to_ulb", "validation_count"),
        "validation_fold",
        *("synthetic", "unlabeled", "synthetic_count", "synthetic_ratio", "real_count", "on_error", "algorithm"),
    },
}


@dataclass(frozen=True)
class Record:
    """A result and its position in a comparison: the arm, and its values on the axes except the seed."""

    result: Result
    arm: str
    axes: dict[str, Scalar]


@dataclass(frozen=True)
class Collection:
    """The results of one comparison, in the order of its table, and remarks to print below it."""

    name: str
    records: list[Record]
    baseline: str | None
    remarks: list[str]

    @property
    def axes(self) -> list[str]:
        """Every axis of the records."""
        return list(dict.fromkeys(axis for record in self.records for axis in record.axes))


def collect(folder: str | Path, mixed: bool = False) -> Collection:
    """Every result below a folder, with the arms of its grid; `mixed` allows different ones in one table.

    Raises UserError for no results, a damaged one, and a duplicate run; unless `mixed`, also for results of several
    grids, and for data sets, labels, lengths or pools that differ although the grid does not vary them.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give the one that contains the run folders")
    groups = _find(folder)
    if not groups:
        raise UserError(f"{folder} contains no result.json: no run below it has finished")
    if len(groups) > 1 and not mixed:
        names = ", ".join(str(owner or "runs without a grid") for owner in groups)
        raise UserError(f"{folder} contains results of several comparisons ({names}): report one, or use --mixed")

    parts = [
        _of_grid(owner, results, mixed) if owner else _of_no_grid(folder, results, mixed)
        for owner, results in groups.items()
    ]
    whole = parts[0] if len(parts) == 1 else _join(folder, parts)
    if mixed:
        whole = _spread_over_differences(whole)
    _refuse_twice(whole.records)
    return whole


def _find(folder: Path) -> dict[Path | None, dict[str, Result]]:
    """{grid's folder, or None: {run folder: result}}."""
    groups: dict[Path | None, dict[str, Result]] = {}
    for path in sorted(folder.rglob("result.json")):
        above = path.parent.parent
        owner = above if (above / NAME).is_file() else None
        groups.setdefault(owner, {})[path.parent.name if owner else str(path.parent)] = read_result(path)
    return groups


def _of_grid(owner: Path, results: Mapping[str, Result], mixed: bool) -> Collection:
    """Results in their grid's order, with remarks on missing and on unknown runs."""
    grid = read_record(owner / NAME)
    records = []
    for folder, place in grid.runs.items():
        if folder in results:
            result = results[folder]
            if result.config_sha256 != place.config_sha256:
                raise UserError(f"{result.path} has another configuration than {owner / NAME} says")
            axes = {key: value for key, value in place.axes.items() if key != "seed"}
            records.append(Record(result, place.arm, axes))
    if not records:
        raise UserError(f"{owner} contains no result that its {NAME} lists")
    if not mixed:
        _refuse_unasked(records, grid)
    remarks = []
    missing, foreign = len(grid.runs) - len(records), len(results) - len(records)
    if missing:
        remarks.append(f"{missing} of {len(grid.runs)} runs have no result yet")
    if foreign:
        remarks.append(f"results in the folder that are no longer in the grid are not included: {foreign}")
    cues = sorted({line for record in records for line in record.result.shortcuts})
    remarks += [f"shortcut: {line}" for line in cues]
    return Collection(grid.name, records, grid.baseline, remarks)


def _of_no_grid(folder: Path, results: Mapping[str, Result], mixed: bool) -> Collection:
    """Without a grid, an arm is an algorithm, together with its pool if the pools differ."""
    if not mixed:
        _refuse_difference(results.values(), DECIDED_BY)
    several = len({result.pool for result in results.values()}) > 1
    records = [
        Record(result, f"{result.algorithm}, {result.describe_pool()}" if several else result.algorithm, {})
        for result in results.values()
    ]
    return Collection(folder.resolve().name, records, None, [])


def _join(folder: Path, parts: Iterable[Collection]) -> Collection:
    """Several comparisons joined into one, each arm prefixed with its comparison's name."""
    records, remarks = [], []
    for part in parts:
        records += [replace(record, arm=f"{part.name}: {record.arm}") for record in part.records]
        remarks += [f"{part.name}: {remark}" for remark in part.remarks]
    return Collection(folder.resolve().name, records, None, remarks)


def _spread_over_differences(whole: Collection) -> Collection:
    """Data set, labels and length become axes if they differ; different pools only lead to a remark."""
    results = [record.result for record in whole.records]
    names = [name for name in ("dataset", "num_labels", "iterations") if len({getattr(r, name) for r in results}) > 1]
    records = [
        replace(record, axes={**{name: getattr(record.result, name) for name in names}, **record.axes})
        for record in whole.records
    ]
    pools = {result.pool for result in results}
    remark = [f"mixed on request: {len(pools)} different pools share this table"] if len(pools) > 1 else []
    return replace(whole, records=records, remarks=whole.remarks + remark)


def _refuse_unasked(records: Iterable[Record], grid: GridRecord) -> None:
    """Check that the seeds of a cell agree in everything, and cells in everything that the grid does not vary."""
    cells: dict[str, list[Result]] = {}
    for record in records:
        cells.setdefault(json.dumps([record.arm, record.axes]), []).append(record.result)
    for cell in cells.values():
        _refuse_difference(cell, ("algorithm", *DECIDED_BY))
    fixed = [name for name, keys in DECIDED_BY.items() if not keys & grid.varied]
    _refuse_difference([record.result for record in records], fixed)


def _refuse_difference(results: Iterable[Result], names: Iterable[str]) -> None:
    first: Result | None = None
    for result in results:
        first = first or result
        for name in names:
            if getattr(first, name) != getattr(result, name):
                here, there = (one.describe_pool() if name == "pool" else getattr(one, name) for one in (first, result))
                raise UserError(
                    f"{first.path} and {result.path} differ in {name} ({here}; {there}): "
                    "report them separately, or use --mixed"
                )


def _refuse_twice(records: Iterable[Record]) -> None:
    seen: dict[str, Path] = {}
    for record in records:
        place = json.dumps([record.arm, record.axes, record.result.seed], sort_keys=True)
        other = seen.setdefault(place, record.result.path)
        if other != record.result.path:
            raise UserError(
                f"{other} and {record.result.path} are the same run: {record.arm}, seed {record.result.seed}"
            )
