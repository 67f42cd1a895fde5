"""`grid.json`: what a grid's folder says of its runs, so that tables need no grid file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from usb_rsmatch.bench.grid import Grid, Run
from usb_rsmatch.bench.results import Scalar
from usb_rsmatch.errors import UserError
from usb_rsmatch.io import parse_json, write_json

NAME = "grid.json"


@dataclass(frozen=True)
class Place:
    """A run's place in its grid, and the hash of the configuration that it is to have."""

    arm: str
    axes: dict[str, Scalar]
    config_sha256: str


@dataclass(frozen=True)
class GridRecord:
    """A grid as its results need it. `varied` are the keys that its axes and arms set."""

    name: str
    baseline: str | None
    varied: frozenset[str]
    runs: dict[str, Place]  # by the folder's name, in the grid's order


def write_record(grid: Grid, runs: Sequence[Run], hashes: Mapping[str, str]) -> None:
    """Write the record of all runs of a grid into its folder."""
    write_json(
        grid.folder / NAME,
        {
            "name": grid.name,
            "baseline": grid.baseline,
            "varied": sorted({*grid.axes, *(key for keys in grid.arms.values() for key in keys)}),
            "runs": [
                {"folder": run.name, "arm": run.arm, "axes": run.axes, "config_sha256": hashes[run.name]}
                for run in runs
            ],
        },
    )


def read_record(path: Path) -> GridRecord:
    """A grid's record.

    Errors: UserError that names the file where it is damaged.
    """
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
        runs = {
            str(run["folder"]): Place(str(run["arm"]), dict(run["axes"]), str(run["config_sha256"]))
            for run in content["runs"]
        }
        baseline = content["baseline"]
        return GridRecord(
            name=str(content["name"]),
            baseline=None if baseline is None else str(baseline),
            varied=frozenset(map(str, content["varied"])),
            runs=runs,
        )
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path} is damaged: run `usb-rsmatch compare` again, which writes it anew") from None
