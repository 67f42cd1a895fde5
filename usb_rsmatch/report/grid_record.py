"""`grid.json`, the record of a grid in its folder: it lists the runs, so that tables need no grid file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from usb_rsmatch.errors import UserError
from usb_rsmatch.io import parse_json, write_json
from usb_rsmatch.report.result_file import Scalar

NAME = "grid.json"


@dataclass(frozen=True)
class Place:
    """A run's arm and axis values in its grid, and the expected hash of its configuration."""

    arm: str
    axes: dict[str, Scalar]
    config_sha256: str


@dataclass(frozen=True)
class GridRecord:
    """A grid as tables need it. `varied` are the keys that its axes and arms set."""

    name: str
    baseline: str | None
    varied: frozenset[str]
    runs: dict[str, Place]  # by the folder's name, in the grid's order


def write_record(record: GridRecord, folder: Path) -> None:
    """Write the record into the grid's folder."""
    write_json(
        folder / NAME,
        {
            "name": record.name,
            "baseline": record.baseline,
            "varied": sorted(record.varied),
            "runs": [
                {"folder": name, "arm": place.arm, "axes": place.axes, "config_sha256": place.config_sha256}
                for name, place in record.runs.items()
            ],
        },
    )


def read_record(path: Path) -> GridRecord:
    """Read a grid's record.

    Raises UserError that names the file if it is damaged.
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
        raise UserError(f"{path} is damaged: run `usb-rsmatch compare` again, which rewrites it") from None
