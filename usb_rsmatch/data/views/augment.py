"""Weak, medium and strong views of whole batches, as in USB, with separate random numbers for each image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from usb_rsmatch.counter_rng import uniforms
from usb_rsmatch.data.views import randaugment
from usb_rsmatch.errors import UserError

CUTOUT_COLOUR = (125, 123, 114)
_LOW, _HIGH = np.array(list(randaugment.RANGES.values())).T


@dataclass(frozen=True)
class ViewSpec:
    """The settings of a data set's views: reflection padding in pixels, and whether to mirror."""

    padding: int
    flip: bool


def weak(images: Tensor, seed: int, positions: Tensor, view: int, spec: ViewSpec) -> Tensor:
    """A random crop with reflection padding, mirrored or not.

    `images` is uint8 [B, C, H, W], C 1 or 3, on any device; `positions`, int64 [B], must be on the host,
    where random numbers are drawn. Returns new uint8 [B, C, H, W], each image a pure function of itself and (seed,
    position, view). Raises UserError if the padding does not fit the image. Source: USB's transform_weak.
    """
    return _crop(images, _draws(seed, positions, view, 3), spec)


def medium(images: Tensor, seed: int, positions: Tensor, view: int, spec: ViewSpec) -> Tensor:
    """A weak view, one RandAugment operation, and cutout; otherwise as `strong`."""
    return _augmented(images, seed, positions, view, spec, steps=1)


def strong(images: Tensor, seed: int, positions: Tensor, view: int, spec: ViewSpec) -> Tensor:
    """A weak view, three RandAugment operations, and cutout.

    Arguments and errors as for `weak`; returns uint8 [B, 3, H, W], grey as RGB, as cutout's colour is not grey.
    Source: FixMatch (Sohn et al. 2020) in USB's form: operations drawn with replacement, uniform magnitudes.
    """
    return _augmented(images, seed, positions, view, spec, steps=3)


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(level / 255 - mean) / std, as torchvision's ToTensor and Normalize compute it.

    Takes uint8 [B, C, H, W], C 1 or 3, and three means and deviations; returns float32 [B, 3, H, W].
    """
    centre, scale = _constant((tuple(mean), tuple(std)), torch.float32, images.device)[:, :, None, None]
    levels = images.float().div_(255.0)
    rgb = levels.repeat(1, 3, 1, 1) if images.shape[1] == 1 else levels
    return rgb.sub_(centre).div_(scale)


@lru_cache(maxsize=64)
def _constant(values: tuple[Any, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Constants that every batch needs: sending them each time would wait for a GPU."""
    return torch.tensor(values, dtype=dtype, device=device)


def _draws(seed: int, positions: Tensor, view: int, n: int) -> np.ndarray:
    return uniforms(seed, positions.cpu(), view, n).double().numpy()


def _augmented(images: Tensor, seed: int, positions: Tensor, view: int, spec: ViewSpec, steps: int) -> Tensor:
    draws = _draws(seed, positions, view, 6 + 2 * steps)
    op = (draws[:, 6::2] * len(randaugment.OPS)).astype(np.int64)
    magnitude = _LOW[op] + (_HIGH - _LOW)[op] * draws[:, 7::2]
    return _cutout(randaugment.apply(_crop(images, draws[:, :3], spec), op, magnitude), draws[:, 3:6])


@lru_cache(maxsize=16)
def _windows(size: int, padding: int) -> np.ndarray:
    """The windows on a reflected line, forwards and mirrored: sources, int64 [2, 2 padding + 1, size]."""
    line = np.pad(np.arange(size), padding, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(line, size)
    return np.stack([windows, windows[:, ::-1]])


def _crop(images: Tensor, draws: np.ndarray, spec: ViewSpec) -> Tensor:
    """A window of the images' own size; `draws` [B, 3] are down, right, mirror."""
    height, width = images.shape[2:]
    if not 0 <= spec.padding < min(height, width):
        raise UserError(f"padding {spec.padding} does not fit images of {height} x {width}: raise crop_ratio")
    down, right = (draws[:, :2] * (2 * spec.padding + 1)).astype(np.int64).T
    mirror = (draws[:, 2] < 0.5).astype(np.int64) * spec.flip
    row, column = _windows(height, spec.padding)[0, down], _windows(width, spec.padding)[mirror, right]
    lines = randaugment.to(images.device, np.concatenate([row * width, column], axis=1))
    source = (lines[:, :height, None] + lines[:, None, height:]).flatten(1)[:, None]
    return images.flatten(2).gather(2, source.expand(-1, images.shape[1], -1)).view_as(images)


def _cutout(images: Tensor, draws: np.ndarray) -> Tensor:
    """Paint a square of U(0, 1/2) widths; `draws` [B, 3] are size, right, down. Returns uint8 [B, 3, H, W].

    Ends are inclusive, as in Pillow; centres are in (1, side], as with USB's numpy.random.uniform(side).
    """
    height, width = images.shape[2:]
    sides = np.array([width, height])
    size = draws[:, :1] * 0.5 * width
    centre = sides + (1.0 - sides) * draws[:, 1:]
    start = np.maximum(0.0, centre - size / 2.0).astype(np.int64)
    stop = np.where(size > 0.0, np.minimum(sides, start + size).astype(np.int64), -1)
    place = np.arange(max(height, width), dtype=np.int16)
    covered = (start.astype(np.int16)[:, :, None] <= place) & (place <= stop.astype(np.int16)[:, :, None])
    mask = randaugment.to(images.device, covered * np.uint8(255))
    colour = _constant(CUTOUT_COLOUR, torch.uint8, images.device)[:, None, None]
    painted = mask[:, :1, None, :width] & mask[:, 1:, :height, None]
    return (images ^ colour).bitwise_and_(painted).bitwise_xor_(images)  # bits, since torch.where is slow
