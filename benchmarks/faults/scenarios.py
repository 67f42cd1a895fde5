"""What befalls a run, done to real processes: kills, full disks, lost data, dead workers; and what must hold after it.

Each mishap gives "" where the run ended as the undisturbed one did, or in words what went wrong.
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

from benchmarks.faults.forked_commands import Victim
from benchmarks.faults.short_runs import EVERY, VARIANTS, Yard, refused
from usb_rsmatch.errors import UserError
from usb_rsmatch.usb import checkpoint

# kill -9 ------------------------------------------------------------------------------------------------------------


def kill_until_done(yard: Yard, variant: int, rng: np.random.Generator, most: int) -> tuple[int, str]:
    """One run, killed at up to `most` random moments, half of them while a checkpoint is written; then left to end."""
    seconds, config = yard.whole(variant)[1], yard.config(variant, yard.fresh())
    folder, kills = yard.folder(config), 0
    while kills < most:
        with yard.start(config) as victim:
            victim.wait_for(lambda: False, float(rng.uniform(0.02, 0.9) * seconds))
            if rng.random() < 0.5:
                victim.wait_for(lambda: any(folder.glob(".*_model.pth.*.tmp")), seconds)
                time.sleep(float(rng.uniform(0, 0.004)))
            if victim.poll() is not None:
                if victim.code != 0:
                    return kills, f"lost: exit code {victim.code}: {victim.output()[-300:]}"
                break
            victim.send(signal.SIGKILL)
            victim.wait()
            kills += 1
    return kills, yard.ends_as_whole(variant, config)


# disks and folders --------------------------------------------------------------------------------------------------


def full_disk(yard: Yard, variant: int, share: float, number: int = 0) -> str:
    """A file may only grow to a share of a checkpoint: the write that crosses it fails, as on a full disk.

    From the run's start, or once `number` of its latest checkpoints are whole.
    """
    yard.whole(variant)
    config = yard.config(variant, yard.fresh())
    size = (yard.root / "runs" / f"whole{variant % len(VARIANTS)}" / "latest_model.pth").stat().st_size
    limit = max(4096, int(share * size))  # the victim's words want some room too

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

    with yard.start(config, fill_later if number else fill) as victim:
        problem = refused(victim, (1, 2))
    told = f"going on after step {EVERY * number} of" if number else ""
    return (problem and f"at {limit} bytes: {problem}") or yard.ends_as_whole(variant, config, told)


def write_fails(yard: Yard, variant: int, number: int) -> str:
    """The write system's n-th flush to disk, of a file, reports that there is no space."""
    config = yard.config(variant, yard.fresh())

    def prepare() -> None:
        real, calls = os.fsync, [0]

        def fsync(handle: int) -> None:
            calls[0] += not stat.S_ISDIR(os.fstat(handle).st_mode)  # a folder's may fail: not every system has it
            if calls[0] == number:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(handle)

        os.fsync = fsync  # type: ignore[assignment]

    with yard.start(config, prepare) as victim:
        problem = refused(victim, (1, 2))
    return problem or yard.ends_as_whole(variant, config)


def read_only_folder(yard: Yard, variant: int) -> str:
    """A run finds its folder read-only; a root process first gives up the right to write anywhere."""
    config = yard.config(variant, yard.fresh())
    folder = yard.folder(config)
    folder.mkdir(parents=True)
    folder.chmod(0o555)

    with yard.start(config, obey_modes) as victim:
        problem = refused(victim, (2,))
    folder.chmod(0o755)
    return problem or yard.ends_as_whole(variant, config)


def obey_modes() -> None:
    """Drop root's right to pass over the modes of files (CAP_DAC_OVERRIDE), where this process is root's on Linux."""
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


def damaged_checkpoint(yard: Yard, variant: int, rng: np.random.Generator, cut: bool) -> str:
    """The latest checkpoint of a killed run loses its end or has a bit flipped: the run goes on from the one before."""
    config = yard.config(variant, yard.fresh())
    latest = yard.folder(config) / "latest_model.pth"
    with yard.start(config) as victim:
        if not victim.wait_for(lambda: latest.with_name("previous_model.pth").exists()):
            return f"no second checkpoint: {victim.output()[-300:]}"
        victim.send(signal.SIGKILL)
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
        return yard.ends_as_whole(variant, config, told="going on from the checkpoint before it")
    return yard.ends_as_whole(variant, config)  # a byte of padding: nothing is damaged


# data, workers, numbers, company ------------------------------------------------------------------------------------


