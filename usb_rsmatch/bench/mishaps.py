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
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from usb_rsmatch.bench.victims import HUNG, Victim
from usb_rsmatch.errors import UserError
from usb_rsmatch.usb import checkpoint

STEPS, EVERY = 40, 4  # of a run, and between its checkpoints
# What is trained: loaders, fast step, and the algorithms whose state is the most (queues, thresholds, banks).
VARIANTS: tuple[dict[str, Any], ...] = (
    {"algorithm": "rsmatch", "rs_warmup": 0.1},
    {"algorithm": "rsmatch", "rs_warmup": 0.1, "rs_loader": "pil"},
    {"algorithm": "flexmatch", "thresh_warmup": True},
    {"algorithm": "rsmatch", "rs_base": "softmatch", "rs_fast": True},
    {"algorithm": "comatch"},
    {"algorithm": "mixmatch"},  # draws from the global generators
)


@dataclass
class Yard:
    """A folder in which runs of some seconds are disturbed, and how each of them ends when it is not."""

    root: Path
    started: int = 0
    _whole: dict[int, tuple[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from sklearn.datasets import load_digits

        self.root.mkdir(parents=True, exist_ok=True)
        digits = load_digits()
        real = [digits.images[digits.target == label][:31] for label in range(10)]
        blends = [(images[1:] + images[:-1]) / 2 for images in real]
        images = np.round(np.concatenate(blends) * 255 / 16).astype(np.uint8)
        np.savez(self.root / "blends.npz", image=images, label=np.repeat(np.arange(10), 30))

    def config(self, variant: int, name: str, **changes: Any) -> dict[str, Any]:
        return {
            **{"dataset": "digits", "num_labels": 20, "real_count": 200, "synthetic_count": 200, "num_workers": 0},
            "synthetic": [{"source": f"npz:{self.root / 'blends.npz'}", "generator": "blend"}],
            **{"net": "small_wrn_10_1", "batch_size": 4, "uratio": 3, "eval_batch_size": 512, "rs_loader": "batched"},
            **{"epoch": 2, "num_train_iter": STEPS, "num_eval_iter": EVERY, "num_log_iter": 1, "ema_m": 0.9},
            **{"device": "cpu", "save_dir": str(self.root / "runs"), "save_name": name},
            **VARIANTS[variant % len(VARIANTS)],
            **changes,
        }

    def fresh(self) -> str:
        """A name that no run had yet."""
        self.started += 1
        return f"run{self.started}"

    def folder(self, config: dict[str, Any]) -> Path:
        return Path(config["save_dir"]) / config["save_name"]

    def start(self, config: dict[str, Any], prepare: Callable[[], object] = lambda: None) -> Victim:
        """`usb-rsmatch train` with that configuration; its output is beside the run folders."""

        def act() -> None:
            torch.set_num_threads(1)
            os.chdir(self.root)
            prepare()

        path = self.root / f"{config['save_name']}.yaml"
        path.write_text(yaml.safe_dump(config))
        return Victim(["train", "--c", str(path)], path.with_suffix(".log"), act)

    def whole(self, variant: int) -> tuple[str, float]:
        """Digest of all that the undisturbed run ends with, and its seconds."""
        variant %= len(VARIANTS)
        if variant not in self._whole:
            config, begun = self.config(variant, f"whole{variant}"), time.monotonic()
            with self.start(config) as victim:
                if victim.wait() != 0:
                    raise RuntimeError(victim.output())
            self._whole[variant] = self.digest(config), time.monotonic() - begun
        return self._whole[variant]

    def digest(self, config: dict[str, Any]) -> str:
        """Of weights, optimiser, position, best, and the state of hooks and generators: all but the seconds it took."""
        content = checkpoint.read(self.folder(config) / "latest_model.pth")
        del content[checkpoint.KEY]["hooks"]["TimerHook"]
        return checkpoint.digest(content)

    def ends_as_whole(self, variant: int, config: dict[str, Any], told: str = "") -> str:
        """Start the run again and let it end: "" where it ends as the undisturbed one."""
        with self.start(config) as victim:
            code = victim.wait()
            output = victim.output()
        if code != 0:
            return f"lost: exit code {code} when started again: {output[-300:]}"
        if "Traceback" in output:
            return f"traceback: {output[-300:]}"
        if told and told not in output:
            return f"untold: {told!r} is not in {output[-300:]!r}"
        if self.digest(config) != self.whole(variant)[0]:
            return "silent: another state in the end"
        left = [path.name for path in self.folder(config).glob(".*") if path.name != ".lock"]
        shutil.rmtree(self.folder(config))
        return f"left behind: {left}" if left else ""


def refused(victim: Victim, codes: tuple[int, ...], seconds: float = 120.0) -> str:
    """ "" where a victim ends with one of the exit codes and one line that tells why."""
    code = victim.wait(seconds)
    lines = victim.output().splitlines()
    if code == HUNG:
        return "hang"
    if "Traceback" in victim.output():
        return f"traceback: {victim.output()[-500:]}"
    if code not in codes or not lines or not lines[-1].startswith("usb-rsmatch: "):
        return f"exit code {code}: {victim.output()[-300:]}"
    return ""


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
        from usb_rsmatch.usb.update import UpdateHook

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
