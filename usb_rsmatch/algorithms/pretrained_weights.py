"""Reads pretrained weights from a file without executing code from it, and fits them to a network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from usb_rsmatch.errors import UserError

# Keys under which checkpoints hold a state dict, in the order in which they are tried (USB's own key first).
STATE_KEYS = ("model", "state_dict", "ema_model", "model_ema", "state_dict_ema", "module", "net")
SHOWN = 8  # tensors that a message names


def read_weights(path: str) -> dict[str, Tensor]:
    """The state dict in a file (safetensors, or a pickle that holds tensors and plain values only) or at an address.

    Raises UserError for a file that is damaged, holds other objects, or has no tensors.
    """
    if "://" in path:
        content: Any = torch.hub.load_state_dict_from_url(path, map_location="cpu", weights_only=True)
    else:
        content = _read_file(Path(path))
    for key in STATE_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    state = {str(k): v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, Mapping) else {}
    if not state:
        raise UserError(f"pretrain_path: {path} contains no tensors by name")
    return state


def _read_file(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(str(path))
        return torch.load(path, map_location="cpu", weights_only=True)
    except ImportError:
        raise UserError("safetensors is not installed: pip install 'usb-rsmatch[safetensors]'") from None
    except OSError as error:
        raise UserError(f"pretrain_path: {path}: {error.strerror or error}; check the path") from None
    except Exception as error:  # torch and safetensors raise various errors for damaged and for unsafe files
        reason = " ".join(str(error).split())[:100]
        raise UserError(
            f"pretrain_path: {path} is damaged, or holds more than tensors, which is not read ({reason}): "
            "save its state dict as safetensors"
        ) from None


def without_prefix(state: Mapping[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    """The tensors under the prefix with which most names of the file are `names`, without that prefix.

    A file without any such name is returned unchanged: a converter may know its names.
    """
    known, prefixes = set(names), Counter[str]()
    for key in state:
        parts = key.split(".")
        prefixes.update(".".join([*parts[:i], ""]) for i in range(len(parts)) if ".".join(parts[i:]) in known)
    if not prefixes:
        return dict(state)
    prefix = max(prefixes, key=lambda name: (prefixes[name], -len(name)))
    return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}


def in_order(state: Mapping[str, Tensor], own: Mapping[str, Tensor], is_head: Any) -> dict[str, Tensor] | None:
    """The file's tensors under the network's names, by position; None unless every shape (but the head's) fits."""
    if state.keys() & own.keys() or len(state) != len(own):
        return None
    pairs = zip(own.items(), state.values(), strict=True)
    fits = all(is_head(name) or mine.shape == theirs.shape for (name, mine), theirs in pairs)
    return dict(zip(own, state.values(), strict=True)) if fits else None


def load_weights(
    network: nn.Module, state: Mapping[str, Tensor], path: str, head: Collection[str], new_head: bool = False
) -> list[str]:
    """Load a file's tensors into a network; returns notes on what was replaced or not used.

    `head` are the prefixes of the classifier's names: a head of another size, or any with `new_head`, keeps its new
    weights. Raises UserError that names the tensors which are missing or have another shape.
    """

    def is_head(name: str) -> bool:
        return any(name == part or name.startswith(f"{part}.") for part in head)

    own, notes = network.state_dict(), []
    if (ordered := in_order(state, own, is_head)) is not None:
        state = ordered
        notes.append(f"pretrain_path: {path} has other names: its {len(state)} tensors are taken in their order")
    heads = [name for name in own if is_head(name)]
    replaced = new_head or any(name not in state or state[name].shape != own[name].shape for name in heads)
    if replaced and heads:
        size = next((len(state[name]) for name in heads if name in state), None)
        found = "has no head" if size is None else f"has a head of {size} outputs"
        notes.append(f"pretrain_path: {path} {found}: a new one of {len(own[heads[0]])} outputs is trained")
    wanted = {name: tensor for name, tensor in own.items() if not (replaced and is_head(name))}
    wrong = []
    for name, tensor in wanted.items():
        if name not in state:
            if not name.endswith("num_batches_tracked"):  # older files lack this counter
                wrong.append(f"{name} is missing")
        elif state[name].shape != tensor.shape:
            wrong.append(f"{name} is {list(state[name].shape)} instead of {list(tensor.shape)}")
    if wrong:
        raise UserError(f"pretrain_path: {path} does not fit the network: {_shown(wrong)}")
    if unused := [name for name in state if name not in own and not is_head(name)]:
        notes.append(f"pretrain_path: {path}: not used: {_shown(unused)}")
    network.load_state_dict({name: state[name] for name in wanted if name in state}, strict=False)
    return notes


def _shown(items: list[str]) -> str:
    rest = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return ", ".join(items[:SHOWN]) + rest
