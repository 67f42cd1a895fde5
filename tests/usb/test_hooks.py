"""Hooks of a run: metrics after a crash, progress lines, and losses and weights that are not finite."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from usb_rsmatch.errors import Interrupted, RunFailed
from usb_rsmatch.usb import checkpoint, training
from usb_rsmatch.usb.hooks import MetricsHook, ProgressHook, read_metrics, summary, to_json_value
from usb_rsmatch.usb.state import capture, pack
from usb_rsmatch.usb.training import train


def silent(line: str) -> None:
    pass


def steps(path: Path) -> list[int]:
    """The steps of the lines of a metrics file."""
    return [json.loads(line)["it"] for line in path.read_text().splitlines()]


def stop_after(step: int, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    left = iter(range(step - 1, -1, -1))
    with monkeypatch.context() as patch:
        patch.setattr(training.StopBetweenSteps, "__call__", lambda self: next(left) == 0)
        with pytest.raises(Interrupted):
            train(config, note=silent)


# metrics ------------------------------------------------------------------------------------------------------------


def test_lines_after_the_resumed_step_are_dropped_and_written_again(
    tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed process may have written metrics of steps after its last checkpoint."""
    whole = {**tiny, "save_name": "whole"}
    train(whole, note=silent)
    stop_after(5, tiny, monkeypatch)
    path = Path(tiny["save_dir"]) / "run" / "metrics.jsonl"
    assert steps(path) == [2, 4]
    with open(path, "a") as file:
        file.write('{"it": 6, "train/total_loss": 99.0}\n{"it": 8, "train/total_l')
    train(tiny, note=silent)
    assert steps(path) == [2, 4, 6, 8, 10, 12]
    losses = [
        [line["train/total_loss"] for line in read_metrics(Path(tiny["save_dir"]) / name / "metrics.jsonl")]
        for name in ("whole", "run")
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    "ending", ["", '{"it": 3, "lo', "\0\0\0\0", "7\n", "[]\n", "{}\n", '{"it": 3,\n{"it": 4}\n', "\udcff"]
)
def test_an_incomplete_end_after_a_crash_is_ignored(ending: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(('{"it": 1}\n{"it": 2}\n' + ending).encode("utf-8", "surrogateescape"))
    assert [line["it"] for line in read_metrics(path)] == [1, 2]


def test_a_missing_metrics_file_has_no_lines(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "absent.jsonl") == []


def test_the_result_is_evaluated_again_if_the_metrics_were_removed(tiny: dict[str, Any]) -> None:
    expected = train(tiny, note=silent)
    folder = Path(tiny["save_dir"]) / "run"
    for name in ("metrics.jsonl", "result.json"):
        (folder / name).unlink()
    assert train(tiny, note=silent)["accuracy"] == expected["accuracy"]


def test_the_hook_drops_lines_after_the_run_s_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"it": {step}}}\n' for step in (2, 4, 6)))
    MetricsHook(path).before_run(SimpleNamespace(it=4))
    assert steps(path) == [2, 4]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (torch.tensor(1.5, requires_grad=True), 1.5),
        (torch.tensor([1.0, 2.0]), [1.0, 2.0]),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (float("nan"), None),
        (torch.tensor(float("inf")), None),
        ("text", "text"),
    ],
)
def test_logged_values_become_plain_json_values(value: Any, expected: Any) -> None:
    assert to_json_value(value) == expected
    json.dumps(to_json_value(value), allow_nan=False)


# progress -----------------------------------------------------------------------------------------------------------


