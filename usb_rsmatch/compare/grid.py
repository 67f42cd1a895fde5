"""A grid file: a base configuration, named arms and axes, turned into a list of runs."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from usb_rsmatch.errors import UserError
from usb_rsmatch.report.grid_record import GridRecord, Place
from usb_rsmatch.report.result_file import Scalar
from usb_rsmatch.usb.config import nearest, read_yaml

KEYS = ("name", "save_dir", "base", "config", "axes", "arms", "baseline", "include", "exclude")
OWN = ("save_dir", "save_name")  # the grid gives each run its folder
TAKEN = ("configs", "logs", "report", "grid.json")  # reserved names in the grid's folder
LONGEST_NAME = 120  # bytes; most file systems take 255


@dataclass(frozen=True)
class Run:
    """One training run of a grid: its arm, its axis values, its whole configuration and its folder."""

    arm: str
    axes: dict[str, Scalar]  # axis -> value, or the name of a named value
    config: dict[str, Any]
    folder: Path

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def label(self) -> str:
        """The run's name in progress messages."""
        return "  ".join([self.arm, " ".join(f"{key}={value}" for key, value in self.axes.items())]).strip()


@dataclass(frozen=True)
class Grid:
    """A grid file's content, checked: every axis is {label: value}, every arm {key: value}."""

    name: str
    save_dir: Path
    base: dict[str, Any]
    axes: dict[str, dict[Scalar, Any]]
    arms: dict[str, dict[str, Any]]
    baseline: str | None = None
    include: list[dict[str, Any]] = field(default_factory=list)
    exclude: list[dict[str, Any]] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        """The folder of the runs, their configurations and the grid's record."""
        return self.save_dir / self.name

    def record(self, runs: Sequence[Run], hashes: Mapping[str, str]) -> GridRecord:
        """The record for the grid's folder; `hashes` maps the name of each run to the hash of its configuration."""
        return GridRecord(
            name=self.name,
            baseline=self.baseline,
            varied=frozenset([*self.axes, *(key for keys in self.arms.values() for key in keys)]),
            runs={run.name: Place(run.arm, run.axes, hashes[run.name]) for run in runs},
        )


def read_grid(path: str | Path, known_keys: Collection[str], load_base: Callable[[str], Mapping[str, Any]]) -> Grid:
    """The grid of a YAML file; `known_keys` are all configuration keys, `load_base` reads a named one.

    Raises UserError for an unreadable file, an unknown key, an empty axis, a baseline that is not an arm.
    """
    path = Path(path)
    return parse_grid(read_yaml(path), str(path), path.stem, known_keys, load_base)


def parse_grid(
    content: Mapping[str, Any],
    where: str,
    default_name: str,
    known_keys: Collection[str],
    load_base: Callable[[str], Mapping[str, Any]],
) -> Grid:
    """`read_grid` of a mapping; `where` names it in errors."""
    for key in content:
        if key not in KEYS:
            raise UserError(
                f"{where}: unknown grid key {key!r}{nearest(key, KEYS)}; configuration keys go under `config`"
            )
    if "base" not in content and "config" not in content:
        raise UserError(f"{where}: needs `base`, the name of a configuration, or `config`, its keys")
    name = str(content.get("name", default_name))
    if not re.fullmatch(r"[\w.+-]+", name) or name.startswith("."):
        raise UserError(f"{where}: name {name!r} must be usable as a folder name: letters, digits and _ - + . only")

    def keys(given: Any, what: str) -> dict[str, Any]:
        if not isinstance(given, Mapping):
            raise UserError(f"{where}: {what} takes a mapping of configuration keys to values, not {given!r}")
        for key in given:
            if key in OWN:
                raise UserError(f"{where}: {what} cannot set {key}: the grid names each run's folder")
            if key not in known_keys:
                raise UserError(
                    f"{where}: {what} sets {key!r}, which is not a configuration key{nearest(key, known_keys)}"
                )
        return dict(given)

    base = dict(load_base(str(content["base"]))) if "base" in content else {}
    base = {key: value for key, value in base.items() if key not in OWN}
    base.update(keys(content.get("config", {}), "config"))
    axes = {key: _axis(key, values, where) for key, values in keys(content.get("axes", {}), "axes").items()}
    arms = content.get("arms", {str(base.get("algorithm", name)): {}})
    if not isinstance(arms, Mapping) or not arms:
        raise UserError(f"{where}: arms takes a mapping of names to the keys that each one sets")
    grid = Grid(
        name=name,
        save_dir=Path(str(content.get("save_dir", "saved_models"))),
        base=base,
        axes=axes,
        arms={str(arm): keys({} if values is None else values, f"arm {arm!r}") for arm, values in arms.items()},
        baseline=None if content.get("baseline") is None else str(content["baseline"]),
        include=_filters(content.get("include", []), "include", where, axes),
        exclude=_filters(content.get("exclude", []), "exclude", where, axes),
    )
    if grid.baseline is not None and grid.baseline not in grid.arms:
        raise UserError(f"{where}: baseline {grid.baseline!r} is not an arm{nearest(grid.baseline, grid.arms)}")
    return grid


