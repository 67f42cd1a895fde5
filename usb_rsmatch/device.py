"""Where to compute: the device that was asked for, and whether it multiplies bfloat16 by instructions of its own."""

from __future__ import annotations

import torch

from usb_rsmatch.errors import UserError


def choose_device(name: str | None) -> str:
    """`auto` (or nothing) takes the GPU where there is one; UserError where `cuda` is asked for and absent."""
    if name in (None, "auto"):
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise UserError(f"device takes auto, cpu or cuda, not {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device: cuda was asked for, but torch finds no CUDA device; take --device cpu")
    return name


def has_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32 on the device, rather than emulated."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # absent from older torch: then no
    return any(getattr(torch.cpu, name, bool)() for name in asked)
