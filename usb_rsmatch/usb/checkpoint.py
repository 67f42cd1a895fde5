"""Checkpoint files: written atomically, with a checksum; the last two are kept; loading never executes code."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import random
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from usb_rsmatch import distributed
from usb_rsmatch.errors import UserError
from usb_rsmatch.io import atomic_write
from usb_rsmatch.usb.state import pack, unpack

KEY = "usb_rsmatch"  # our part of a checkpoint, in addition to the keys that USB reads


def tensors(value: Any, most: int) -> Iterator[torch.Tensor]:
    """Every tensor of a nested checkpoint; ValueError for more than `most` values, such as lists that repeat one
    list.
    """
    left, waiting = most, [value]
    while waiting:
        node, left = waiting.pop(), left - 1
        if left < 0:
            raise ValueError("it holds more values than it has bytes")
        if isinstance(node, torch.Tensor):
            yield node
        elif isinstance(node, (dict, list, tuple)):
            waiting.extend(node.values() if isinstance(node, dict) else node)


def digest(value: Any) -> str:
    """SHA-256 over every tensor and plain value of a nested checkpoint, in order."""
    sha = hashlib.sha256()

    def walk(node: Any) -> None:
        if isinstance(node, torch.Tensor):
            sha.update(f"{node.dtype}{tuple(node.shape)}".encode())
            sha.update(node.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(node, dict):
            for key, item in node.items():
                sha.update(repr(key).encode())
                walk(item)
        elif isinstance(node, (list, tuple)):
            sha.update(b"[")
            for item in node:
                walk(item)
        else:
            sha.update(repr(node).encode())

    walk(value)
    return sha.hexdigest()


def write(content: dict[str, Any], path: Path) -> None:
    """Save `content` with its digest; an older `latest_model.pth` becomes `previous_model.pth`.

    Raises OSError if the disk is full or fails; existing files stay unchanged.
    """
    content[KEY].pop("digest", None)
    content[KEY]["digest"] = digest(content)
    before = path.with_name("previous_model.pth") if path.name == "latest_model.pth" else None
    with atomic_write(path, keep=before) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch's writer raises this if fewer bytes were written than expected
            if "inline_container" not in str(error):
                raise
            raise OSError(errno.ENOSPC, "a checkpoint could not be written: is the disk full?", path) from error


def allow_numpy_scalars() -> contextlib.AbstractContextManager[None]:
    """Allow NumPy numbers in a checkpoint: USB saves accuracies as such with older scikit-learn."""
    if not hasattr(torch.serialization, "safe_globals"):  # torch 2.4
        return contextlib.nullcontext()
    kinds: set[Any] = {type(np.dtype(kind)) for kind in ("float32", "float64", "int64")}
    rebuild: Any = np.float64(0).__reduce__()[0]
    return torch.serialization.safe_globals([rebuild, np.dtype, *kinds])


def missing_state_note(content: dict[str, Any]) -> str | None:
    """One line about the state that a checkpoint of USB does not contain; None for a checkpoint of ours."""
    if KEY in content:
        return None
    return (
        "a checkpoint of USB itself has no random states, queues and hook states: the run resumes, but does not equal "
        "an uninterrupted one"
    )


def read(path: Path) -> dict[str, Any]:
    """Load a checkpoint (ours or USB's); UserError for a file that is damaged or needs code execution to load."""
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise ValueError("it is not a regular file")  # reading from a pipe might never end
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                    raise ValueError("it is compressed, unlike torch's files, and might expand to any size")
                if archive.testzip() is not None:  # torch writes checksums but does not verify them
                    raise ValueError("its contents do not match their checksums")
        with allow_numpy_scalars():
            content = torch.load(path, map_location="cpu", weights_only=True)
        if any(t.numel() * t.element_size() > t.untyped_storage().nbytes() for t in tensors(content, size)):
            raise ValueError("a tensor in it claims more values than are stored")
        if isinstance(content, dict) and KEY in content:
            expected = content[KEY].pop("digest", None)
            if digest(content) != expected:
                raise ValueError("it is damaged: its contents do not match its digest")
    except FileNotFoundError:
        raise UserError(f"no checkpoint at {path}") from None
    except Exception as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise UserError(f"checkpoint {path} cannot be read: {reason}") from None
    if not isinstance(content, dict) or "model" not in content:
        raise UserError(f"{path} is not a checkpoint of USB: it has no key 'model'")
    return content


def read_latest(folder: Path) -> tuple[dict[str, Any] | None, str | None]:
    """The newest valid checkpoint of a run folder and, if the latest one was damaged, a note about it."""
    note = None
    for name in ("latest_model.pth", "previous_model.pth"):
        if (folder / name).exists():
            try:
                return read(folder / name), note
            except UserError as error:
                note = f"{error}; resuming from the previous checkpoint"
    if note is not None:
        raise UserError(f"no valid checkpoint is left in {folder}: move the folder away to start again")
    return None, None


def without_wrapper(state: Mapping[str, Any]) -> dict[str, Any]:
    """Weights without the prefix "module." of data-parallel wrappers, with which USB saves `model` and `ema_model`."""
    return {name.removeprefix("module."): value for name, value in state.items()}


def load_weights(model: Any, state: Mapping[str, Any]) -> None:
    """Load weights into a network, whether they were saved from a data-parallel wrapper, and whether it is one.

    Raises RuntimeError if they do not fit.
    """
    wrappers = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)
    plain = model.module if isinstance(model, wrappers) else model
    plain.load_state_dict(without_wrapper(state))


def load(algorithm: Any, content: dict[str, Any], what: str) -> None:
    """Load a checkpoint into an algorithm; UserError, naming it `what`, if it belongs to another configuration."""
    try:
        algorithm.load_checkpoint(content)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{what} does not fit the configuration: {reason}") from None


def load_start(algorithm: Any) -> dict[str, Any] | None:
    """Load the checkpoint that `start_from` names and return it; UserError if it does not fit or leaves no step."""
    path = algorithm.args.start_from
    if not path:
        return None
    state = distributed.on_rank_zero(read, Path(path))
    load(algorithm, state, f"start_from: {path}")
    if algorithm.it >= algorithm.num_train_iter:
        raise UserError(f"start_from: it is at step {algorithm.it} already: raise num_train_iter")
    return state


def rename_damaged(folder: Path) -> None:
    """Rename a damaged latest checkpoint, so that the next save does not replace the valid previous one."""
    os.replace(folder / "latest_model.pth", folder / "damaged_model.pth")


def random_state() -> dict[str, Any]:
    """The global generators of Python, NumPy, torch and CUDA, as plain values."""
    state = {"python": pack(random.getstate()), "numpy": pack(np.random.get_state()), "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """The inverse of `random_state`; a CUDA state is left out where there is no GPU."""
    random.setstate(unpack(state["python"]))
    np.random.set_state(unpack(state["numpy"]))
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        with contextlib.suppress(RuntimeError):
            torch.cuda.set_rng_state(state["cuda"].cpu())
