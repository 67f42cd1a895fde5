"""Trains the flow-matching generator. Resuming is exact, because the random numbers of a step depend only on its
number.
"""

from __future__ import annotations

import hashlib
import math
import pickle
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from usb_rsmatch.counter_rng import Order, derive
from usb_rsmatch.errors import UserError
from usb_rsmatch.io import atomic_write
from usb_rsmatch.synthesis.deferred_interrupt import DeferredInterrupt
from usb_rsmatch.synthesis.dit import VelocityTransformer
from usb_rsmatch.synthesis.flow_settings import FlowSettings, autocast, pick_device
from usb_rsmatch.synthesis.latents import LatentSpace
from usb_rsmatch.synthesis.quantisation import PixelQuantiser
from usb_rsmatch.synthesis.unet import VelocityUNet

FORMAT = 1  # increase it when the same settings start to produce another model
LARGEST, LARGEST_LATENT = 64, 256  # px
Progress = Callable[[str, int, int], None]  # (stage, steps done, total steps)
State = dict[str, list[Tensor]]


@dataclass
class FlowModel:
    """A trained flow-matching generator: its weights by name, and the properties of its training images."""

    settings: FlowSettings
    image_shape: tuple[int, int, int]  # H, W, C
    num_classes: int
    quantiser: PixelQuantiser
    weights: dict[str, dict[str, Tensor]]  # "ema" and "early"
    losses: np.ndarray  # float32 [steps], the training loss of each step
    difficulty: bool = False  # whether it was trained with difficulty scores
    latents: LatentSpace | None = None  # where it works, unless on pixels
    latent_scale: tuple[Tensor, Tensor] | None = None  # mean and standard deviation [C, 1, 1] of latents


