"""The detector of `usb-rsmatch audit`: trained on trusted real images and on a pool that may hold synthetic ones.

It needs no classes and no labels. It is RSMatch's detector, a light CNN on the image's residual, with a training
of its own: first on real images against their reconstructions from principal components, then against the images of the
pool that look most synthetic. Each of `FOLDS` detectors holds out a part of both sides, so that every image is scored
by a detector that was not trained on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usb_rsmatch.counter_rng import AUDIT_FAKE_DRAW, AUDITED_VIEW, TRUSTED_VIEW, derive, generator, uniforms
from usb_rsmatch.data.views.augment import ViewSpec, normalise, weak
from usb_rsmatch.detection.detector import ResidualDetector, blur_residual
from usb_rsmatch.detection.metrics import auroc
from usb_rsmatch.detection.pseudo_fakes import PrincipalComponents
from usb_rsmatch.detection.share_estimation import best_bin_estimate
from usb_rsmatch.errors import UserError

FOLDS = 2
FEWEST = 40  # fewest images per side: with fewer, none could be held out
VALIDATION = 0.2  # share of a fold's training images that is held out for early stopping
BATCH = 64  # images per side in a step
CHECK = 50  # steps between validations
COLD = 300  # steps on reconstructed images before mining starts
STEPS = (600, 1500)  # minimum and maximum number of steps
PATIENCE = 10  # validations without improvement before training stops
MINED = (0.05, 0.6)  # smallest and largest share of the pool that is mined
RANKED = 4096  # images of the pool that are ranked at a validation
COMPONENTS_FROM = 512
WIDTH, LEARNING_RATE, WEIGHT_DECAY = 8, 3e-3, 1e-2
SHIFT = 1  # largest shift of a weak view, in pixels

Tell = Callable[[int], None]


@dataclass(frozen=True)
class Look:
    """How images are normalised: mean and standard deviation of three channels, from the trusted real images."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, images: np.ndarray) -> Look:
        """The normalisation computed from images uint8 [N, H, W, C]."""
        levels = images.reshape(-1, images.shape[-1]).astype(np.float32) / 255
        mean, std = levels.mean(0), np.maximum(levels.std(0), 1 / 255)
        copies = 3 // images.shape[-1]
        return cls(tuple(map(float, mean)) * copies, tuple(map(float, std)) * copies)

    def __call__(self, images: Tensor) -> Tensor:
        """Normalised float32 [B, 3, H, W] of uint8 [B, C, H, W]."""
        return normalise(images, self.mean, self.std)


def folds(size: int, seed: int, side: str) -> np.ndarray:
    """The fold that holds each image out, int64 [size]: balanced, determined by the seed."""
    order = generator(seed, "audit folds", side).permutation(size)
    fold = np.empty(size, dtype=np.int64)
    fold[order] = np.arange(size) % FOLDS
    return fold


def train_folds(
    real: np.ndarray, pool: np.ndarray, look: Look, seed: int, device: str = "cpu", tell: Tell = lambda step: None
) -> list[ResidualDetector]:
    """A detector for each fold, of trusted real images uint8 [n, H, W, C] and of a pool uint8 [m, H, W, C].

    `tell` is called after every step. Raises UserError for fewer than `FEWEST` images a side, or images under 8 px.
    """
    for side, images in (("trusted real", real), ("audited", pool)):
        if len(images) < FEWEST:
            raise UserError(f"{len(images)} {side} images are too few: a detector needs at least {FEWEST}")
    if real.shape[1] < 8:
        raise UserError(f"images of {real.shape[1]} px are too small: a detector needs 8 px")
    parts = [(images, folds(len(images), seed, side)) for images, side in ((real, "real"), (pool, "pool"))]
    detectors = []
    for k in range(FOLDS):
        seen_real, seen_pool = (_channels_first(images[fold != k]) for images, fold in parts)
        detectors.append(_train(seen_real, seen_pool, look, derive(seed, "audit", k), device, tell))
    return detectors


@torch.no_grad()
def logits(detector: nn.Module, images: np.ndarray, look: Look, batch: int = 512) -> np.ndarray:
    """The detector's logits float32 [N] of uint8 [N, H, W, C], high = synthetic."""
    device = next(detector.parameters()).device
    detector.eval()
    parts = [
        detector(look(_channels_first(images[start : start + batch]).to(device))).float().cpu().numpy()
        for start in range(0, len(images), batch)
    ]
    return np.concatenate([np.empty(0, np.float32), *parts])


