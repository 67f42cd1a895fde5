"""The runner with real processes: done, failed, interrupted, gone on."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from usb_rsmatch.compare.grid import Grid, Run, parse_grid, plan
from usb_rsmatch.compare.runner import Runner, config_path, cores, last_lines, log_path, prepare
from usb_rsmatch.errors import UserError
from usb_rsmatch.progress import duration
from usb_rsmatch.report.grid_record import read_record

Fingerprint = Callable[[Mapping[str, Any]], str]
KNOWN = {"algorithm", "seed", "lr", "momentum", "synthetic_count"}


def make_grid(tmp_path: Path, **content: Any) -> tuple[Grid, list[Run]]:
    content = {
        "config": {"algorithm": "fixmatch"},
        "axes": {"seed": [0, 1]},
        "save_dir": str(tmp_path),
        **content,
    }
    grid = parse_grid(content, "grid.yaml", "demo", KNOWN, lambda name: {})
    return grid, plan(grid)


def starts(run: Run) -> int:
    path = run.folder / "starts"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_runs_are_trained_once_and_then_known_as_done(
    tmp_path: Path, stand_in: list[str], fingerprint: Fingerprint
) -> None:
    grid, runs = make_grid(tmp_path, arms={"FixMatch": {}, "RSMatch": {"algorithm": "rsmatch"}}, baseline="FixMatch")
    hashes = prepare(grid, runs, fingerprint)
    out = io.StringIO()
    assert Runner(runs, hashes, jobs=2, out=out, command=stand_in).train() == 0
    lines = out.getvalue().splitlines()
    assert len(lines) == 4 and all(line.startswith("done ") for line in lines)
    assert any("4/4" in line for line in lines)
    assert any("RSMatch  seed=1  acc 86.0  AUROC 0.900" in line for line in lines)
    for run in runs:
        assert yaml.safe_load(config_path(run).read_text()) == run.config
        assert log_path(run).read_text() == f"threads {expected_threads(2)}\n"

    out = io.StringIO()
    assert Runner(runs, hashes, out=out, command=stand_in).train() == 0
    assert out.getvalue().count("already") == 4 and [starts(run) for run in runs] == [1] * 4

    record = read_record(grid.folder / "grid.json")
    assert (record.name, record.baseline, list(record.runs)) == (
        "demo",
        "FixMatch",
        [run.name for run in runs],
    )
    assert record.varied == {"seed", "algorithm"}


def expected_threads(jobs: int) -> int:
    given = int(os.environ.get("OMP_NUM_THREADS", cores()))
    return min(given, max(cores() // jobs, 1))


def test_a_damaged_or_other_result_does_not_count(
    tmp_path: Path, stand_in: list[str], fingerprint: Fingerprint
) -> None:
    grid, runs = make_grid(tmp_path, axes={"seed": [0, 1, 2]})
    hashes = prepare(grid, runs, fingerprint)
    assert Runner(runs, hashes, out=io.StringIO(), command=stand_in).train() == 0
    cut, other = (run.folder / "result.json" for run in runs[:2])
    cut.write_text(cut.read_text()[:50])
    content = json.loads(other.read_text())
    other.write_text(json.dumps({**content, "config_sha256": "0" * 64}))
    assert Runner(runs, hashes, out=io.StringIO(), command=stand_in).train() == 0
    assert [starts(run) for run in runs] == [2, 2, 1]


def test_a_failed_run_shows_its_last_lines_and_the_rest_goes_on(
    tmp_path: Path, stand_in: list[str], fingerprint: Fingerprint
) -> None:
    grid, runs = make_grid(tmp_path, arms={"bad": {"lr": 13}, "good": {}}, axes={"seed": [0]})
    out = io.StringIO()
    assert Runner(runs, prepare(grid, runs, fingerprint), jobs=1, out=out, command=stand_in).train() == 1
    text = out.getvalue()
    assert "failed 1/2  bad  seed=0  exit code 1" in text
    assert "    step 2/100\n    the loss is not finite at step 2\n" in text and "step 1/100" not in text
    assert "done 2/2  good" in text

    out = io.StringIO()
    assert Runner(runs, prepare(grid, runs, fingerprint), jobs=1, out=out, command=stand_in).train() == 1
    assert [starts(run) for run in runs] == [2, 1]
    assert out.getvalue().count("the loss is not finite") == 1, "only this attempt's lines are shown"


def test_a_run_that_leaves_no_result_has_failed(tmp_path: Path, fingerprint: Fingerprint) -> None:
    grid, runs = make_grid(tmp_path, axes={"seed": [0]})
    out = io.StringIO()
    hashes = prepare(grid, runs, fingerprint)
    assert Runner(runs, hashes, out=out, command=[sys.executable, "-c", "pass"]).train() == 1
    assert "no result of this configuration" in out.getvalue()
    with pytest.raises(UserError, match="--jobs"):
        Runner(runs, hashes, jobs=0).train()


DRIVER = """
    import io, sys
    sys.path.insert(0, {here!r})
    from pathlib import Path
    from result_fixtures import configuration_hash
    from usb_rsmatch.compare.grid import parse_grid, plan
    from usb_rsmatch.compare.runner import Runner, prepare
    content = {content!r}
    grid = parse_grid(content, "grid.yaml", "demo", {known!r}, dict)
    runs = plan(grid)
    sys.exit(Runner(runs, prepare(grid, runs, configuration_hash), jobs=2, command={command!r}).train())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_reaches_the_runs_and_the_same_command_goes_on(
    tmp_path: Path, stand_in: list[str], fingerprint: Fingerprint, number: signal.Signals
) -> None:
    axes = {"seed": [0, 1, 2, 3]}
    content = {"config": {"algorithm": "fixmatch", "momentum": 30}, "axes": axes, "save_dir": str(tmp_path)}
    _, runs = make_grid(tmp_path, **content)
    here = str(Path(__file__).parents[1])
    driver = textwrap.dedent(DRIVER).format(here=here, content=content, known=KNOWN, command=stand_in)
    process = subprocess.Popen([sys.executable, "-c", driver], stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not all(starts(run) for run in runs[:2]):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out.count("stopped") == 2 and "interrupted: 0 of 4" in out
    assert [(run.folder / "checkpoint").exists() for run in runs] == [True, True, False, False]
    assert [starts(run) for run in runs] == [1, 1, 0, 0], "nothing new is started"

    grid, short = make_grid(tmp_path, config={"algorithm": "fixmatch"}, axes=axes)
    assert [run.name for run in short] == [run.name for run in runs]
    hashes = prepare(grid, short, fingerprint)
    assert Runner(short, hashes, out=io.StringIO(), command=stand_in).train() == 0
    assert [starts(run) for run in short] == [2, 2, 1, 1]


def test_last_lines_of_an_attempt(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    log.write_bytes(b"old\n" + b"".join(b"line %d\n" % i for i in range(9)) + b"10%\r100%\n\n\xff end")
    assert last_lines(log, 4, 3) == ["line 8", "100%", "� end"]
    assert last_lines(log, log.stat().st_size) == []


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (185, "3 min 5 s"), (7800, "2 h 10 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
