"""A class-conditional VAE and GAN: one small decoder, trained in two ways.

They complement the flow in experiments: a VAE's images are blurred and near the mean of their class, a GAN's are sharp
and sometimes wrong, and their architecture has nothing in common with the flow's U-Net.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from usb_rsmatch.cache import cache_folder, file_lock
from usb_rsmatch.counter_rng import Order, derive
from usb_rsmatch.errors import UserError
from usb_rsmatch.io import atomic_write
from usb_rsmatch.synthesis.grey_levels import Levels
from usb_rsmatch.synthesis.training import Progress, check_images

FORMAT = 1  # increase it when the same settings start to give other images
LATENT = 32  # dimension of the latent vector


@dataclass(frozen=True)
class DecoderSettings:
    """How the decoder is trained; the defaults suit grey images of 8 to 32 px (our choice).

    `kind` is "vae" or "gan". UserError for values out of range.
    """

    kind: str
    steps: int = 1500
    batch_size: int = 64
    width: int = 32
    lr: float = 2e-3

    def __post_init__(self) -> None:
        if self.kind not in ("vae", "gan"):
            raise UserError(f"decoder kind={self.kind!r} is invalid: take vae or gan")
        for name in ("steps", "batch_size", "width", "lr"):
            if getattr(self, name) <= 0:
                raise UserError(f"decoder setting {name}={getattr(self, name)!r} is invalid: it must be above 0")


class Decoder(nn.Module):
    """Latent [B, LATENT] and class int64 [B] to an image [B, C, H, W] in -1..1, from a grid of a quarter the size."""

    def __init__(self, shape: tuple[int, int, int], num_classes: int, width: int) -> None:
        super().__init__()
        height, width_px, channels = shape
        self.shape, self.grid = (height, width_px), (-(-height // 4), -(-width_px // 4))
        self.embed = nn.Embedding(num_classes, LATENT)
        self.first = nn.Linear(2 * LATENT, 2 * width * self.grid[0] * self.grid[1])
        self.convolutions = nn.ModuleList(
            [nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.Conv2d(2 * width, width, 3, padding=1)]
        )
        self.norms = nn.ModuleList([nn.BatchNorm2d(2 * width), nn.BatchNorm2d(width)])
        self.last = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        x = self.first(torch.cat([z, self.embed(y)], 1)).relu().unflatten(1, (-1, *self.grid))
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = norm(convolution(F.interpolate(x, scale_factor=2.0, mode="nearest"))).relu()
        return self.last(x).tanh()[..., : self.shape[0], : self.shape[1]]


class Encoder(nn.Module):
    """Image and class to `outputs` numbers: a VAE's mean and log-variance, or a GAN discriminator's output."""

    def __init__(self, channels: int, num_classes: int, width: int, outputs: int, lipschitz: bool) -> None:
        super().__init__()
        wrap = spectral_norm if lipschitz else lambda layer: layer
        self.convolutions = nn.Sequential(
            *(wrap(nn.Conv2d(channels, width, 3, padding=1)), nn.LeakyReLU(0.2)),
            *(wrap(nn.Conv2d(width, 2 * width, 4, stride=2, padding=1)), nn.LeakyReLU(0.2)),
            *(wrap(nn.Conv2d(2 * width, 2 * width, 4, stride=2, padding=1)), nn.LeakyReLU(0.2)),
            *(nn.AdaptiveAvgPool2d(2), nn.Flatten()),
        )
        self.head = wrap(nn.Linear(8 * width, outputs))
        self.embed = nn.Embedding(num_classes, 8 * width)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h: Tensor = self.convolutions(x)
        return self.head(h) + (h * self.embed(y)).sum(1, keepdim=True) / h.shape[1] ** 0.5


def make_decoder_images(
    real_images: np.ndarray,
    real_labels: np.ndarray,
    num_classes: int,
    count: int,
    settings: DecoderSettings,
    seed: int,
    cache_dir: str | Path | None = None,
    progress: Progress | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """`count` generated images, uint8 [count, H, W, C], and their classes in turn, int64 [count].

    Trains on real images (uint8 [N, H, W, C], int64 [N]) with one thread's worth of work, or loads the decoder from
    the cache. Raises UserError for unsuitable images, and if the cache cannot be written or read.
    """
    check_images(real_images, real_labels, num_classes)
    shape = (real_images.shape[1], real_images.shape[2], real_images.shape[3])
    digest = hashlib.blake2b(digest_size=8)
    digest.update(repr((FORMAT, astuple(settings), seed, num_classes, real_images.shape)).encode())
    digest.update(np.ascontiguousarray(real_images).data)
    digest.update(real_labels.astype("<i8").tobytes())
    folder = cache_folder(cache_dir)
    store = folder / f"{settings.kind}-{digest.hexdigest()}.pt"
    try:
        with file_lock(store.with_suffix(".lock")):
            decoder = Decoder(shape, num_classes, settings.width)
            if store.exists():
                decoder.load_state_dict(torch.load(store, weights_only=True))
            else:
                fit = _fit_vae if settings.kind == "vae" else _fit_gan
                decoder = fit(real_images, real_labels, num_classes, settings, seed, progress)
                with atomic_write(store) as temporary:
                    torch.save(decoder.state_dict(), temporary)
    except (RuntimeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{store} is damaged: remove it to train again") from error
    except OSError as error:
        raise UserError(f"the cache {folder} cannot be used ({error.strerror or error})") from error
    labels = np.arange(count, dtype=np.int64) % num_classes
    return _sample(decoder, labels, seed, Levels.of(real_images)), labels


@torch.no_grad()
def _sample(decoder: Decoder, labels: np.ndarray, seed: int, levels: Levels, batch: int = 128) -> np.ndarray:
    """One image for each class of `labels`, in whole batches whose noise is keyed by (seed, batch)."""
    decoder.eval()
    parts = []
    for start in range(0, len(labels), batch):
        draws = torch.Generator().manual_seed(derive(seed, "decoder", "sample", start))
        z = torch.randn(batch, LATENT, generator=draws)
        y = torch.from_numpy(np.arange(start, start + batch) % decoder.embed.num_embeddings)
        images = decoder(z, y).permute(0, 2, 3, 1).numpy()
        parts.append(levels.snap((images + 1) * 127.5))
    return np.concatenate(parts)[: len(labels)]


def _batches(
    images: np.ndarray, labels: np.ndarray, settings: DecoderSettings, seed: int, progress: Progress | None
) -> Iterator[tuple[Tensor, Tensor, torch.Generator]]:
    """Real images in -1..1, their classes, and the draws of each step."""
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    classes = torch.from_numpy(labels.astype(np.int64))
    order = Order(seed, settings.kind, len(images))
    for step in range(settings.steps):
        index = torch.from_numpy(
            order.index(np.arange(step * settings.batch_size, (step + 1) * settings.batch_size))
        )
        draws = torch.Generator().manual_seed(derive(seed, settings.kind, "step", step))
        yield pixels[index].float() / 127.5 - 1, classes[index], draws
        if progress is not None:
            progress(f"training the {settings.kind.upper()}", step + 1, settings.steps)


def _networks(
    images: np.ndarray, num_classes: int, settings: DecoderSettings, seed: int, outputs: int, lipschitz: bool
) -> tuple[Decoder, Encoder]:
    shape = (images.shape[1], images.shape[2], images.shape[3])
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(derive(seed, settings.kind, "weights"))
        decoder = Decoder(shape, num_classes, settings.width)
        return decoder, Encoder(shape[2], num_classes, settings.width, outputs, lipschitz)


def _fit_vae(
    images: np.ndarray,
    labels: np.ndarray,
    classes: int,
    settings: DecoderSettings,
    seed: int,
    progress: Progress | None,
) -> Decoder:
    """A conditional VAE: Kingma & Welling 1312.6114 (eq. 10), Sohn et al. 2015; Gaussian pixels of deviation 0.25."""
    decoder, encoder = _networks(images, classes, settings, seed, 2 * LATENT, lipschitz=False)
    optimizer = torch.optim.Adam([*decoder.parameters(), *encoder.parameters()], lr=settings.lr)
    for x, y, draws in _batches(images, labels, settings, seed, progress):
        mean, log_variance = encoder(x, y).chunk(2, dim=1)
        z = mean + (0.5 * log_variance).exp() * torch.randn(mean.shape, generator=draws)
        rebuilt = decoder(z, y)
        distortion = (rebuilt - x).square().flatten(1).sum(1) / (2 * 0.25**2)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
        optimizer.zero_grad()
        (distortion + divergence).mean().backward()
        optimizer.step()
    return decoder


def _fit_gan(
    images: np.ndarray,
    labels: np.ndarray,
    classes: int,
    settings: DecoderSettings,
    seed: int,
    progress: Progress | None,
) -> Decoder:
    """A conditional GAN: hinge loss and projection as Miyato & Koyama 1802.05637, spectral norm as 1802.05957."""
    decoder, critic = _networks(images, classes, settings, seed, 1, lipschitz=True)
    of_decoder = torch.optim.Adam(decoder.parameters(), lr=settings.lr / 2, betas=(0.0, 0.9))
    of_critic = torch.optim.Adam(critic.parameters(), lr=settings.lr, betas=(0.0, 0.9))
    for x, y, draws in _batches(images, labels, settings, seed, progress):
        fake = decoder(torch.randn(len(x), LATENT, generator=draws), y)
        of_critic.zero_grad()
        verdict = critic(torch.cat([x, fake.detach()]), torch.cat([y, y]))
        ((1 - verdict[: len(x)]).relu().mean() + (1 + verdict[len(x) :]).relu().mean()).backward()
        of_critic.step()
        of_decoder.zero_grad()
        (-critic(fake, y).mean()).backward()
        of_decoder.step()
    return decoder