def _channels_first(images: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def _train(real: Tensor, pool: Tensor, look: Look, seed: int, device: str, tell: Tell) -> ResidualDetector:
    """One detector, trained on uint8 [n, C, H, W] and [m, C, H, W]: the weights of the best validation.

    The validation measure, AUROC between held-out real and pool images, needs no label: it is highest where synthetic
    images rank highest, whatever their share.
    """
    (held_real, real), (held_pool, pool) = (_split(side, seed, name) for side, name in ((real, "r"), (pool, "p")))
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(derive(seed, "weights"))
        detector = ResidualDetector(blur_residual, WIDTH).to(device)
    optimiser = torch.optim.AdamW(detector.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    both = torch.cat([real, pool])
    some = torch.from_numpy(generator(seed, "components").permutation(len(both))[:COMPONENTS_FROM])
    components = PrincipalComponents(look(both[some]))
    spec, best, best_at, mined = ViewSpec(SHIFT, flip=False), -1.0, 0, pool[:0]
    state: dict[str, Tensor] = {}
    for step in range(STEPS[1] + 1):
        if step and step % CHECK == 0:
            score = _validate(detector, held_real, held_pool, look)
            if score > best:
                best, best_at = score, step
                state = {name: value.clone() for name, value in detector.state_dict().items()}
            if step == STEPS[1] or (step >= STEPS[0] and step - best_at >= PATIENCE * CHECK):
                break
            if step >= COLD:
                mined = _mine(detector, held_real, held_pool, pool, look, derive(seed, "ranked", step))
        positions = torch.arange(step * BATCH, (step + 1) * BATCH)
        detector.train()
        x_real = look(weak(_draw(real, seed, step, "real"), seed, positions, TRUSTED_VIEW, spec).to(device))
        if step < COLD:
            shown = look(weak(_draw(real, seed, step, "fake"), seed, positions, AUDITED_VIEW, spec).to(device))
            x_synthetic = components.rebuild(shown, uniforms(seed, positions, AUDIT_FAKE_DRAW, 1)[:, 0])
        else:
            x_synthetic = look(weak(_draw(mined, seed, step, "pool"), seed, positions, AUDITED_VIEW, spec).to(device))
        out = detector(torch.cat([x_real, x_synthetic])).float()
        loss = F.softplus(out[: len(x_real)]).mean() + F.softplus(-out[len(x_real) :]).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        tell(step)
    detector.load_state_dict(state)
    return detector.eval().requires_grad_(False)


def _split(images: Tensor, seed: int, name: str) -> tuple[Tensor, Tensor]:
    order = torch.from_numpy(generator(seed, "validation", name).permutation(len(images)))
    cut = max(1, round(VALIDATION * len(images)))
    return images[order[:cut]], images[order[cut:]]


def _draw(images: Tensor, seed: int, step: int, side: str) -> Tensor:
    rows = generator(seed, "batch", side, step).integers(0, len(images), BATCH)
    return images[torch.from_numpy(rows)]


def _scores(detector: nn.Module, images: Tensor, look: Look) -> Tensor:
    return torch.from_numpy(logits(detector, images.permute(0, 2, 3, 1).numpy(), look))


def _validate(detector: nn.Module, real: Tensor, pool: Tensor, look: Look) -> float:
    first, second = _scores(detector, real, look), _scores(detector, pool, look)
    truth = np.repeat([False, True], [len(first), len(second)])
    return auroc(torch.cat([first, second]).numpy(), truth) or 0.0


def _mine(detector: nn.Module, held_real: Tensor, held_pool: Tensor, pool: Tensor, look: Look, seed: int) -> Tensor:
    """The images of (a sample of) the pool that look most synthetic: as many as the estimated share, within `MINED`."""
    share = best_bin_estimate(_scores(detector, held_real, look), _scores(detector, held_pool, look))
    rows: Sequence[int] | np.ndarray = range(len(pool))
    if len(pool) > RANKED:
        rows = generator(seed, "rows").choice(len(pool), RANKED, replace=False)
    ranked = pool[torch.as_tensor(np.asarray(rows))]
    count = max(16, int(len(ranked) * min(MINED[1], max(MINED[0], share))))
    return ranked[_scores(detector, ranked, look).argsort(descending=True)[:count]]
