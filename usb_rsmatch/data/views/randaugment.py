"""RandAugment's fourteen operations on uint8 batches, one drawn per image, with the same pixels as Pillow."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

# Name -> range of its uniform magnitude, as in USB's RandAugment; the order is that of the computation below.
RANGES = {
    "AutoContrast": (0.0, 1.0),
    "Equalize": (0.0, 1.0),
    "Posterize": (4.0, 8.0),
    "Solarize": (0.0, 256.0),
    "Brightness": (0.05, 0.95),
    "Contrast": (0.05, 0.95),
    "Color": (0.05, 0.95),
    "Sharpness": (0.05, 0.95),
    "Rotate": (-30.0, 30.0),
    "ShearY": (-0.3, 0.3),
    "ShearX": (-0.3, 0.3),
    "TranslateX": (-0.3, 0.3),
    "TranslateY": (-0.3, 0.3),
    "Identity": (0.0, 1.0),
}
OPS = tuple(RANGES)
ROTATE, SHEAR_Y, SHEAR_X, TRANSLATE_X, TRANSLATE_Y = range(8, 13)
FIXED = 1 << 16  # Pillow's integer luma and affine coordinates both have units of 1/65536


def apply(images: Tensor, op: np.ndarray, magnitude: np.ndarray) -> Tensor:
    """A chain of operations for each image: `OPS[op[i, k]]` with `magnitude[i, k]` on `images[i]`, k = 0, 1, ...

    `images` is uint8 [B, C, H, W], C 1 or 3; `op` is int64 [B, K] and `magnitude` float64 [B, K] in the
    operation's own unit, both on the host: sorting a batch by operation then never waits for a device.
    Returns new uint8 [B, C, H, W]. A grey image keeps one channel, equal to each channel of its RGB copy. Equal
    to Pillow bit for bit where Pillow's compiler does not fuse multiplication with addition (as on x86-64),
    else within one grey level.
    """
    order = np.argsort(op, axis=0, kind="stable")
    place = np.argsort(order, axis=0)  # the position of an image in a step's order
    chain = range(op.shape[1])
    moves = [order[:, 0], *(place[order[:, k], k - 1] for k in chain[1:]), place[:, -1]]
    take = to(images.device, np.stack(moves))  # from each step's order to the next, and back
    for k in chain:
        images = images.index_select(0, take[k])
        _apply_sorted(images, op[order[:, k], k], magnitude[order[:, k], k])
    return images.index_select(0, take[-1])


def _apply_sorted(images: Tensor, op: np.ndarray, magnitude: np.ndarray) -> None:
    """One operation per image, in place, on images sorted by operation."""
    ends = np.cumsum(np.bincount(op, minlength=len(OPS))).tolist()
    start = 0
    for compute, end in zip(_COMPUTE, ends[:ROTATE], strict=True):
        if start < end:
            compute(images[start:end], magnitude[start:end])
        start = end
    for move, end in ((_gather, ends[SHEAR_Y]), (_slide, ends[TRANSLATE_Y])):
        if start < end:
            move(images[start:end], op[start:end], magnitude[start:end])
        start = end


def to(device: torch.device, values: np.ndarray) -> Tensor:
    """Numbers drawn on the host, on the images' device, without waiting for it."""
    return torch.from_numpy(values).to(device, non_blocking=True)


