"""TensorBoard and Weights & Biases contain every line of `metrics.jsonl`, also of a resumed run."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from usb_rsmatch.errors import Interrupted, UserError
from usb_rsmatch.usb.hooks import read_metrics
from usb_rsmatch.usb.training import train

Curves = dict[str, dict[int, float]]


def quiet(line: str) -> None:
    """Ignore the notes."""


def curves_of(folder: Path) -> Curves:
    """The numbers of `metrics.jsonl` by name and step."""
    curves: Curves = {}
    for line in read_metrics(folder / "metrics.jsonl"):
        for name, value in line.items():
            if name != "it" and isinstance(value, (int, float)):
                curves.setdefault(name, {})[line["it"]] = value
    return curves


def assert_same(found: Curves, expected: Curves) -> None:
    assert found.keys() >= expected.keys()
    for name, curve in expected.items():
        assert found[name].keys() == curve.keys(), name
        for step, value in curve.items():
            assert math.isclose(found[name][step], value, rel_tol=1e-5, abs_tol=1e-7), (name, step)


def stop_and_resume(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stop a run after step 7 of 12, one step after an evaluation, and resume it; returns its folder."""
    from usb_rsmatch.usb import training

    left = iter(range(6, -1, -1))
    with monkeypatch.context() as patched:
        patched.setattr(training.StopBetweenSteps, "__call__", lambda self: next(left) == 0)
        with pytest.raises(Interrupted):
            train(config, note=quiet)
    train(config, note=quiet)
    return Path(config["save_dir"]) / config["save_name"]


def test_tensorboard_contains_every_line_once(tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = {**tiny, "algorithm": "rsmatch", "rs_warmup": 0.0, "use_tensorboard": True}
    folder = stop_and_resume(config, monkeypatch)
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    curves: Curves = {}
    for name in events.Tags()["scalars"]:
        points = events.Scalars(name)
        curves[name] = {point.step: point.value for point in points}
        assert len(curves[name]) == len(points), "no step twice"
    expected = curves_of(folder)
    assert sorted(expected["train/sup_loss"]) == [2, 4, 6, 8, 10, 12], "num_log_iter, not only evaluations"
    assert sorted(expected["detection/auroc"]) == [6, 12]
    assert_same(curves, expected)


def offline_records(path: Path) -> Iterator[Any]:
    """The records of a `.wandb` file: LevelDB's log format (blocks of 32 KiB, each part with a header of 7 bytes)."""
    from wandb.proto import wandb_internal_pb2

    content, at, data = path.read_bytes(), 7, b""  # after the file's own header
    assert content[:4] == b":W&B"
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        data += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a complete record, or its last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            yield record
            data = b""


@pytest.mark.slow  # wandb writes from its own process, which can be too slow on a busy machine
def test_weights_and_biases_offline_contains_every_line(tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    config = {**tiny, "algorithm": "rsmatch", "rs_warmup": 0.0, "use_wandb": True}
    folder = stop_and_resume(config, monkeypatch)
    curves: Curves = {}
    names, projects, ids = set(), set(), set()
    files = sorted((folder / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2, "one file per process"
    for path in files:
        for record in offline_records(path):
            if record.run.run_id:
                ids.add(record.run.run_id)
                names.add(record.run.display_name)
                projects.add(record.run.project)
            line = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            for name, value in line.items():
                if not name.startswith("_"):
                    curves.setdefault(name, {})[line["_step"]] = value
    assert names == {"run"} and projects == {"runs"} and len(ids) == 1, "one run on the server"
    assert_same(curves, curves_of(folder))


def test_a_missing_login_is_reported_in_one_line(tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")

    def refuse(**_: Any) -> None:
        raise wandb.errors.UsageError("api_key not configured (no-tty).\n call wandb.login")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(UserError, match=r"^use_wandb: api_key not configured .*WANDB_MODE=offline$"):
        train({**tiny, "use_wandb": True}, note=quiet)
