"""The state of hooks and algorithms as tensors and plain values, which checkpoints store and load safely."""

from __future__ import annotations

from collections import Counter, deque
from typing import Any

import numpy as np
import torch

# Attributes of an algorithm that its constructor sets, or that the checkpoint stores elsewhere.
_BUILT_ANEW = """
    args model ema_model optimizer scheduler loss_scaler ema loader_dict dataset_dict hooks_dict _hooks tb_log print_fn
    net_builder bn_controller amp_cm ce_loss consistency_loss it epoch start_epoch epochs best_it best_eval_acc
    num_train_iter num_eval_iter num_log_iter num_iter_per_epoch num_classes save_name save_dir resume gpu rank
    world_size distributed ngpus_per_node algorithm out_dict log_dict results_dict device use_amp clip_grad use_cat
    ema_m lambda_u stop_requested checkpoint_state config logger settings shortcuts
"""
NOT_STATE = frozenset(_BUILT_ANEW.split())

_PLAIN = frozenset({bool, int, float, str, type(None)})


def pack(value: Any) -> Any:
    """Convert a value to tensors and plain Python values; raises TypeError if that is not possible."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, np.generic):
        value = value.item()
    if type(value) in _PLAIN:  # an IntEnum is an int too, but loading it would execute its class
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc" and value.dtype.isnative:
        flat = torch.from_numpy(np.array(value, order="C").reshape(-1))
        return {"__kind__": "ndarray", "dtype": str(value.dtype), "value": flat.reshape(value.shape)}
    if isinstance(value, deque):
        return {"__kind__": "deque", "maxlen": value.maxlen, "value": [pack(item) for item in value]}
    if isinstance(value, list):
        return [pack(item) for item in value]
    if isinstance(value, tuple):
        return {"__kind__": "tuple", "value": [pack(item) for item in value]}
    if isinstance(value, dict):
        items = [[pack(key), pack(item)] for key, item in value.items()]
        return {"__kind__": "Counter" if isinstance(value, Counter) else "dict", "value": items}
    raise TypeError(type(value).__name__)


def unpack(value: Any, device: torch.device | str = "cpu") -> Any:
    """The inverse of `pack`, with tensors on `device`."""
    if isinstance(value, torch.Tensor):
        return value.to(device, copy=True)
    if isinstance(value, list):
        return [unpack(item, device) for item in value]
    if not isinstance(value, dict):
        return value
    kind, inner = value["__kind__"], value["value"]
    if kind == "ndarray":
        return inner.numpy().astype(value["dtype"])
    if kind == "deque":
        return deque((unpack(item, device) for item in inner), maxlen=value["maxlen"])
    if kind == "tuple":
        return tuple(unpack(item, device) for item in inner)
    pairs = {unpack(key, device): unpack(item, device) for key, item in inner}
    return Counter(pairs) if kind == "Counter" else pairs


def capture(owner: Any, skip: frozenset[str] = frozenset()) -> dict[str, Any]:
    """All values of `owner.__dict__` that can be packed, except names that begin with an underscore.

    If the owner has a `state_dict`, that is used instead.
    """
    if callable(getattr(owner, "state_dict", None)):
        return owner.state_dict()
    state: dict[str, Any] = {}
    for name, value in vars(owner).items():
        if name in skip or name.startswith("_"):
            continue
        try:
            state[name] = pack(value)
        except TypeError:
            continue  # modules, functions and handles are created by the constructor
    return state


def restore(owner: Any, state: dict[str, Any], device: torch.device | str = "cpu") -> None:
    """Restore what `capture` returned; tensors go to the device of the tensor that they replace, else to `device`."""
    if callable(getattr(owner, "load_state_dict", None)):
        owner.load_state_dict(state)
        return
    for name, value in state.items():
        current = getattr(owner, name, None)
        where = current.device if isinstance(current, torch.Tensor) else device
        setattr(owner, name, unpack(value, where))