def plan(grid: Grid) -> list[Run]:
    """The runs of a grid: arm by arm, the last axis fastest; an arm that sets an axis's key itself is not repeated
    along that axis.

    Raises UserError for no runs, two equal runs, two runs of one folder, a filter that matches nothing.
    """
    runs = [run for arm in grid.arms for run in _spread(grid, arm)]
    for word, filters in (("include", grid.include), ("exclude", grid.exclude)):
        for entry in filters:
            if not any(_matches(run, entry) for run in runs):
                raise UserError(f"{grid.name}: {word} {entry} matches no run")
    if grid.include:
        runs = [run for run in runs if any(_matches(run, entry) for entry in grid.include)]
    runs = [run for run in runs if not any(_matches(run, entry) for entry in grid.exclude)]
    if not runs:
        raise UserError(f"{grid.name}: the grid has no runs: include and exclude leave none")

    names: dict[str, Run] = {}
    contents: dict[str, Run] = {}
    for run in runs:
        content = _canonical({key: value for key, value in run.config.items() if key not in OWN})
        if content in contents:
            raise UserError(f"{grid.name}: duplicate run: {contents[content].label!r} and {run.label!r} are the same")
        if run.name.lower() in TAKEN:
            raise UserError(f"{grid.name}: the folder {run.name} is the grid's own: rename the arm {run.arm!r}")
        if run.name.lower() in names:  # not every file system tells a from A
            raise UserError(
                f"{grid.name}: {names[run.name.lower()].label!r} and {run.label!r} would share "
                f"the folder {run.name}: rename one"
            )
        contents[content] = names[run.name.lower()] = run
    return runs


def shard(runs: list[Run], text: str) -> list[Run]:
    """Part I of N of the runs for `I/N`, I from 1 to N; every run is in exactly one part.

    Raises UserError for anything else than I/N.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    part, parts = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= part <= parts:
        raise UserError(f"--shard takes I/N with I from 1 to N, such as 1/4, not {text!r}")
    return runs[part - 1 :: parts]


def _spread(grid: Grid, arm: str) -> list[Run]:
    """One arm along every axis whose key it leaves open."""
    open_axes = {key: values for key, values in grid.axes.items() if key not in grid.arms[arm]}
    runs = []
    for labels in itertools.product(*open_axes.values()):
        axes = dict(zip(open_axes, labels, strict=True))
        chosen = {key: open_axes[key][label] for key, label in axes.items()}
        folder = grid.folder / folder_name(arm, axes)
        config = {
            **grid.base,
            **chosen,
            **grid.arms[arm],
            "save_dir": str(grid.folder),
            "save_name": folder.name,
        }
        runs.append(Run(arm, axes, config, folder))
    return runs


def folder_name(arm: str, axes: Mapping[str, Scalar]) -> str:
    """A file name for (arm, axes) that later arms and axis values do not change: `fixmatch-real__seed-0`."""
    parts = [_slug(arm).lower().lstrip("-._"), *(f"{key}-{_slug(str(label))}" for key, label in axes.items())]
    name = "__".join(parts)
    if len(name) <= LONGEST_NAME:
        return name
    return f"{name[: LONGEST_NAME - 9].rstrip('.')}-{_digest(name)}"


def _slug(text: str) -> str:
    """Letters, digits and `. + _ -` of a text; a digest where none is left."""
    slug = re.sub(r"[^A-Za-z0-9.+_-]+", "-", text)
    slug = re.sub(r"_{2,}", "_", slug)  # a double underscore parts arm from axes
    slug = slug.rstrip("-._").lstrip("._") if re.search(r"[A-Za-z0-9]", slug) else ""
    return slug or _digest(text)


def _axis(key: str, values: Any, where: str) -> dict[Scalar, Any]:
    """An axis as {label: value}: a list of plain values, or a mapping that names its values."""
    if isinstance(values, Mapping):
        axis: dict[Scalar, Any] = {str(label): value for label, value in values.items()}
        entries = list(axis)
    elif isinstance(values, list):
        entries = values
        for value in values:
            if not isinstance(value, str | int | float | bool | None):
                raise UserError(f"{where}: axis {key}: name the value {value!r}, as in {key}: {{a: ...}}")
        axis = {value: value for value in values}
    else:
        raise UserError(f"{where}: axis {key} takes a list of values or a mapping of names to values, not {values!r}")
    if not entries:
        raise UserError(f"{where}: axis {key} is empty")
    if len(axis) != len(entries):
        raise UserError(f"{where}: axis {key} has a value twice, which would be a duplicate run")
    return axis


def _filters(given: Any, word: str, where: str, axes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """`include` or `exclude`: a list of {arm or axis: value or list of values}."""
    if not isinstance(given, list) or not all(isinstance(entry, Mapping) and entry for entry in given):
        raise UserError(f"{where}: {word} takes a list of mappings, such as [{{arm: NAME, seed: 0}}]")
    for entry in given:
        for key in entry:
            if key != "arm" and key not in axes:
                raise UserError(
                    f"{where}: {word} names {key!r}, neither `arm` nor an axis{nearest(key, ['arm', *axes])}"
                )
    return [dict(entry) for entry in given]


def _matches(run: Run, entry: Mapping[str, Any]) -> bool:
    place = {"arm": run.arm, **run.axes}
    for key, wanted in entry.items():
        values = wanted if isinstance(wanted, list) else [wanted]
        if key not in place or not any(place[key] == value or str(place[key]) == str(value) for value in values):
            return False
    return True


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
