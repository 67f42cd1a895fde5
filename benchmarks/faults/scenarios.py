"""Fault scenarios for real processes: kills, full disks, lost data, dead workers, and the checks after each.

Each scenario returns "" if the run ended like the undisturbed one, otherwise a description of the problem.
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
from benchmarks.faults.run_workspace import EVERY, VARIANTS, RunWorkspace, refused
from usb_rsmatch.errors import UserError
from usb_rsmatch.usb import checkpoint

# kill -9 ------------------------------------------------------------------------------------------------------------


def kill_until_done(workspace: RunWorkspace, variant: int, rng: np.random.Generator, most: int) -> tuple[int, str]:
    """One run, killed at up to `most` random moments, half of them while a checkpoint is written; then run to its
    end.
    """
    seconds, config = workspace.reference(variant)[1], workspace.config(variant, workspace.fresh())
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
    return kills, workspace.resumes_exactly(variant, config)


# disks and folders --------------------------------------------------------------------------------------------------


def full_disk(workspace: RunWorkspace, variant: int, share: float, number: int = 0) -> str:
    """A file may only grow to a share of a checkpoint: the write that exceeds it fails, as on a full disk.

    From the run's start, or after `number` complete checkpoints.
    """
    workspace.reference(variant)
    config = workspace.config(variant, workspace.fresh())
    size = (workspace.root / "runs" / f"whole{variant % len(VARIANTS)}" / "latest_model.pth").stat().st_size
    limit = max(4096, int(share * size))  # the child's output needs some space too

    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    def fill_later() -> None:
        write, whole = checkpoint.write, [0]

        def counted(content: dict[str, Any], path: Path) -> None:
            if path.name == "latest_model.pth":
                if whole[0] == number:
                    fill()
                whole[0] += 1
            write(content, path)

        checkpoint.write = counted

    with workspace.start(config, fill_later if number else fill) as child:
        problem = refused(child, (1, 2))
    expected = f"resuming after step {EVERY * number} of" if number else ""
    return (problem and f"at {limit} bytes: {problem}") or workspace.resumes_exactly(variant, config, expected)


def write_fails(workspace: RunWorkspace, variant: int, number: int) -> str:
    """The n-th flush of a file to disk fails: no space left."""
    config = workspace.config(variant, workspace.fresh())

    def prepare() -> None:
        real, calls = os.fsync, [0]

        def fsync(handle: int) -> None:
            calls[0] += not stat.S_ISDIR(os.fstat(handle).st_mode)  # not every system can flush folders
            if calls[0] == number:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(handle)

        os.fsync = fsync  # type: ignore[assignment]

    with workspace.start(config, prepare) as child:
        problem = refused(child, (1, 2))
    return problem or workspace.resumes_exactly(variant, config)


def read_only_folder(workspace: RunWorkspace, variant: int) -> str:
    """A run finds its folder read-only; a root process first gives up its right to write anywhere."""
    config = workspace.config(variant, workspace.fresh())
    folder = workspace.folder(config)
    folder.mkdir(parents=True)
    folder.chmod(0o555)

    with workspace.start(config, obey_modes) as child:
        problem = refused(child, (2,))
    folder.chmod(0o755)
    return problem or workspace.resumes_exactly(variant, config)


def obey_modes() -> None:
    """Drop root's right to ignore file modes (CAP_DAC_OVERRIDE), if this process is root on Linux."""
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
    """The latest checkpoint of a killed run is truncated or has a flipped bit: the run resumes from the previous
    one.
    """
    config = workspace.config(variant, workspace.fresh())
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
        return workspace.resumes_exactly(variant, config, expected="resuming from the previous checkpoint")
    return workspace.resumes_exactly(variant, config)  # a padding byte: nothing is damaged


# data, workers, diverging losses, a second process -------------------------------------------------------------------


