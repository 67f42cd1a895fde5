"""`usb-rsmatch compare`: from a grid file to trained runs and their report."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from usb_rsmatch.compare.cluster import Submission, options_of
from usb_rsmatch.compare.grid import plan, read_grid, shard
from usb_rsmatch.compare.runner import Runner, finished, prepare
from usb_rsmatch.compare.time_estimate import dry_run, measured
from usb_rsmatch.errors import UserError
from usb_rsmatch.report import table_formats
from usb_rsmatch.report.choice import choice
from usb_rsmatch.report.command import report
from usb_rsmatch.usb import config
from usb_rsmatch.usb.shipped_configs import find_config


def fingerprint(mapping: Mapping[str, Any]) -> str:
    """The hash that a run of this configuration will write into its result."""
    return config.config_hash(config.resolve(mapping)[0])


def compare(
    name: str,
    overrides: Mapping[str, Any],
    jobs: int | None = None,
    part: str | None = None,
    only_show: bool = False,
    out: TextIO | None = None,
    submit: str | None = None,
    options: Sequence[str] = (),
) -> int:
    """Train the missing runs of a grid (file or shipped name), `jobs` in parallel, and report it when all are done.

    `overrides` change the base configuration of every run; `part` is I/N. With `only_show`, only a few steps are run
    for timing, and nothing is written. `submit` names a cluster of submitit, `options` are its KEY=VALUE parameters.
    Returns the exit code of `Runner`. Errors: UserError before anything is written.
    """
    out = out or sys.stdout
    config.import_semilearn()
    known = {**config.all_keys(), **dict.fromkeys(config.DEAD)}
    grid = read_grid(find_config(name), known, lambda base: config.read_yaml(find_config(base)))
    for key in overrides.keys() & grid.axes.keys():
        raise UserError(f"--{key} is an axis of {name}: change it there")
    if options and not submit:
        raise UserError("--option is for --submit: name the cluster, as in --submit slurm")
    if "save_name" in overrides:
        raise UserError(f"--save_name: the grid names each run's folder; it is `name` in {name}")
    grid = replace(
        grid,
        save_dir=Path(str(overrides.get("save_dir", grid.save_dir))),
        base={**grid.base, **{key: value for key, value in overrides.items() if key != "save_dir"}},
    )
    runs = plan(grid)
    mine = shard(runs, part) if part else runs
    hashes = {}
    for run in runs:
        try:
            hashes[run.name] = fingerprint(run.config)
        except UserError as error:
            raise UserError(f"{name}, {run.label}: {error}") from None
    if only_show:
        dry_run(mine, hashes, out, jobs, measured)
        return 0
    runner: Runner | Submission
    if submit:
        runner = Submission(mine, hashes, submit, options_of(options), jobs=jobs, out=out)
    else:
        runner = Runner(mine, hashes, jobs=jobs, out=out)
    prepare(grid, runs, fingerprint)
    code = runner.train()
    if code == 130 or len(mine) < len(runs) or not any(finished(run, hashes[run.name]) for run in runs):
        return code
    written = report(grid.folder, baseline=grid.baseline)
    print(table_formats.plain(written.table), file=out)
    for line in choice(written.table):
        print(line, file=out)
    print(f"report: {written.folder / 'index.html'}", file=out)
    return code
