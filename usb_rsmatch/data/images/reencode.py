"""Changes to uint8 pixels that apply to every image of a pool: JPEG re-encoding, and small grey levels set to 0."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def cleared(images: np.ndarray, below: int) -> np.ndarray:
    """uint8 images of any shape with grey levels under `below` set to 0."""
    return np.where(images < below, np.uint8(0), images)


def through_jpeg(images: np.ndarray, quality: int) -> np.ndarray:
    """uint8 [N, H, W, C] saved as JPEG of `quality` and read back, without chroma subsampling."""
    decoded = np.empty_like(images)
    for row, pixels in zip(decoded, images, strict=True):
        buffer = io.BytesIO()
        picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        picture.save(buffer, format="JPEG", quality=quality, subsampling=0)
        with Image.open(buffer) as image:
            row[...] = np.asarray(image).reshape(pixels.shape)
    return decoded
