"""Communication between the processes that torchrun started: ranks, gathering, reductions.

Rank r of R has every R-th image of the whole batch, beginning with image r. BatchNorm statistics are taken over all
processes (`algorithms/distributed_batchnorm.py`). Gradients are averaged before the update in one reduction: torch's
DistributedDataParallel requires that every weight is used in one forward pass of one wrapped module, which neither
USB's algorithms nor RSMatch's heads do. With a single process, nothing here has an effect.
"""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from usb_rsmatch.errors import RunFailed, UserError

T = TypeVar("T")
TIMEOUT = timedelta(minutes=30)  # longer than one evaluation of the slowest process


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes that train this run; 1 without torchrun."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@contextmanager
def process_group(device: str) -> Iterator[None]:
    """A context with the process group of the processes that torchrun started: gloo on CPUs, nccl on GPUs.

    Raises UserError if a process has no GPU of its own, and RunFailed if the processes cannot connect.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        yield
        return
    if device == "cuda":
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise UserError(f"{local + 1} processes on this machine, but {torch.cuda.device_count()} GPUs")
        torch.cuda.set_device(local)
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RunFailed(f"the processes cannot connect ({reason}); start them by torchrun") from None
    try:
        yield
    finally:
        dist.destroy_process_group()


# collectives --------------------------------------------------------------------------------------------------------


def local_shard(whole: T) -> T:
    """This process's rows of a whole batch [R B, ...] (tensor, array or sequence): every R-th one, from its rank on."""
    return whole if world_size() == 1 else whole[rank() :: world_size()]  # type: ignore[index]


@torch.no_grad()
def all_gather_batch(rows: Tensor) -> Tensor:
    """The whole batch [R B, ...], of which this process has the shard `rows` [B, ...]; the inverse of `local_shard`."""
    if world_size() == 1:
        return rows
    parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(world_size())]
    dist.all_gather(parts, rows.detach().contiguous())
    return torch.stack(parts, 1).flatten(0, 1)


def any_rank(flag: bool) -> bool:
    """Whether the flag is set in any process; all processes must call it."""
    if world_size() == 1:
        return flag
    flags = torch.tensor(float(flag))
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags)


def all_gather_objects(value: T) -> list[T]:
    """The values of all processes, by rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, _packed(value))
    return [_unpacked(packed) for packed in values]


def on_rank_zero(function: Callable[..., T], *args: Any) -> T:
    """The result of `function`, called in the first process only; its errors are raised in all processes."""
    if world_size() == 1:
        return function(*args)
    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome[0] = _packed(function(*args))
        except Exception as error:
            outcome[1] = error if _is_picklable(error) else RunFailed(f"{type(error).__name__}: {error}")
    dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return _unpacked(outcome[0])


def _packed(value: Any) -> bytes:
    """A value as bytes; torch's own object collectives cannot read unsigned tensors."""
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def _unpacked(packed: bytes) -> Any:
    return torch.load(io.BytesIO(packed), weights_only=False)  # sent by a process of this job


def _is_picklable(error: Exception) -> bool:
    """Whether the error can be sent to another process; constructors with several arguments can prevent it."""
    try:
        return type(pickle.loads(pickle.dumps(error))) is type(error)
    except Exception:
        return False


@torch.no_grad()
def average_tensors(tensors: Sequence[Tensor]) -> None:
    """Set each tensor to its mean over the processes, with one reduction per data type and device."""
    groups: dict[Any, list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    for group in groups.values():
        flat = torch.cat([tensor.reshape(-1) for tensor in group])
        dist.all_reduce(flat)
        flat /= world_size()
        for tensor, mean in zip(group, flat.split([tensor.numel() for tensor in group]), strict=True):
            tensor.copy_(mean.view_as(tensor))
