"""Dry runs: what they list, what they take from done runs, and how near the measured estimate is to a real run."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from usb_rsmatch.compare.grid import Grid, Run, parse_grid, plan
from usb_rsmatch.compare.runner import Runner, prepare
from usb_rsmatch.compare.time_estimate import Pace, dry_run, measured, pace
from usb_rsmatch.errors import UserError
from usb_rsmatch.usb.training import train

Fingerprint = Callable[[Mapping[str, Any]], str]


def make_grid(tmp_path: Path, **content: Any) -> tuple[Grid, list[Run]]:
    content = {"config": {"algorithm": "fixmatch"}, "axes": {"seed": [0, 1, 2]}, "save_dir": str(tmp_path), **content}
    grid = parse_grid(content, "grid.yaml", "demo", {"algorithm", "seed", "lr"}, lambda name: {})
    return grid, plan(grid)


def test_what_is_done_tells_the_rest(tmp_path: Path, stand_in: list[str], fingerprint: Fingerprint) -> None:
    grid, runs = make_grid(tmp_path)
    hashes = prepare(grid, runs, fingerprint)
    assert Runner(runs[:1], hashes, out=io.StringIO(), command=stand_in).train() == 0
    out = io.StringIO()
    dry_run(runs, hashes, out, jobs=2)
    lines = out.getvalue().splitlines()
    assert [line[:5] for line in lines[:3]] == ["done ", "to do", "to do"]
    assert lines[3:] == [  # the stand-in says 12.5 seconds
        "3 runs, 1 done",
        "fixmatch: 2 x 12 s, as 1 done",
        "estimate: 25 s of training in all, 2 at a time 12 s",
    ]
    assert not (runs[1].folder / "starts").exists()


def test_one_measurement_a_kind_and_what_fails_is_said(tmp_path: Path, fingerprint: Fingerprint) -> None:
    _, runs = make_grid(tmp_path, arms={"a": {}, "b": {"lr": 0.1}, "c": {"lr": 13}})
    hashes = {run.name: fingerprint(run.config) for run in runs}
    asked = []

    def measure(config: Mapping[str, Any], threads: int) -> float:
        asked.append(config.get("lr"))
        if config.get("lr") == 13:
            raise UserError("./data is not a folder")
        return 60.0

    out = io.StringIO()
    dry_run(runs, hashes, out, jobs=3, measure=measure)
    assert asked == [None, 0.1, 13], "seeds share a measurement"
    assert out.getvalue().splitlines()[-5:] == [
        "9 runs, 0 done",
        "a: 3 x 1 min 0 s, from measured steps",
        "b: 3 x 1 min 0 s, from measured steps",
        "c: no estimate: ./data is not a folder",
        "estimate: 6 min 0 s of training in all, 3 at a time 2 min 0 s, 3 more of unknown length",
    ]
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="--jobs"):
        dry_run(runs, hashes, out, jobs=0)


def test_the_estimate_of_a_run_is_of_its_size(tiny: dict[str, Any]) -> None:
    """A shared machine's times vary: within a factor of three of the run itself, which nothing constant would meet."""
    config = {**tiny, "algorithm": "rsmatch", "num_train_iter": 60, "num_eval_iter": 30, "epoch": 1}
    expected = measured(config, threads=1)
    assert not Path(config["save_dir"]).exists(), "nothing is written"
    result = train(config, note=lambda line: None)
    taken = result["time"]["train_seconds"]
    assert taken / 3 < expected < 3 * taken + 3, (expected, taken)
    found = pace(config)
    assert min(found.set_up, found.step, found.evaluation) > 0


def test_a_runs_time_is_that_of_its_parts() -> None:
    assert Pace(5.0, 0.1, 2.0).of_run({"num_train_iter": 1000, "num_eval_iter": 300}) == pytest.approx(113.0)
