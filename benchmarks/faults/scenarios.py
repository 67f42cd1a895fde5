"""Fault scenarios, each with a real training process and a check of its outcome.

Kills, full disks, lost data, killed workers, and more. A scenario returns "" if the run behaved as documented and,
where it can be resumed, ended with the state of the undisturbed run; otherwise a description of the problem.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import shutil
import signal
import stat
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.faults.forked_commands import ForkedCommand
from benchmarks.faults.run_workspace import EVERY, VARIANTS, RunWorkspace, check_refusal
from usb_rsmatch.errors import UserError
from usb_rsmatch.usb import checkpoint

# kill -9 ------------------------------------------------------------------------------------------------------------


def kill_until_done(workspace: RunWorkspace, variant: int, rng: np.random.Generator, most: int) -> tuple[int, str]:
    """Kill a run at up to `most` random moments, about half of them while a checkpoint is written; then let it finish.

    Returns the number of kills and the problem ("" for none).
    """
    seconds, config = workspace.reference(variant)[1], workspace.config(variant, workspace.new_run_name())
    folder, kills = workspace.folder(config), 0
    while kills < most:
        with workspace.start(config) as child:
            child.wait_for(lambda: False, float(rng.uniform(0.02, 0.9) * seconds))
            if rng.random() < 0.5:
                child.wait_for(lambda: any(folder.glob(".*_model.pth.*.tmp")), seconds)
                time.sleep(float(rng.uniform(0, 0.004)))
            if child.poll() is not None:
                if child.code != 0:
                    return kills, f"lost: exit code {child.code}: {child.output()[-300:]}"
                break
            child.send(signal.SIGKILL)
            child.wait()
            kills += 1
    return kills, workspace.check_resume(variant, config)


# disks and folders --------------------------------------------------------------------------------------------------


def full_disk(workspace: RunWorkspace, variant: int, share: float, number: int = 0) -> str:
    """Limit the file size to a share of a checkpoint's size: a larger write fails, as on a full disk.

    The limit holds from the run's start, or after `number` complete checkpoints.
    """
    workspace.reference(variant)
    config = workspace.config(variant, workspace.new_run_name())
    size = (workspace.root / "runs" / f"whole{variant % len(VARIANTS)}" / "latest_model.pth").stat().st_size
    limit = max(4096, int(share * size))  # the child's output needs some space too

    def limit_file_size() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    def limit_later() -> None:
        write, complete = checkpoint.write, [0]

        def counted(content: dict[str, Any], path: Path) -> None:
            if path.name == "latest_model.pth":
                if complete[0] == number:
                    limit_file_size()
                complete[0] += 1
            write(content, path)

        checkpoint.write = counted

    with workspace.start(config, limit_later if number else limit_file_size) as child:
        problem = check_refusal(child, (1, 2))
    expected = f"resuming after step {EVERY * number} of" if number else ""
    return (problem and f"at {limit} bytes: {problem}") or workspace.check_resume(variant, config, expected)


def failed_flush(workspace: RunWorkspace, variant: int, number: int) -> str:
    """Let the n-th flush of a file to disk (fsync) fail with "no space left on device"."""
    config = workspace.config(variant, workspace.new_run_name())

    def prepare() -> None:
        real, calls = os.fsync, [0]

        def fsync(handle: int) -> None:
            calls[0] += not stat.S_ISDIR(os.fstat(handle).st_mode)  # not every system can flush folders
            if calls[0] == number:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(handle)

        os.fsync = fsync  # type: ignore[assignment]

    with workspace.start(config, prepare) as child:
        problem = check_refusal(child, (1, 2))
    return problem or workspace.check_resume(variant, config)


def read_only_folder(workspace: RunWorkspace, variant: int) -> str:
    """Start a run whose folder is read-only."""
    config = workspace.config(variant, workspace.new_run_name())
    folder = workspace.folder(config)
    folder.mkdir(parents=True)
    folder.chmod(0o555)

    with workspace.start(config, drop_file_mode_override) as child:
        problem = check_refusal(child, (2,))
    folder.chmod(0o755)
    return problem or workspace.check_resume(variant, config)


def drop_file_mode_override() -> None:
    """Drop root's right to ignore file modes (CAP_DAC_OVERRIDE), so that a read-only folder is one for root too.

    Does nothing on systems other than Linux, or for other users.
    """
    if sys.platform != "linux" or os.getuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3; this process
    rights = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable: the low 32 bits, then the high
    if libc.capget(header, rights) != 0:
        raise OSError(ctypes.get_errno(), "capget")
    for place in range(3):
        rights[place] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    if libc.capset(header, rights) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def damaged_checkpoint(workspace: RunWorkspace, variant: int, rng: np.random.Generator, cut: bool) -> str:
    """Truncate the latest checkpoint of a killed run, or flip a bit: the run must resume from the previous one."""
    config = workspace.config(variant, workspace.new_run_name())
    latest = workspace.folder(config) / "latest_model.pth"
    with workspace.start(config) as child:
        if not child.wait_for(lambda: latest.with_name("previous_model.pth").exists()):
            return f"no second checkpoint: {child.output()[-300:]}"
        child.send(signal.SIGKILL)
    content = bytearray(latest.read_bytes())
    if cut:
        del content[int(rng.integers(len(content))) :]
    else:
        where = content.find(b"/data/0") + 64 + int(rng.integers(200))
        content[where] ^= 1 << int(rng.integers(8))
    latest.write_bytes(content)
    try:
        checkpoint.read(latest)
    except UserError:
        return workspace.check_resume(variant, config, expected="resuming from the previous checkpoint")
    return workspace.check_resume(variant, config)  # the flipped bit is in a padding byte: no damage


# data, workers, diverging losses, a second process -------------------------------------------------------------------


def lost_data_file(workspace: RunWorkspace, variant: int, cut: bool) -> str:
    """Truncate or delete the file of synthetic images during a run, then kill the run.

    The restart must report the loss; once the file is restored, the run must resume exactly.
    """
    data_file = workspace.root / "mine.npz"
    shutil.copy(workspace.root / "blends.npz", data_file)
    synthetic = [{"source": f"npz:{data_file}", "generator": "blend"}]
    config = workspace.config(variant, workspace.new_run_name(), synthetic=synthetic)
    latest = workspace.folder(config) / "latest_model.pth"
    with workspace.start(config) as child:
        child.wait_for(latest.exists)
        if cut:
            os.truncate(data_file, data_file.stat().st_size // 2)
        else:
            data_file.unlink()
        child.wait_for(lambda: latest.with_name("previous_model.pth").exists())
        child.send(signal.SIGKILL)
    with workspace.start(config) as child:
        problem = check_refusal(child, (2,))
    shutil.copy(workspace.root / "blends.npz", data_file)
    return problem or workspace.check_resume(variant, config)


def killed_worker(workspace: RunWorkspace, number: int) -> str:
    """Kill a worker process of the data loader; `number` chooses which."""
    config = workspace.config(1, workspace.new_run_name(), num_workers=1)
    with workspace.start(config) as child:
        child.wait_for((workspace.folder(config) / "latest_model.pth").exists)
        try:
            children = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
        except OSError:
            return f"ended before: {child.output()[-300:]}"
        os.kill(int(children[number % len(children)]), signal.SIGKILL)
        problem = check_refusal(child, (1,))
    return problem or workspace.check_resume(1, {**config, "num_workers": 0})


def stop_signal(workspace: RunWorkspace, variant: int, number: int) -> str:
    """Send SIGTERM or SIGINT after the first checkpoint: the run must save its last step and exit with code 130."""
    config = workspace.config(variant, workspace.new_run_name())
    with workspace.start(config) as child:
        child.wait_for((workspace.folder(config) / "latest_model.pth").exists)
        child.send(number)
        problem = check_refusal(child, (130,))
        content, _ = checkpoint.read_latest(workspace.folder(config))
        if not problem and (content is None or f"stopped after step {content['it']} of" not in child.output()):
            problem = f"lost: the step at which it stopped is not saved: {child.output()[-300:]}"
    return problem or workspace.check_resume(variant, config)


def diverging_loss(workspace: RunWorkspace, variant: int) -> str:
    """Train with a huge learning rate: the run must stop with a diagnosis, and no checkpoint may contain a NaN."""
    config = workspace.config(variant, workspace.new_run_name(), lr=1e12)
    with workspace.start(config) as child:
        problem = check_refusal(child, (1,))
        if not problem and "lower lr" not in child.output():
            problem = f"no diagnosis: {child.output()[-300:]}"
    content, _ = checkpoint.read_latest(workspace.folder(config))
    if content is not None and not all(bool(t.isfinite().all()) for t in content["model"].values()):
        problem = "silent: a checkpoint contains weights that are not finite"
    return problem


def nan_weight(workspace: RunWorkspace, variant: int, step: int) -> str:
    """Set a weight to NaN after `step` steps, as a broken device might.

    The run must report it, and resume exactly from the last checkpoint before.
    """
    config = workspace.config(variant, workspace.new_run_name())

    def prepare() -> None:
        from usb_rsmatch.usb.weight_update import UpdateHook

        update = UpdateHook.after_train_step

        def set_nan(self: Any, algorithm: Any) -> None:
            update(self, algorithm)
            if algorithm.it + 1 == step:
                next(algorithm.model.parameters()).data.view(-1)[0] = float("nan")

        UpdateHook.after_train_step = set_nan  # type: ignore[method-assign]

    with workspace.start(config, prepare) as child:
        problem = check_refusal(child, (1,))
        if not problem and "previous checkpoint is kept" not in child.output():
            problem = f"no diagnosis: {child.output()[-300:]}"
    before = (step - 1) // EVERY * EVERY
    return problem or workspace.check_resume(variant, config, expected=f"resuming after step {before} of")


def two_runs_in_one_folder(workspace: RunWorkspace, variant: int) -> str:
    """Start a second process in the same run folder: it must be refused, and the first one must not be disturbed."""
    config = workspace.config(variant, workspace.new_run_name())
    with workspace.start(config) as first:
        first.wait_for((workspace.folder(config) / "config.yaml").exists)
        arguments = ["train", "--c", str(workspace.root / f"{config['save_name']}.yaml")]
        second = ForkedCommand(arguments, workspace.root / "second.log")
        with second:
            problem = check_refusal(second, (2,))
        (workspace.root / "second.log").unlink()
        code = first.wait()
    if problem or code:
        return problem or f"lost: exit code {code}: {first.output()[-300:]}"
    return "" if workspace.digest(config) == workspace.reference(variant)[0] else "silent: the final state differs"
