"""Changes to uint8 pixels that apply to every image of a pool: JPEG re-encoding, and small grey levels set to 0."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def cleared(images: np.ndarray, below: int) -> np.ndarray:
    """uint8 images of any shape with grey levels under `below` set to 0."""
    return np.where(images < below, np.uint8(0), images)


def through_jpeg(images: np.ndarray, quality: int, subsampling: int = 0) -> np.ndarray:
    """uint8 [N, H, W, C] saved as JPEG of `quality` and read back, by default without chroma subsampling.

    `subsampling` is Pillow's number: 0 for 4:4:4, 1 for 4:2:2, 2 for 4:2:0.
    """
    decoded = np.empty_like(images)
    for row, pixels in zip(decoded, images, strict=True):
        buffer = io.BytesIO()
        picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        picture.save(buffer, format="JPEG", quality=quality, subsampling=subsampling)
        with Image.open(buffer) as image:
            row[...] = np.asarray(image).reshape(pixels.shape)
    return decoded
