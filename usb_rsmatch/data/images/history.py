"""The file history of generated images, applied to real ones: resized and saved as JPEG in the same way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from usb_rsmatch.data.images.reencode import through_jpeg
from usb_rsmatch.errors import UserError
from usb_rsmatch.keys import Key, convert

History = tuple[tuple[str, int], ...]

STEPS = {
    "resize": Key("resize", "int", None, "side in pixels that the images are resized to, and back", low=4, high=4096),
    "jpeg": Key("jpeg", "int", None, "JPEG quality, with the colours at half resolution", low=1, high=100),
}
CHUNK = 512  # images that are resized at a time


def read_history(steps: Sequence[Any]) -> History:
    """The steps of `real_history`, such as `[{resize: 64}, {jpeg: 75}]`. UserError for any other step."""
    history = []
    for step in steps:
        name = next(iter(step)) if isinstance(step, Mapping) and len(step) == 1 else None
        if name not in STEPS:
            raise UserError(f"real_history: {step!r} is not a step; take {{resize: PIXELS}} or {{jpeg: QUALITY}}")
        history.append((str(name), int(convert(STEPS[str(name)], step[name], "real_history"))))
    return tuple(history)


def through_history(images: np.ndarray, history: History) -> np.ndarray:
    """uint8 [N, S, S, C] after each step of a history, at their own size again.

    `resize` enlarges by bicubic interpolation, or reduces by antialiased bilinear interpolation, then does the other of
    the two back to S, as image generators that work at another size do. `jpeg` is Pillow's default with the colours at
    half resolution (4:2:0).
    """
    for name, value in history:
        images = _resized(images, value) if name == "resize" else through_jpeg(images, value, subsampling=2)
    return images


def _resized(images: np.ndarray, side: int) -> np.ndarray:
    """uint8 [N, S, S, C] resized to `side` and back to S."""
    resized = np.empty_like(images)
    for start in range(0, len(images), CHUNK):
        part = torch.tensor(images[start : start + CHUNK]).permute(0, 3, 1, 2).float() / 255
        for size in (side, images.shape[1]):
            larger = size > part.shape[-1]
            mode = "bicubic" if larger else "bilinear"
            part = F.interpolate(part, size=(size, size), mode=mode, antialias=not larger).clamp(0, 1)
        resized[start : start + CHUNK] = (part * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return resized
