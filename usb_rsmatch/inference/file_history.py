"""What has been done to image files before: their JPEG tables, and steps that give other images the same history."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, JpegImagePlugin

from usb_rsmatch.data.images.decode import image_formats

Step = Callable[[Image.Image], Image.Image]
Resampling = Image.Resampling


@dataclass(frozen=True)
class JpegTables:
    """How a JPEG file was quantised: its tables, and Pillow's number of the chroma subsampling (-1: grey)."""

    tables: tuple[tuple[int, ...], ...]
    sampling: int

    @classmethod
    def of_quality(cls, quality: int, sampling: int = 0) -> JpegTables:
        """The tables that Pillow uses for a quality."""
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8)).save(buffer, "JPEG", quality=quality, subsampling=sampling)
        with Image.open(buffer) as image:
            return cls.of(image) or cls((), sampling)

    @classmethod
    def of(cls, image: Any) -> JpegTables | None:
        """The tables of an opened file, None if it is no JPEG file."""
        tables = getattr(image, "quantization", None)
        if not tables:
            return None
        return cls(tuple(tuple(tables[key]) for key in sorted(tables)), JpegImagePlugin.get_sampling(image))

    def __call__(self, image: Image.Image) -> Image.Image:
        """The image saved with these tables and read again."""
        options = {} if self.sampling < 0 or image.mode == "L" else {"subsampling": self.sampling}
        tables = self.tables[:1] if image.mode == "L" else self.tables
        return _saved(image, "JPEG", qtables=[list(table) for table in tables], **options)

    def key(self) -> str:
        """The tables as text, for comparison."""
        return json.dumps([self.tables, self.sampling])


def jpeg_tables(item: Any) -> JpegTables | None:
    """The tables of a file, None for other formats, unreadable files and arrays; reads the header only."""
    if not isinstance(item, Path):
        return None
    try:
        with Image.open(item, formats=image_formats()) as image:
            return JpegTables.of(image)
    except Exception:  # a damaged file can cause any error in a decoder; reading the pixels reports it
        return None


def file_format(item: Any) -> str:
    """The suffix of a file in lower case, "array" for an image in memory."""
    return item.suffix.lower() if isinstance(item, Path) else "array"


# what may have been done to the audited images ----------------------------------------------------------------------


def earlier_encodings() -> Mapping[str, Step]:
    """Lossy encodings that a later one hides, by name: trusted images can be given the same."""
    jpeg = {f"JPEG {quality}": _jpeg(quality) for quality in range(30, 96, 5)}
    return {**jpeg, **{f"WebP {quality}": _webp(quality) for quality in (50, 60, 70, 75, 80, 85, 90)}}


def edits() -> Mapping[str, Step]:
    """Changes to the pixels, by what is said of them; a strength near the true one is enough to recognise them."""
    found: dict[str, Step] = {}
    for factor in (0.5, 0.6, 0.7, 0.8, 0.95, 1.5, 2.0):
        for name, kernel in (("bilinear", Resampling.BILINEAR), ("bicubic", Resampling.BICUBIC)):
            found[f"resized ({factor:g}, {name})"] = _resize(factor, kernel)
    for percent in (40, 100):
        found[f"sharpened ({percent} %)"] = _filter(ImageFilter.UnsharpMask(1, percent, 0))
    found["blurred"] = _filter(ImageFilter.GaussianBlur(0.5))
    for factor in (0.85, 1.15):
        found[f"brightness ({factor:g})"] = _enhance(ImageEnhance.Brightness, factor)
        found[f"contrast ({factor:g})"] = _enhance(ImageEnhance.Contrast, factor)
    for factor in (0.7, 1.3):
        found[f"saturation ({factor:g})"] = _enhance(ImageEnhance.Color, factor)
    found["noise"] = _noise(3.0)
    return found


def applied(steps: Sequence[Step], image: Image.Image) -> Image.Image:
    """The image after the steps, in their order."""
    for step in steps:
        image = step(image)
    return image


def _saved(image: Image.Image, form: str, **options: Any) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, format=form, **options)
    with Image.open(buffer) as again:
        return again.convert(image.mode)


def _jpeg(quality: int) -> Step:
    return lambda image: _saved(image, "JPEG", quality=quality)


def _webp(quality: int) -> Step:
    return lambda image: _saved(image, "WEBP", quality=quality)


def _resize(factor: float, kernel: Resampling) -> Step:
    def step(image: Image.Image) -> Image.Image:
        width, height = image.size
        return image.resize((round(width * factor), round(height * factor)), kernel).resize(image.size, kernel)

    return step


def _filter(kernel: Any) -> Step:
    return lambda image: image.filter(kernel)


def _enhance(kind: Any, factor: float) -> Step:
    return lambda image: kind(image).enhance(factor)


def _noise(deviation: float) -> Step:
    def step(image: Image.Image) -> Image.Image:
        pixels = np.asarray(image).astype(np.float64)
        rng = np.random.default_rng(int(pixels.sum()))  # the image decides its noise
        return Image.fromarray(
            np.clip(np.rint(pixels + rng.normal(0, deviation, pixels.shape)), 0, 255).astype(np.uint8)
        )

    return step