def data_lost(yard: Yard, variant: int, cut: bool) -> str:
    """The synthetic images' file goes while a run trains, which is then killed: told, and exact once they are back."""
    mine = yard.root / "mine.npz"
    shutil.copy(yard.root / "blends.npz", mine)
    config = yard.config(variant, yard.fresh(), synthetic=[{"source": f"npz:{mine}", "generator": "blend"}])
    latest = yard.folder(config) / "latest_model.pth"
    with yard.start(config) as victim:
        victim.wait_for(latest.exists)
        if cut:
            os.truncate(mine, mine.stat().st_size // 2)
        else:
            mine.unlink()
        victim.wait_for(lambda: latest.with_name("previous_model.pth").exists())
        victim.send(signal.SIGKILL)
    with yard.start(config) as victim:
        problem = refused(victim, (2,))
    shutil.copy(yard.root / "blends.npz", mine)
    return problem or yard.ends_as_whole(variant, config)


def dead_worker(yard: Yard, number: int) -> str:
    """A worker process of the loader is killed."""
    config = yard.config(1, yard.fresh(), num_workers=1)
    with yard.start(config) as victim:
        victim.wait_for((yard.folder(config) / "latest_model.pth").exists)
        try:
            children = Path(f"/proc/{victim.pid}/task/{victim.pid}/children").read_text().split()
        except OSError:
            return f"ended before: {victim.output()[-300:]}"
        os.kill(int(children[number % len(children)]), signal.SIGKILL)
        problem = refused(victim, (1,))
    return problem or yard.ends_as_whole(1, {**config, "num_workers": 0})


def signalled(yard: Yard, variant: int, number: int) -> str:
    """SIGTERM or SIGINT after the first checkpoint: exit code 130, saved after that step, and exact when it goes on."""
    config = yard.config(variant, yard.fresh())
    with yard.start(config) as victim:
        victim.wait_for((yard.folder(config) / "latest_model.pth").exists)
        victim.send(number)
        problem = refused(victim, (130,))
        content, _ = checkpoint.read_latest(yard.folder(config))
        if not problem and (content is None or f"stopped after step {content['it']} of" not in victim.output()):
            problem = f"lost: not saved where it stopped: {victim.output()[-300:]}"
    return problem or yard.ends_as_whole(variant, config)


def diverged(yard: Yard, variant: int) -> str:
    """A learning rate without measure: the run stops with a diagnosis, and no checkpoint holds a NaN."""
    config = yard.config(variant, yard.fresh(), lr=1e12)
    with yard.start(config) as victim:
        problem = refused(victim, (1,))
        if not problem and "lower lr" not in victim.output():
            problem = f"no diagnosis: {victim.output()[-300:]}"
    content, _ = checkpoint.read_latest(yard.folder(config))
    if content is not None and not all(bool(t.isfinite().all()) for t in content["model"].values()):
        problem = "silent: a checkpoint holds weights that are no numbers"
    return problem


def spoiled(yard: Yard, variant: int, step: int) -> str:
    """A weight is no number any more after `step` steps, as by a broken device: told, and exact from before it."""
    config = yard.config(variant, yard.fresh())

    def prepare() -> None:
        from usb_rsmatch.usb.weight_update import UpdateHook

        update = UpdateHook.after_train_step

        def spoil(self: Any, algorithm: Any) -> None:
            update(self, algorithm)
            if algorithm.it + 1 == step:
                next(algorithm.model.parameters()).data.view(-1)[0] = float("nan")

        UpdateHook.after_train_step = spoil  # type: ignore[method-assign]

    with yard.start(config, prepare) as victim:
        problem = refused(victim, (1,))
        if not problem and "the checkpoint before it is kept" not in victim.output():
            problem = f"no diagnosis: {victim.output()[-300:]}"
    before = (step - 1) // EVERY * EVERY
    return problem or yard.ends_as_whole(variant, config, told=f"going on after step {before} of")


def two_in_one_folder(yard: Yard, variant: int) -> str:
    """A second process is told that the folder is taken, and the first ends as if alone."""
    config = yard.config(variant, yard.fresh())
    with yard.start(config) as first:
        first.wait_for((yard.folder(config) / "config.yaml").exists)
        second = Victim(["train", "--c", str(yard.root / f"{config['save_name']}.yaml")], yard.root / "second.log")
        with second:
            problem = refused(second, (2,))
        (yard.root / "second.log").unlink()
        code = first.wait()
    if problem or code:
        return problem or f"lost: exit code {code}: {first.output()[-300:]}"
    return "" if yard.digest(config) == yard.whole(variant)[0] else "silent: another state in the end"
