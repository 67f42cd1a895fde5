"""Decodes an image file to pixels, the same way for real and synthetic images: decode, rotate by EXIF, resize."""

from __future__ import annotations

import io
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from usb_rsmatch.errors import UserError

MAX_PIXELS = 89_478_485  # Pillow's own warning level: a quarter of a GiB as RGB
MIN_SIDE = 4  # pixels: smaller images contain no texture to learn from
# How images that are not square become square, in words.
FITS = {"crop": "cropped to their centre", "pad": "padded with black", "squash": "squashed"}

# Vector formats need external programs, and the stubs are containers that Pillow cannot decode by itself.
_NOT_PIXELS = frozenset({"EPS", "WMF", "EMF", "HDF5", "GRIB", "BUFR", "MPEG", "FPX", "MIC", "PDF"})


def image_formats() -> tuple[str, ...]:
    """Pillow's names of the formats that are read."""
    Image.init()
    return tuple(name for name in Image.OPEN if name not in _NOT_PIXELS)


def image_suffixes() -> frozenset[str]:
    """File suffixes, in lower case and with their dot, that count as images."""
    formats = set(image_formats())
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in formats)


class UnreadableImage(UserError):
    """One image that cannot be read; `reason` contains neither the image's name nor the remedy."""

    def __init__(self, called: str, reason: str) -> None:
        super().__init__(f"{called}: cannot be read ({reason}); restore or remove it, or set on_error: skip")
        self.reason = reason


@contextmanager
def quiet_bombs() -> Iterator[None]:
    """Silence Pillow's warning about huge images, which `read_image` refuses itself.

    The filter is global to the process: enter this context before starting decoding threads.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def read_image(file: str | PathLike[str] | bytes, name: str | None = None) -> Image.Image:
    """The image of a file (or of its bytes) as displayed: rotated by its EXIF tag, "L" or "RGB" of 8 bits.

    Transparent parts become white; of an animation the first frame is used. Raises UserError, which calls the file
    `name`, if it cannot be read (as an `UnreadableImage`), is truncated, has more than `MAX_PIXELS` pixels or a side
    under `MIN_SIDE`.
    """
    try:
        data = file if isinstance(file, bytes) else _content(file)
        if not data:
            raise ValueError("it is empty, 0 bytes")
        with Image.open(io.BytesIO(data), formats=image_formats()) as image:
            _check_size(*image.size)
            return _eight_bits(ImageOps.exif_transpose(image))
    except Image.UnidentifiedImageError:
        reason = "not an image that Pillow knows"
    except Image.DecompressionBombError:
        reason = f"more than {MAX_PIXELS} pixels"
    except Exception as error:  # a damaged file can cause any error in a decoder
        reason = (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]
    called = name or (file if isinstance(file, (str, PathLike)) else "image")
    raise UnreadableImage(str(called), reason)


def image_size(file: str | PathLike[str] | bytes) -> tuple[int, int] | None:
    """Width and height in pixels by the file's header, None if it cannot be read."""
    try:
        stream = io.BytesIO(file) if isinstance(file, bytes) else _regular(file)
        with Image.open(stream, formats=image_formats()) as image:
            return image.size
    except Exception:  # a damaged file can cause any error in a decoder; `read_image` reports it
        return None


def _content(file: str | PathLike[str]) -> bytes:
    return _regular(file).read_bytes()


def _regular(file: str | PathLike[str]) -> Path:
    """The path, if it is a regular file: a named pipe would never end. Raises ValueError and OSError."""
    path = Path(file)
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # reading a folder fails with the system's own words
        raise ValueError("not a regular file")
    return path


def fit(image: Image.Image, size: int, channels: int, how: str = "crop") -> np.ndarray:
    """An "L" or "RGB" image as uint8 [size, size, channels], resized antialiased bilinear.

    An image that is not square is cropped to its centre square, padded with black, or squashed, by `how` (one of
    `FITS`). An image of that size is not changed. Colour becomes grey by ITU-R 601 luma, grey becomes colour by
    repetition.
    """
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (size, size):
        if how == "pad":
            image = _padded(image, size)
        else:
            image = (_centre_square(image) if how == "crop" else image).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.uint8).reshape(size, size, channels)


def _centre_square(image: Image.Image) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def _padded(image: Image.Image, size: int) -> Image.Image:
    """The whole image, resized so that its longer side is `size`, in the middle of a black square."""
    width, height = (max(1, round(size * side / max(image.size))) for side in image.size)
    square = Image.new(image.mode, (size, size))
    corner = round((size - width) / 2), round((size - height) / 2)
    square.paste(image.resize((width, height), Image.Resampling.BILINEAR), corner)
    return square


def fit_array(images: np.ndarray, size: int, channels: int, how: str = "crop") -> np.ndarray:
    """uint8 [N, H, W, C] to uint8 [N, size, size, channels] along the path of `fit`."""
    n, height, width, depth = images.shape
    if (height, width, depth) == (size, size, channels):
        return images
    fitted = np.empty((n, size, size, channels), dtype=np.uint8)
    for row, pixels in zip(fitted, images, strict=True):
        row[...] = fit(Image.fromarray(pixels[..., 0] if depth == 1 else pixels), size, channels, how)
    return fitted


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width} x {height} is more than {MAX_PIXELS} pixels")
    if min(width, height) < MIN_SIDE:
        raise ValueError(f"{width} x {height} is too small, the minimum is {MIN_SIDE} pixels per side")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Any Pillow mode as "L" or "RGB"."""
    if image.mode in ("L", "RGB"):
        if "transparency" not in image.info:
            return image.copy()  # decode while the file is open
    elif image.mode in ("1", "CMYK", "YCbCr", "LAB", "HSV"):
        return image.convert("L" if image.mode == "1" else "RGB")
    elif image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_scaled(np.asarray(image)))
    if image.mode == "P" and "transparency" not in image.info:
        return image.convert("RGB")
    grey = image.mode in ("L", "LA", "La")
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image).convert("L" if grey else "RGB")


def _scaled(values: np.ndarray) -> np.ndarray:
    """Grey [H, W] of more than 8 bits as uint8: integers by 16 or 31 bits, floats as 0..1 or else 0..255.

    Raises ValueError for values of another range, which would become black, white or clipped.
    """
    least, most = float(values.min(initial=0)), float(values.max(initial=0))
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise ValueError("has values that are not finite; save it with 8 bits")
        full = 1.0 if most <= 1 else 255.0 if most <= 255 else None
    else:
        full = 65535.0 if most == 0 or 4095 < most <= 65535 else 2.0**31 - 1 if most >= 2**30 else None
    if least < 0 or full is None:
        known = "0 to 1 and 0 to 255" if values.dtype.kind == "f" else "0 to 65535 and 0 to 2147483647"
        raise ValueError(f"values from {least:g} to {most:g} do not fill a known range, {known}; save it with 8 bits")
    return np.rint(values.astype(np.float64) / full * 255).astype(np.uint8)
