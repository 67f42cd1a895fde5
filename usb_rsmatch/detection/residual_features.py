"""Features of image patches that show how the pixels were made rather than what they show.

Histograms of neighbouring residuals of fixed filters, as in steganalysis (SPAM, Pevny et al. 2010, and rich models,
Fridrich & Kodovsky 2012), and statistics of 8 x 8 DCT coefficients on the JPEG grid and between its blocks. The
selection of filters, steps and statistics is our choice.
"""

from __future__ import annotations

import numpy as np

STEPS = (1.0, 2.0, 4.0)  # grey levels by which residuals are quantised
LIMIT = 2  # quantised residuals are truncated to -2..2
CHUNK = 500  # images whose features are computed at a time
BLOCK = 8


def residual_features(images: np.ndarray) -> np.ndarray:
    """Features float32 [n, d] of uint8 [n, H, W, C] with sides of 8 px or more; d depends on size and channels."""
    parts = [_features(images[start : start + CHUNK]) for start in range(0, len(images), CHUNK)]
    return np.concatenate(parts) if parts else np.empty((0, 1), np.float32)


def _features(images: np.ndarray) -> np.ndarray:
    pixels = images.astype(np.float32)
    channels = [pixels[..., 0]]
    if images.shape[-1] == 3:
        red, green, blue = (pixels[..., c] for c in range(3))
        channels = [0.299 * red + 0.587 * green + 0.114 * blue, red - green, blue - green]
    parts = [_pairs(residual, step) for residual in _residuals(channels[0]) for step in STEPS]
    offsets = (0, BLOCK // 2) if min(images.shape[1:3]) >= 2 * BLOCK else (0,)
    parts += [_dct_statistics(channel[:, offset:, offset:]) for offset in offsets for channel in channels]
    return np.concatenate(parts, axis=1).astype(np.float32)


def _residuals(y: np.ndarray) -> list[np.ndarray]:
    """Derivatives of first to third order, diagonal ones and the 3 x 3 filter of Ker & Boehme, [n, H - 4, W - 4]."""

    def at(down: int, right: int) -> np.ndarray:
        return y[:, 2 + down : y.shape[1] - 2 + down, 2 + right : y.shape[2] - 2 + right]

    centre, edges = at(0, 0), at(0, 1) + at(0, -1) + at(1, 0) + at(-1, 0)
    corners = at(1, 1) + at(1, -1) + at(-1, 1) + at(-1, -1)
    return [
        at(0, 1) - centre,
        at(1, 0) - centre,
        at(0, 1) - 2 * centre + at(0, -1),
        at(1, 0) - 2 * centre + at(-1, 0),
        at(1, 1) - centre,
        at(0, 2) - 3 * at(0, 1) + 3 * centre - at(0, -1),
        at(2, 0) - 3 * at(1, 0) + 3 * centre - at(-1, 0),
        (2 * edges - corners - 4 * centre) / 4,
        centre - at(0, 1) - at(1, 0) + at(1, 1),
    ]


def _pairs(residual: np.ndarray, step: float) -> np.ndarray:
    """Square roots of the frequencies of horizontal and of vertical pairs, a pair and its negative counted as one."""
    levels = 2 * LIMIT + 1
    quantised = np.clip(np.rint(residual / step), -LIMIT, LIMIT).astype(np.int64) + LIMIT
    parts = []
    for first, second in (
        (quantised[:, :, :-1], quantised[:, :, 1:]),
        (quantised[:, :-1], quantised[:, 1:]),
    ):
        pair = (first * levels + second).reshape(len(residual), -1) + levels**2 * np.arange(len(residual))[:, None]
        counts = np.bincount(pair.ravel(), minlength=len(residual) * levels**2).reshape(len(residual), levels**2)
        frequency = counts / first[0].size
        parts.append(np.sqrt((frequency + frequency[:, ::-1])[:, : levels**2 // 2 + 1]))
    return np.concatenate(parts, axis=1)


def _dct_statistics(channel: np.ndarray) -> np.ndarray:
    """Log mean and log deviation of each coefficient's size, and how often it is under 1 and under 4."""
    rows, columns = channel.shape[1] // BLOCK, channel.shape[2] // BLOCK
    blocks = channel[:, : rows * BLOCK, : columns * BLOCK].reshape(-1, rows, BLOCK, columns, BLOCK)
    k, n = np.arange(BLOCK)[:, None], np.arange(BLOCK)[None]
    basis = (0.5 * np.cos(np.pi * (2 * n + 1) * k / (2 * BLOCK))).astype(np.float32)
    basis[0] /= np.sqrt(2)
    size = np.abs(basis @ blocks.transpose(0, 1, 3, 2, 4).reshape(len(channel), -1, BLOCK, BLOCK) @ basis.T)
    size = size.reshape(len(channel), -1, BLOCK**2)
    spread = np.sqrt((size**2).mean(1))
    return np.concatenate(
        [np.log(size.mean(1) + 0.5), np.log(spread + 0.5), (size < 1).mean(1), (size < 4).mean(1)], axis=1
    )