@lru_cache(maxsize=64)
def _count(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """0, 1, ..., n - 1; cached, since all calls use the same few sizes."""
    return torch.arange(n, dtype=dtype, device=device)


# Histogram operations: a table of 256 levels for each image and channel, and a look-up.


def _autocontrast(images: Tensor, _: np.ndarray) -> None:
    """Stretch each channel to 0..255; a flat one stays. In float64: cutting to levels shows the last bit."""
    pixels = images.flatten(2)
    low, high = pixels.amin(2, keepdim=True), pixels.amax(2, keepdim=True)
    flat = low == high
    low, high = low.masked_fill_(flat, 0), high.masked_fill_(flat, 255)
    scale = torch.full((), 255.0, dtype=torch.float64, device=images.device) / (high - low)
    table = (_count(256, torch.float64, images.device) * scale).sub_(low * scale).clamp_(0.0, 255.0)
    torch.gather(table.byte(), 2, pixels.long(), out=pixels)


def _equalize(images: Tensor, _: np.ndarray) -> None:
    """Spread each channel's cumulative histogram, in Pillow's whole steps; a step of zero changes nothing."""
    pixels, device = images.flatten(2), images.device
    if pixels.shape[2] <= 255:  # too few pixels to fill one step
        return
    level = pixels.long()
    counts = torch.zeros(*pixels.shape[:2], 256, device=device)  # whole: exact in float32 to 2^23 pixels
    counts.scatter_add_(2, level, torch.ones((), device=device).expand(level.shape))
    step = (pixels.shape[2] - counts.gather(2, pixels.amax(2, keepdim=True).long())).div_(255.0).floor_()
    idle = (step == 0.0).float()
    below = counts.cumsum(2).sub_(counts).add_((step * 0.5).floor_())
    below.mul_(1.0 - idle).addcmul_(idle, _count(256, torch.float32, device))
    torch.gather(below.div_(step + idle).clamp_(max=255.0).byte(), 2, level, out=pixels)


# Bit operations.


def _posterize(images: Tensor, bits: np.ndarray) -> None:
    """Keep the int(bits) highest bits of every level."""
    mask = 256 - 2 ** (8 - bits.astype(np.int64))
    images.bitwise_and_(to(images.device, mask.astype(np.uint8))[:, None, None, None])


def _solarize(images: Tensor, threshold: np.ndarray) -> None:
    """Invert the levels from the threshold upwards."""
    above = images >= to(images.device, np.ceil(threshold).astype(np.int16))[:, None, None, None]
    images.bitwise_xor_(above.view(torch.uint8).neg_())  # minus one is 255, all bits


# Blends with a degenerate image, black, flat, grey or smooth.


def _blend(images: Tensor, pixels: Tensor, degenerate: Tensor | float, share: np.ndarray) -> None:
    """degenerate + share (pixels - degenerate), cut to whole levels, into `images`; uses up float32 `pixels`.

    Multiplied and added in two steps, as in Pillow; through int16, since float to uint8 is not vectorised.
    """
    factor = to(images.device, share.astype(np.float32))[:, None, None, None]
    images.copy_(pixels.sub_(degenerate).mul_(factor).add_(degenerate).short())


def _luma(pixels: Tensor) -> Tensor:
    """Float32 [B, H, W] of [B, C, H, W], by Pillow's 16-bit weights, whose sums are exact in float32."""
    if pixels.shape[1] == 1:
        return pixels[:, 0]
    red, green, blue = pixels.unbind(1)
    weighted = (red * (19595 / FIXED)).add_(green, alpha=38470 / FIXED).add_(blue, alpha=7471 / FIXED)
    return weighted.add_(0.5).floor_()


def _brightness(images: Tensor, share: np.ndarray) -> None:
    """Blend with black."""
    _blend(images, images.float(), 0.0, share)


def _contrast(images: Tensor, share: np.ndarray) -> None:
    """Blend with the mean luma, rounded."""
    pixels = images.float()
    rows = _luma(pixels).sum(2)  # exact in float32, which an image's sum may not be
    mean = (rows.sum(1, dtype=torch.float64) / images[0, 0].numel()).add_(0.5).floor_().float()
    _blend(images, pixels, mean[:, None, None, None], share)


def _color(images: Tensor, share: np.ndarray) -> None:
    """Blend with the grey image."""
    if images.shape[1] == 3:  # one channel is grey already
        pixels = images.float()
        _blend(images, pixels, _luma(pixels)[:, None], share)


def _sharpness(images: Tensor, share: np.ndarray) -> None:
    """Blend with the smooth image: 3 x 3 means, 5 at the centre and 1 around it, rounded; the border stays.

    All images are smoothed as one long line of pixels: only on borders are its neighbours false.
    """
    pixels, width = images.float(), images.shape[3]
    smooth = pixels.clone()
    line, inner = pixels.view(-1), slice(width + 1, -width - 1)
    across = (line[:-2] + line[1:-1]).add_(line[2:])
    block = (across[: -2 * width] + across[width:-width]).add_(across[2 * width :])
    block.add_(line[inner], alpha=4.0).mul_(1.0 / 13.0)
    torch.round(block, out=smooth.view(-1)[inner])  # no thirteenth lies halfway: any rounding would do
    for edge in (0, -1):
        smooth[:, :, edge] = pixels[:, :, edge]
        smooth[:, :, :, edge] = pixels[:, :, :, edge]
    _blend(images, pixels, smooth, share)


_COMPUTE: tuple[Callable[[Tensor, np.ndarray], None], ...] = (
    _autocontrast,
    _equalize,
    _posterize,
    _solarize,
    _brightness,
    _contrast,
    _color,
    _sharpness,
)


# Affine operations: nearest neighbour, black outside, in Pillow's fixed point.


def _fixed(values: list[np.ndarray]) -> np.ndarray:
    return np.floor(np.stack(values) * FIXED + 0.5).astype(np.int32)


def _gather(images: Tensor, op: np.ndarray, magnitude: np.ndarray) -> None:
    """Rotate and ShearY, pixel by pixel: (x, y) shows the source ((a x + b y + c) >> 16, (d x + e y + f) >> 16).

    A black frame, one pixel wide, catches the sources outside.
    """
    (height, width), device = images.shape[2:], images.device
    angle, shear = np.radians(magnitude * (op == ROTATE)), magnitude * (op == SHEAR_Y)
    cosine, sine = np.cos(angle), np.sin(angle)
    left, top = (1 - width) / 2, (1 - height) / 2  # the first pixel's centre, seen from the image's
    across = [cosine, -sine, cosine * left - sine * top + (width / 2 + 1)]
    down = [shear + sine, cosine, cosine * top + sine * left + (height / 2 + 1) + shear * 0.5]
    a, b, c, d, e, f = to(device, _fixed(across + down))[:, :, None, None]
    x, y = _count(width, torch.int32, device), _count(height, torch.int32, device)[:, None]
    column = (a * x + (b * y + c)).bitwise_right_shift_(16).clamp_(0, width + 1)
    row = (d * x + (e * y + f)).bitwise_right_shift_(16).clamp_(0, height + 1)
    source = column.add_(row, alpha=width + 2).flatten(1).long()[:, None].expand(-1, images.shape[1], -1)
    torch.gather(F.pad(images, (1, 1, 1, 1)).flatten(2), 2, source, out=images.flatten(2))


def _slide(images: Tensor, op: np.ndarray, magnitude: np.ndarray) -> None:
    """ShearX and the translations, which keep rows whole: each row is copied as one block, which is faster.

    From lines with black on both sides, and one black line below each image for the rows from outside.
    """
    batch, channels, height, width = images.shape
    y, shear = np.arange(height), magnitude * (op == SHEAR_X)
    slope, start = _fixed([shear, 0.5 + shear * 0.5])[:, :, None]
    # Pillow translates by whole pixels, the nearest, halves upwards.
    right = np.floor(magnitude * (op == TRANSLATE_X) * width + 0.5).astype(np.int64)
    down = np.floor(magnitude * (op == TRANSLATE_Y) * height + 0.5).astype(np.int64)
    shift = (((slope * y + start) >> 16) + right[:, None]).clip(-width, width)
    row = y + down[:, None]
    row = np.where((row >= 0) & (row < height), row, height)
    margin = int(np.abs(shift).max())
    lines = F.pad(images, (margin, margin, 0, 1))
    begin = row * lines.shape[3] + margin + shift
    plane = np.arange(batch * channels).reshape(batch, channels, 1) * lines[0, 0].numel()
    windows = lines.flatten().unfold(0, width, 1)
    torch.index_select(windows, 0, to(images.device, (plane + begin[:, None]).ravel()), out=images.view(-1, width))
