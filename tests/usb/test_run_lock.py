"""A run folder is locked by one process at a time, and can be used again after that process was killed."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.faults.forked_commands import ForkedCommand
from usb_rsmatch.errors import UserError
from usb_rsmatch.usb.run_lock import is_empty, lock_run_folder
from usb_rsmatch.usb.training import train


def test_a_folder_is_locked_by_one_process_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with lock_run_folder(folder):
        with pytest.raises(UserError, match="in use: this process"), lock_run_folder(folder):
            pass
        pid = os.fork()
        if pid == 0:
            try:
                with lock_run_folder(folder):
                    os._exit(0)
            except UserError as error:
                os._exit(17 if f"process {os.getppid()} on " in str(error) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 17
    with lock_run_folder(folder):
        assert is_empty(folder)


def test_children_of_a_killed_process_do_not_keep_the_lock(tmp_path: Path) -> None:
    """A loader's workers inherit the open files and live for some seconds longer."""
    reader, writer = os.pipe()
    holder = os.fork()
    if holder == 0:
        with lock_run_folder(tmp_path / "run"):
            child = os.fork()
            if child == 0:
                time.sleep(30)
                os._exit(0)
            os.write(writer, str(child).encode())
            time.sleep(30)
            os._exit(0)
    child = int(os.read(reader, 20))
    with pytest.raises(UserError, match=f"process {holder} on"), lock_run_folder(tmp_path / "run"):
        pass
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    try:
        with lock_run_folder(tmp_path / "run"):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


def test_the_second_run_in_one_folder_is_refused(tiny: dict[str, Any], tmp_path: Path) -> None:
    """The second run reports the first and exits; the first run ends normally."""
    tiny |= {"num_train_iter": 100, "num_eval_iter": 50, "rs_loader": "batched"}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(tiny))
    argv = ["train", "--c", str(tmp_path / "c.yaml")]
    folder = Path(tiny["save_dir"]) / "run"
    with ForkedCommand(argv, tmp_path / "first") as first:
        assert first.wait_for(lambda: (folder / "metrics.jsonl").exists()), first.output()
        with ForkedCommand(argv, tmp_path / "second") as second:
            assert second.wait() == 2
            assert f"in use: process {first.pid} on" in second.output() and second.output().count("\n") == 1
        assert first.wait() == 0, first.output()


def test_a_folder_with_an_incomplete_configuration_becomes_a_run_folder(tiny: dict[str, Any]) -> None:
    folder = Path(tiny["save_dir"]) / "run"
    folder.mkdir(parents=True)
    (folder / ".lock").touch()
    (folder / ".config.yaml.ab12cd_9.tmp").write_text("algorith")
    train(tiny, note=lambda line: None)
    assert sorted(path.name for path in folder.glob(".*")) == [".lock"]


def test_a_run_of_a_version_with_fewer_keys_resumes(tiny: dict[str, Any]) -> None:
    first = train(tiny, note=lambda line: None)
    path = Path(tiny["save_dir"]) / "run" / "config.yaml"
    content = yaml.safe_load(path.read_text())
    del content["rs_on_nan"]
    path.write_text(yaml.safe_dump(content))
    assert train(tiny, note=lambda line: None) == first
    with pytest.raises(UserError, match="rs_on_nan: 'stop', not 'skip'"):
        train({**tiny, "rs_on_nan": "skip"}, note=lambda line: None)


def test_a_run_does_not_resume_with_other_images(tiny: dict[str, Any], tmp_path: Path) -> None:
    import numpy as np

    content = dict(np.load(tiny["synthetic"][0]["source"].removeprefix("npz:")))
    mine = tmp_path / "mine.npz"
    np.savez(mine, **content)
    tiny["synthetic"] = [{"source": f"npz:{mine}", "generator": "blend"}]
    train(tiny, note=lambda line: None)
    (Path(tiny["save_dir"]) / "run" / "result.json").unlink()
    content["image"][:] = 255 - content["image"]
    np.savez(mine, **content)
    with pytest.raises(UserError, match=r"the unlabeled images are not those with which the run started"):
        train(tiny, note=lambda line: None)
    manifest = Path(tiny["save_dir"]) / "run" / "manifest.json"
    manifest.write_text(manifest.read_text()[:100])
    with pytest.raises(UserError, match=r"manifest.json is incomplete"):
        train(tiny, note=lambda line: None)
