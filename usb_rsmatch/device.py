"""The device to compute on, and whether it has native bfloat16 instructions."""

from __future__ import annotations

import torch

from usb_rsmatch.errors import UserError


def choose_device(name: str | None) -> str:
    """`auto` (or None) chooses a GPU if there is one; UserError if `cuda` is requested but missing."""
    if name in (None, "auto"):
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise UserError(f"device takes auto, cpu or cuda, not {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device: cuda is requested, but torch finds no CUDA device; use --device cpu")
    return name


def has_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32 on the device, rather than emulated."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # older torch lacks them: counted as not supported
    return any(getattr(torch.cpu, name, bool)() for name in probes)