def train_flow(
    images: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    settings: FlowSettings,
    seed: int,
    progress: Progress | None = None,
    checkpoint: Path | None = None,
    *,
    device: str = "auto",
    save_every: float = 60.0,
    difficulty: np.ndarray | None = None,
    latents: LatentSpace | None = None,
) -> FlowModel:
    """Train a velocity field on real images: straight paths from noise to image; the class is sometimes hidden.

    `images` uint8 [N, H, W, C], `labels` int64 [N]. With `checkpoint`, training is saved to that file
    every `save_every` seconds, at its end, and at a stop request (SIGINT or SIGTERM), which raises KeyboardInterrupt
    after the current step. Training resumes from the file bit for bit; the model of a finished file is only loaded.
    With `difficulty`, float [N] scores in [0, 1] or NaN for none, the score is a further condition, which is hidden
    with the class and, for a share `p_no_difficulty` of the other images, alone. With `latents`, a transformer is
    trained on latents, scaled to mean 0 and standard deviation 1 by channel, instead of the U-Net on pixels.
    Raises UserError for unsuitable images or labels, and for a checkpoint of other images, settings or conditions.
    Source: Lipman et al. 2210.02747 (eq. 23 with sigma_min = 0), Liu et al. 2209.03003 (eq. 1); times drawn
    from a logit-normal, Esser et al. 2403.03206 (section 3.1); hidden classes, Ho & Salimans 2207.12598
    (algorithm 1); latents, Rombach et al. 2112.10752; difficulty as a condition, arXiv 2411.18109.
    """
    check_images(images, labels, num_classes, latents is not None)
    where = pick_device(device)
    key = model_fingerprint(images, labels, num_classes, settings, seed, difficulty, latents)
    shape = (images.shape[1], images.shape[2], images.shape[3])
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(derive(seed, "flow", "weights"))
        net = build_network(shape, num_classes, settings, difficulty is not None, latents).to(where)
    names, parameters = zip(*net.named_parameters(), strict=True)
    raw = [p.detach() for p in parameters]  # shares the parameters' memory, outside of autograd
    ema, early = [p.clone() for p in raw], [p.clone() for p in raw]
    losses = torch.zeros(settings.steps, device=where)
    optimizer = torch.optim.AdamW(parameters, lr=settings.lr, betas=(0.9, 0.99), weight_decay=0.01)
    state: State = {"raw": raw, "ema": ema, "early": early, "losses": [losses]}
    if latents is not None:
        state["latents"] = [torch.zeros(latents.shape[0], 1, 1, device=where) for _ in range(2)]
    conditions = [name for name, part in (("difficulty", difficulty), ("latents", latents)) if part is not None]
    condition = " and ".join(conditions) or None
    step = _restore(checkpoint, key, condition, state, optimizer)

    if latents is None:
        examples = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(where)
    elif step < settings.steps:
        examples = latents.encode(images, where).to(where)
        for target, value in zip(state["latents"], channel_statistics(examples), strict=True):
            target.copy_(value)
    classes = torch.from_numpy(labels.astype(np.int64)).to(where)
    scores = None if difficulty is None else torch.from_numpy(difficulty.astype(np.float32)).to(where)
    order = Order(seed, "flow", len(images))
    saved = time.monotonic()
    with DeferredInterrupt() as stop, stop.deferred():
        while step < settings.steps:
            positions = np.arange(step * settings.batch_size, (step + 1) * settings.batch_size)
            index = torch.from_numpy(order.index(positions)).to(where)
            x_1, y = examples[index].float(), classes[index]
            if latents is None:
                x_1 = x_1 / 127.5 - 1
            else:
                x_1 = (x_1 - state["latents"][0]) / state["latents"][1]
            rng = torch.Generator().manual_seed(derive(seed, "flow", "step", step))
            x_0 = torch.randn(x_1.shape, generator=rng).to(where)
            t = torch.randn(len(y), generator=rng).sigmoid().to(where)
            hidden = (torch.rand(len(y), generator=rng) < settings.p_uncond).to(where)
            score = None
            if scores is not None:  # drawn last, so that the other numbers are those of a training without scores
                alone = (torch.rand(len(y), generator=rng) < settings.p_no_difficulty).to(where)
                score = scores[index].masked_fill(hidden | alone, math.nan)
            x_t = torch.lerp(x_0, x_1, t[:, None, None, None])
            with autocast(where, settings):
                velocity = net(x_t, t, y.masked_fill(hidden, num_classes), score)
            loss = (velocity.float() - (x_1 - x_0)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            for group in optimizer.param_groups:
                group["lr"] = settings.lr * _schedule(step, settings.steps)
            optimizer.step()
            losses[step] = loss.detach()
            step += 1
            torch._foreach_lerp_(ema, raw, 1 - min(settings.ema, step / (step + 9)))
            if step == max(1, round(settings.early * settings.steps)):
                torch._foreach_copy_(early, ema)
            due = step == settings.steps or stop.requested or time.monotonic() - saved >= save_every
            if checkpoint is not None and due:
                _store(checkpoint, key, condition, step, state, optimizer)
                saved = time.monotonic()
            if stop.requested:
                break  # which ends `held`, and so raises
            if progress is not None:
                progress("training the generator", step, settings.steps)

    weights = {which: dict(zip(names, state[which], strict=True)) for which in ("ema", "early")}
    return FlowModel(
        settings,
        shape,
        num_classes,
        PixelQuantiser.from_images(images),
        weights,
        losses.cpu().numpy(),
        difficulty is not None,
        latents,
        None if latents is None else (state["latents"][0], state["latents"][1]),
    )


def build_network(
    shape: tuple[int, int, int],
    num_classes: int,
    settings: FlowSettings,
    difficulty: bool = False,
    latents: LatentSpace | None = None,
) -> VelocityUNet | VelocityTransformer:
    """A fresh network: a U-Net for images of `shape` (H, W, C), in channels-last memory, or a DiT for latents."""
    if latents is not None:
        return VelocityTransformer(latents.shape, num_classes, settings.width, settings.depth, difficulty)
    network = VelocityUNet(shape[:2], shape[2], num_classes, settings.width, difficulty)
    return network.to(memory_format=torch.channels_last)


def channel_statistics(examples: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation float32 [C, 1, 1] of latents [N, C, h, w], computed in float64."""
    values = examples.transpose(0, 1).flatten(1)
    means = torch.stack([channel.double().mean() for channel in values])
    deviations = torch.stack([channel.double().std(correction=0) for channel in values]).clamp(min=1e-4)
    return means.float()[:, None, None], deviations.float()[:, None, None]


def check_images(images: np.ndarray, labels: np.ndarray, num_classes: int, latents: bool = False) -> None:
    """Raise UserError unless a generator can be trained on these images for every class."""
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[3] not in (1, 3) or not len(images):
        raise UserError(f"the generator needs uint8 images [N, H, W, 1 or 3], not {images.dtype} {images.shape}")
    height, width = images.shape[1:3]
    largest = LARGEST_LATENT if latents else LARGEST
    if not (8 <= height <= largest and 8 <= width <= largest):
        raise UserError(f"the generator makes images of 8 to {largest} px, not {height} x {width}: resize them first")
    if latents and height != width:
        raise UserError(f"the latent flow makes square images, not {height} x {width}: resize them first")
    if len(labels) != len(images) or labels.min() < 0 or labels.max() >= num_classes:
        raise UserError(f"the generator needs a class in 0..{num_classes - 1} for each of {len(images)} images")
    if missing := sorted(set(range(num_classes)) - set(np.unique(labels).tolist())):
        raise UserError(f"the generator needs real images of each class; there are none of {missing}")


def model_fingerprint(
    images: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    settings: FlowSettings,
    seed: int,
    difficulty: np.ndarray | None = None,
    latents: LatentSpace | None = None,
) -> str:
    """A hash (16 hexadecimal digits) of everything that determines a trained model, except the machine."""
    digest = hashlib.blake2b(digest_size=8)
    digest.update(repr((FORMAT, settings.stage("train"), seed, num_classes, images.shape)).encode())
    digest.update(np.ascontiguousarray(images).data)
    digest.update(labels.astype("<i8").tobytes())
    if difficulty is not None:
        digest.update(b"difficulty" + difficulty.astype("<f8").tobytes())
    if latents is not None:
        digest.update(f"latents {latents.identity} {settings.depth}".encode())
    return digest.hexdigest()


def _schedule(step: int, steps: int) -> float:
    """Factor of the learning rate: linear warm-up over a twentieth of training, then linear decay to 0."""
    warm = max(1, steps // 20)
    return min((step + 1) / warm, (steps - step) / max(1, steps - warm), 1.0)


def _restore(
    checkpoint: Path | None, key: str, condition: str | None, state: State, optimizer: torch.optim.Optimizer
) -> int:
    """Load `state` and the optimizer from the checkpoint, if it exists; returns the number of steps done."""
    if checkpoint is None or not checkpoint.exists():
        return 0
    try:
        saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
        if saved.get("condition") != condition:
            was, now = (name or "the class alone" for name in (saved.get("condition"), condition))
            raise UserError(f"{checkpoint} has another condition ({was}, not {now}): remove it or give another file")
        if saved["key"] != key:
            raise UserError(f"{checkpoint} belongs to other images or settings: remove it or give another file")
        for name, tensors in state.items():
            torch._foreach_copy_(tensors, saved["state"][name])
        if saved["optimizer"] is not None:
            optimizer.load_state_dict(saved["optimizer"])
        return int(saved["step"])
    except (KeyError, RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise UserError(f"{checkpoint} is damaged: remove it to train again") from error


def _store(
    checkpoint: Path, key: str, condition: str | None, step: int, state: State, optimizer: torch.optim.Optimizer
) -> None:
    """Write the checkpoint; that of a finished training has no optimizer state."""
    running = optimizer.state_dict() if step < len(state["losses"][0]) else None
    with atomic_write(checkpoint) as temporary:
        try:
            record = {"key": key, "step": step, "optimizer": running, "state": state}
            torch.save(record if condition is None else {**record, "condition": condition}, temporary)
        except RuntimeError as error:  # torch raises it for a full disk
            raise OSError(f"{checkpoint} cannot be written, the disk may be full: {error}") from error
