"""Tests of the fault campaign on a small scale: kills, fault scenarios, fuzzing, and resuming a campaign."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.faults import campaign, endurance, fuzzing, malformed_inputs, scenarios
from benchmarks.faults.run_workspace import STEPS, RunWorkspace
from usb_rsmatch.errors import Interrupted, UserError
from usb_rsmatch.usb import checkpoint, config, hooks, training


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> RunWorkspace:
    return RunWorkspace(tmp_path_factory.mktemp("workspace"))


def test_a_run_that_is_killed_repeatedly_ends_like_the_undisturbed_run(workspace: RunWorkspace) -> None:
    kills, problem = scenarios.kill_until_done(workspace, 0, np.random.default_rng(1), 3)
    assert kills > 0 and problem == ""


def test_a_full_disk_is_reported_and_the_run_resumes(workspace: RunWorkspace) -> None:
    assert scenarios.full_disk(workspace, 0, 0.5) == ""
    assert scenarios.full_disk(workspace, 0, 0.5, number=2) == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(campaign.scenario_list(quick=False)))
def test_every_fault_scenario(name: str, workspace: RunWorkspace) -> None:
    assert campaign.scenario_list(quick=False)[name](workspace) == ""


def test_a_different_final_state_is_found(workspace: RunWorkspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison can fail: a run with another seed differs from the undisturbed run."""
    problem = workspace.check_resume(0, workspace.config(0, workspace.new_run_name(), seed=1))
    assert problem == "silent: the final state differs"
    config = workspace.config(0, workspace.new_run_name(), num_labels=15)
    assert workspace.check_resume(0, config).startswith("lost: exit code 2")


def test_defects_are_found(workspace: RunWorkspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Defects on purpose: random state not restored, damaged file accepted, stop without saving, NaN not checked."""

    def read_without_digest(path: Path) -> Any:
        return torch.load(path, weights_only=True)

    def write_in_place(content: dict[str, Any], path: Path) -> None:
        torch.save(content, path)

    class StopsWithoutSaving(hooks.CheckpointHook):
        def after_train_step(self, algorithm: Any) -> None:
            if algorithm.stop_requested():
                raise Interrupted(f"stopped after step {algorithm.it + 1} of {algorithm.num_train_iter}; saved")
            super().after_train_step(algorithm)

    def found(place: Any, name: str, value: Any, scenario: str) -> str:
        with monkeypatch.context() as patch:  # child processes are forks: they have the defect too
            patch.setattr(place, name, value)
            return campaign.scenario_list(quick=False)[scenario](workspace)

    for variant in (0, 5):
        workspace.reference(variant)
    assert found(checkpoint, "set_random_state", lambda state: None, "SIGTERM, variant 5").startswith("silent")
    assert found(checkpoint, "read", read_without_digest, "checkpoint flipped, variant 0").startswith("silent")
    assert found(checkpoint, "write", write_in_place, "disk full at 0.5 of the third checkpoint") != ""
    assert found(training, "CheckpointHook", StopsWithoutSaving, "SIGTERM, variant 0").startswith("lost")
    assert found(hooks, "nonfinite", lambda model: [], "weights are no numbers where a checkpoint is due") != ""


def test_a_leak_is_found() -> None:
    flat = np.full(40, 500.0)
    assert endurance.find_leak(flat, flat, flat) == ""
    assert endurance.find_leak(np.linspace(500, 560, 40), flat, flat).startswith("leak: from 506.9 to 553.1 MiB")
    assert "open files" in endurance.find_leak(flat, np.arange(40) // 4, flat)
    assert "threads" in endurance.find_leak(flat, flat, np.arange(40))


@pytest.mark.parametrize("reader", sorted(fuzzing.READERS))
def test_malformed_files_are_refused_in_one_line(reader: str) -> None:
    found = fuzzing.fuzz(reader, 40)
    assert found.cases >= 30
    assert found.tracebacks == found.hangs == found.writes_outside == []


def test_the_fuzzer_finds_tracebacks_hangs_and_writes_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reader(folder: Path) -> Any:
        def read(case: int) -> None:
            if case == 0:
                raise ValueError("not a UserError")
            if case == 1:
                (folder / "../../evil").mkdir()
            if case == 3:
                while True:
                    pass

        return fuzzing.st.integers(0, 4), read

    monkeypatch.setitem(fuzzing.READERS, "defective", reader)
    monkeypatch.setattr(fuzzing, "SECONDS", 0.05)
    found = fuzzing.fuzz("defective", 60)
    assert {line.split(":")[1] for line in found.tracebacks} == {" ValueError"}
    assert found.hangs and found.writes_outside


@pytest.mark.parametrize(
    "text", [malformed_inputs.YAML_BOMB, "[" * 5000, "- " * 5000, "{a: " * 3000, "!!python/object/apply:os.mkdir [x]"]
)
def test_yaml_bombs_are_refused_at_once(text: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        config.resolve(tmp_path / "c.yaml")
    assert "\n" not in str(caught.value) and not (tmp_path / "x").exists()
    (tmp_path / "c.yaml").write_text("#" * 3_000_000)
    with pytest.raises(UserError, match="it is not a configuration"):
        config.resolve(tmp_path / "c.yaml")


def test_a_campaign_resumes_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "faults.json"
    monkeypatch.setattr(
        campaign, "scenario_list", lambda quick: {"nothing": lambda _: "", "loss": lambda _: "silent: x"}
    )
    command = ["--out", str(out), "--kills", "0", "--soak-minutes", "0", "--fuzz"]
    assert campaign.main([*command, "12"]) == 1
    first = json.loads(out.read_text())
    assert first["fuzz_cases"] == 12 and first["mishaps"] == {"nothing": "passed", "loss": "silent: x"}
    assert (
        first["silent_wrong"] == 1
        and first["resume_bitwise_equal"] is False
        and first["findings"] == ["loss: silent: x"]
    )
    assert campaign.main([*command, "24"]) == 1
    again = json.loads(out.read_text())
    assert again["fuzz_cases"] == 24 and again["silent_wrong"] == 1 and again["command"].endswith("--fuzz 24")
    assert campaign.INITIAL_VALUES.keys() <= again.keys()
    out.write_text("{")
    assert campaign.main([*command, "24"]) == 2


def test_the_endurance_run_samples_a_training_process(workspace: RunWorkspace) -> None:
    measured = endurance.endurance_run(workspace, 0.05)
    assert measured["open_files"]["most"] >= 3 and measured["memory_mib"]["end"] > 50
    slope = endurance.slope_per_hour(np.array([0.0, 1.0, 2.0]), np.array([5.0, 6.0, 7.0]))
    assert slope == pytest.approx(3600)


def test_a_checkpoint_of_the_reference_run_is_read(workspace: RunWorkspace) -> None:
    workspace.reference(0)
    folder = workspace.folder(workspace.config(0, "whole0"))
    assert checkpoint.read(folder / "latest_model.pth")["it"] == STEPS
