"""Samples images from a trained flow model, in batches of a fixed size; each image has its own noise."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from usb_rsmatch.counter_rng import derive, generator
from usb_rsmatch.errors import UserError
from usb_rsmatch.synthesis.flow_settings import FlowSettings, autocast, pick_device
from usb_rsmatch.synthesis.flow_training import FlowModel, Progress, build_network

BATCH = 128  # batch size; it affects the images, because rounding depends on the batch's shape
NOISE = ("flow", "noise")  # name of the random stream of the noise


class Sampler:
    """Generates batches of images with one network.

    The noise of the n-th image of a class depends only on (seed, class, n), and a batch always has the same shape. So
    the bytes of an image do not depend on the order of batches or on how they are divided, on the same machine.
    Source: Euler's method, or Heun's as in Karras et al. 2206.00364 (algorithm 1); guidance as Ho & Salimans
    2207.12598 (eq. 6), with 1 + w for our `guidance`.
    """

    def __init__(
        self, model: FlowModel, settings: FlowSettings, seed: int, batch: int = BATCH, device: str = "auto"
    ) -> None:
        self.model, self.settings, self.seed, self.batch = model, settings, seed, batch
        self.device = pick_device(device)
        shape, classes = model.image_shape, model.num_classes
        net = build_network(shape, classes, model.settings, model.difficulty, model.latents)
        net = net.to(self.device).eval()
        net.load_state_dict(model.weights[settings.weights])
        self.net = net

    @torch.inference_mode()
    def __call__(self, labels: np.ndarray, ordinals: np.ndarray, difficulty: np.ndarray | None = None) -> np.ndarray:
        """Images uint8 [n, H, W, C] of classes `labels` [n] and numbers `ordinals` [n], n at most the batch size.

        `difficulty` float [n] in [0, 1] is for models that were trained with scores. Raises UserError for others.
        """
        if difficulty is not None and not self.model.difficulty:
            raise UserError("difficulty: this generator was trained without difficulty scores; train another")
        height, width, channels = self.model.image_shape
        shape = (channels, height, width) if self.model.latents is None else self.model.latents.shape
        rows = np.arange(self.batch).clip(max=len(labels) - 1)  # a smaller batch is padded with its last image
        keys = [(int(labels[row]), int(ordinals[row])) for row in rows]
        noises = [generator(self.seed, *NOISE, *key).standard_normal(shape, np.float32) for key in keys]
        noise = torch.from_numpy(np.stack(noises)).to(self.device)
        classes = torch.from_numpy(labels[rows].astype(np.int64)).to(self.device)
        scores = None
        if difficulty is not None:
            scores = torch.from_numpy(difficulty[rows].astype(np.float32)).to(self.device)
        with autocast(self.device, self.settings):
            x = _integrate(self.net, noise, classes, scores, self.model.num_classes, self.settings)
        if self.model.latents is None or self.model.latent_scale is None:
            pixels = (x.permute(0, 2, 3, 1).cpu().numpy() + 1) * 127.5
        else:
            mean, deviation = (value.to(self.device) for value in self.model.latent_scale)
            decoded = self.model.latents.decode(x * deviation + mean, height, channels)
            pixels = decoded.permute(0, 2, 3, 1).cpu().numpy()
        return self.model.quantiser.quantise(pixels)[: len(labels)]


def noise_seed(seed: int, label: int, ordinal: int) -> int:
    """The key of an image's noise, for NumPy's Philox generator."""
    return derive(seed, *NOISE, label, ordinal)


def sample(
    model: FlowModel,
    labels: np.ndarray,
    settings: FlowSettings,
    seed: int,
    batch: int = BATCH,
    *,
    start: int = 0,
    stop: int | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> np.ndarray:
    """Images `start` to `stop` (excluded) of a plan with the classes `labels` (int64 [M]): uint8 [stop - start, H, W,
    C].

    They are generated in whole batches of the plan, see `Sampler`.
    """
    stop = len(labels) if stop is None else stop
    sampler = Sampler(model, settings, seed, batch, device)
    ordinals = _ordinals(labels)
    result = np.empty((max(0, stop - start), *model.image_shape), dtype=np.uint8)
    for first in range(start - start % batch, stop, batch):
        images = sampler(labels[first : first + batch], ordinals[first : first + batch])
        begin, end = max(first, start), min(first + batch, stop)
        result[begin - start : end - start] = images[begin - first : end - first]
        if progress is not None:
            progress("making images", end - start, stop - start)
    return result


def _integrate(
    net: torch.nn.Module, x: Tensor, y: Tensor, scores: Tensor | None, num_classes: int, settings: FlowSettings
) -> Tensor:
    """Integrate the velocity field from noise [B, C, H, W] at time 0 to images at time 1.

    Guidance leads away from the field without class and without difficulty.
    """
    both_scores = None if scores is None else torch.cat([scores, torch.full_like(scores, math.nan)])

    def velocity(x: Tensor, time: float) -> Tensor:
        t = torch.full((len(x),), time, device=x.device)
        if settings.guidance == 1:
            return net(x, t, y, scores).float()
        both_classes = torch.cat([y, torch.full_like(y, num_classes)])
        both = net(x.repeat(2, 1, 1, 1), t.repeat(2), both_classes, both_scores)
        conditional, unconditional = both.float().chunk(2)
        return torch.lerp(unconditional, conditional, settings.guidance)

    steps = settings.sampler_steps
    for i in range(steps):
        v = velocity(x, i / steps)
        if settings.solver == "heun" and i < steps - 1:
            v = (v + velocity(x + v / steps, (i + 1) / steps)) / 2
        x = x + v / steps
    return x


def _ordinals(labels: np.ndarray) -> np.ndarray:
    """For each label, the number of equal labels before it, int64 [M]."""
    order = np.argsort(labels, kind="stable")
    ordered = labels[order]
    ordinals = np.empty(len(labels), dtype=np.int64)
    ordinals[order] = np.arange(len(labels)) - np.searchsorted(ordered, ordered, side="left")
    return ordinals