def data_lost(workspace: RunWorkspace, variant: int, cut: bool) -> str:
    """The synthetic images' file is removed during a run, which is then killed: reported, and exact once it is
    restored.
    """
    mine = workspace.root / "mine.npz"
    shutil.copy(workspace.root / "blends.npz", mine)
    config = workspace.config(variant, workspace.fresh(), synthetic=[{"source": f"npz:{mine}", "generator": "blend"}])
    latest = workspace.folder(config) / "latest_model.pth"
    with workspace.start(config) as child:
        child.wait_for(latest.exists)
        if cut:
            os.truncate(mine, mine.stat().st_size // 2)
        else:
            mine.unlink()
        child.wait_for(lambda: latest.with_name("previous_model.pth").exists())
        child.send(signal.SIGKILL)
    with workspace.start(config) as child:
        problem = refused(child, (2,))
    shutil.copy(workspace.root / "blends.npz", mine)
    return problem or workspace.resumes_exactly(variant, config)


def dead_worker(workspace: RunWorkspace, number: int) -> str:
    """A worker process of the loader is killed."""
    config = workspace.config(1, workspace.fresh(), num_workers=1)
    with workspace.start(config) as child:
        child.wait_for((workspace.folder(config) / "latest_model.pth").exists)
        try:
            children = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
        except OSError:
            return f"ended before: {child.output()[-300:]}"
        os.kill(int(children[number % len(children)]), signal.SIGKILL)
        problem = refused(child, (1,))
    return problem or workspace.resumes_exactly(1, {**config, "num_workers": 0})


def signalled(workspace: RunWorkspace, variant: int, number: int) -> str:
    """SIGTERM or SIGINT after the first checkpoint: exit code 130, saved after that step, and exact after resuming."""
    config = workspace.config(variant, workspace.fresh())
    with workspace.start(config) as child:
        child.wait_for((workspace.folder(config) / "latest_model.pth").exists)
        child.send(number)
        problem = refused(child, (130,))
        content, _ = checkpoint.read_latest(workspace.folder(config))
        if not problem and (content is None or f"stopped after step {content['it']} of" not in child.output()):
            problem = f"lost: not saved where it stopped: {child.output()[-300:]}"
    return problem or workspace.resumes_exactly(variant, config)


def diverged(workspace: RunWorkspace, variant: int) -> str:
    """A huge learning rate: the run stops with a diagnosis, and no checkpoint contains a NaN."""
    config = workspace.config(variant, workspace.fresh(), lr=1e12)
    with workspace.start(config) as child:
        problem = refused(child, (1,))
        if not problem and "lower lr" not in child.output():
            problem = f"no diagnosis: {child.output()[-300:]}"
    content, _ = checkpoint.read_latest(workspace.folder(config))
    if content is not None and not all(bool(t.isfinite().all()) for t in content["model"].values()):
        problem = "silent: a checkpoint contains weights that are not finite"
    return problem


def spoiled(workspace: RunWorkspace, variant: int, step: int) -> str:
    """A weight becomes NaN after `step` steps, as on a broken device: reported, and exact from the previous
    checkpoint.
    """
    config = workspace.config(variant, workspace.fresh())

    def prepare() -> None:
        from usb_rsmatch.usb.weight_update import UpdateHook

        update = UpdateHook.after_train_step

        def spoil(self: Any, algorithm: Any) -> None:
            update(self, algorithm)
            if algorithm.it + 1 == step:
                next(algorithm.model.parameters()).data.view(-1)[0] = float("nan")

        UpdateHook.after_train_step = spoil  # type: ignore[method-assign]

    with workspace.start(config, prepare) as child:
        problem = refused(child, (1,))
        if not problem and "previous checkpoint is kept" not in child.output():
            problem = f"no diagnosis: {child.output()[-300:]}"
    before = (step - 1) // EVERY * EVERY
    return problem or workspace.resumes_exactly(variant, config, expected=f"resuming after step {before} of")


def two_in_one_folder(workspace: RunWorkspace, variant: int) -> str:
    """A second process is refused with a message, and the first one is not disturbed."""
    config = workspace.config(variant, workspace.fresh())
    with workspace.start(config) as first:
        first.wait_for((workspace.folder(config) / "config.yaml").exists)
        arguments = ["train", "--c", str(workspace.root / f"{config['save_name']}.yaml")]
        second = ForkedCommand(arguments, workspace.root / "second.log")
        with second:
            problem = refused(second, (2,))
        (workspace.root / "second.log").unlink()
        code = first.wait()
    if problem or code:
        return problem or f"lost: exit code {code}: {first.output()[-300:]}"
    return "" if workspace.digest(config) == workspace.reference(variant)[0] else "silent: another final state"