def test_plain_progress_lines_without_a_terminal(tiny: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    train({**tiny, "algorithm": "rsmatch"}, note=silent)
    captured = capsys.readouterr()
    lines = [line for line in captured.out.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in lines] == ["6/12", "12/12"]
    assert all("accuracy " in line and "loss " in line and "AUROC " in line for line in lines)
    assert "\r" not in captured.out + captured.err


def test_the_progress_bar_is_not_part_of_a_checkpoint() -> None:
    hook = ProgressHook()
    hook.before_run(SimpleNamespace(num_train_iter=3, it=0, save_name="run"))
    assert capture(hook) == {}
    hook.close()


def test_the_summary_shows_the_values_that_are_present_and_finite() -> None:
    assert summary({}) == ""
    log = {"eval/top-1-acc": 0.875, "train/total_loss": torch.tensor(float("nan")), "detection/auroc": 0.5}
    assert summary(log) == "accuracy 87.50  AUROC 0.50"


# losses that are not finite -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [3, 7, 12])
def test_a_nan_loss_stops_the_run_and_keeps_the_previous_checkpoint(
    at: int, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    build, poison = training.build, [True]

    def poisoned(*args: Any) -> Any:
        algorithm = build(*args)
        step, forward = algorithm.train_step, algorithm.ce_loss

        def loss(*given: Any, **options: Any) -> Any:
            value = forward(*given, **options)
            return value * float("nan") if poison[0] and algorithm.it + 1 >= at else value

        algorithm.ce_loss = loss
        assert step is not None
        return algorithm

    monkeypatch.setattr(training, "build", poisoned)
    message = rf"the loss is nan at step {at} \(sup_loss nan, .*; the weights are finite; lr 0\..*lower lr"
    with pytest.raises(RunFailed, match=message):
        train(tiny, note=silent)
    folder = Path(tiny["save_dir"]) / "run"
    content, note = checkpoint.read_latest(folder)
    if at < 6:
        assert content is None
    else:
        assert content is not None and note is None and content["it"] == 6
        assert all(torch.isfinite(t).all() for t in content["model"].values())
    assert not (folder / "result.json").exists()
    poison[0] = False  # the cause is removed: the run resumes
    assert train(tiny, note=silent)["iterations"] == 12


@pytest.mark.parametrize("algorithm", ["rsmatch", "freematch", "flexmatch"])
def test_a_step_with_a_nan_loss_can_be_skipped(
    algorithm: str, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It changes no weight, statistic, queue or threshold, and a run that is stopped later has the same end."""
    build = training.build
    tiny |= {"algorithm": algorithm, "rs_on_nan": "skip", "rs_loader": "batched", "rs_warmup": 0.0, "ema_m": 0.0}
    states: dict[str, Any] = {}

    def state(algorithm: Any) -> Any:
        kept = {name: capture(hook) for name, hook in algorithm.hooks_dict.items()}
        del kept["TimerHook"], kept["ParamUpdateHook"]
        return pack({"hooks": kept, "model": dict(algorithm.model.state_dict())})

    def poisoned(*args: Any) -> Any:
        algorithm = build(*args)
        forward, update = algorithm.ce_loss, algorithm.hooks_dict["ParamUpdateHook"]
        after = update.after_train_step

        def loss(*given: Any, **options: Any) -> Any:
            return forward(*given, **options) * (float("nan") if algorithm.it == 4 else 1.0)

        def around(algorithm: Any) -> None:
            if algorithm.it == 4:
                states["before_undo"] = state(algorithm)
            after(algorithm)
            states[algorithm.it] = state(algorithm)

        algorithm.ce_loss, update.after_train_step = loss, around
        return algorithm

    monkeypatch.setattr(training, "build", poisoned)
    train({**tiny, "save_name": "whole"}, note=silent)
    assert checkpoint.digest(states[3]) == checkpoint.digest(states[4]) != checkpoint.digest(states["before_undo"])
    lines = read_metrics(Path(tiny["save_dir"]) / "whole" / "metrics.jsonl")
    assert [line.get("train/skipped_steps") for line in lines] == [None, None, 1, 1, 1, 1]
    stop_after(5, tiny, monkeypatch)
    train(tiny, note=silent)
    folders = [Path(tiny["save_dir"]) / name for name in ("whole", "run")]
    whole, stopped = (checkpoint.read(folder / "latest_model.pth") for folder in folders)
    assert checkpoint.digest(whole["model"]) == checkpoint.digest(stopped["model"])
    assert whole[checkpoint.KEY]["hooks"]["ParamUpdateHook"]["skipped"] == 1


def test_a_run_that_would_skip_every_step_stops(tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("usb_rsmatch.usb.weight_update.MOST_SKIPPED", 3)
    with pytest.raises(RunFailed, match=r"the loss is (nan|inf) .*3 consecutive steps skipped"):
        train({**tiny, "rs_on_nan": "skip", "lr": 1e30}, note=silent)


@pytest.mark.parametrize("at", [6, 12])
def test_weights_that_are_not_finite_are_not_saved(
    at: int, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At an evaluation step the loss is finite, but the gradient is not."""
    build = training.build

    def poisoned(*args: Any) -> Any:
        algorithm = build(*args)

        def ruin(*_: Any) -> None:
            if algorithm.it + 1 == at:
                algorithm.model.conv1.weight.grad.fill_(float("inf"))

        algorithm.optimizer.register_step_pre_hook(ruin)
        return algorithm

    with monkeypatch.context() as patch:
        patch.setattr(training, "build", poisoned)
        with pytest.raises(RunFailed, match=f"the weights are not finite after step {at}; .*lower lr"):
            train(tiny, note=silent)
    content, note = checkpoint.read_latest(Path(tiny["save_dir"]) / "run")
    assert note is None and (content is None if at == 6 else content is not None and content["it"] == 6)
    assert train(tiny, note=silent)["iterations"] == 12


def test_an_error_before_the_first_step_is_reported(tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    build = training.build

    def broken(*args: Any) -> Any:
        algorithm = build(*args)

        def warmup() -> None:
            raise RuntimeError("no warm-up today")

        algorithm.warmup = warmup
        return algorithm

    monkeypatch.setattr(training, "build", broken)
    with pytest.raises(RunFailed, match="no warm-up today"):
        train(tiny, note=silent)
