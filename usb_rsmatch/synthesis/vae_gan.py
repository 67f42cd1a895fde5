"""A class-conditional VAE and a GAN that share one small decoder network.

They complement the flow model in experiments: a VAE's images are blurred and near the mean of their class, a GAN's are
sharp and sometimes of another class, and their architecture has nothing in common with the flow model's U-Net.
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
from usb_rsmatch.synthesis.flow_training import Progress, check_images
from usb_rsmatch.synthesis.quantisation import PixelQuantiser

FORMAT = 1  # increase it when the same settings start to produce other images
LATENT = 32  # dimension of the latent vector


@dataclass(frozen=True)
class DecoderSettings:
    """Training settings of the decoder; the defaults suit grey images of 8 to 32 px (our choice).

    `kind` is "vae" or "gan". Raises UserError for values out of range.
    """

    kind: str
    steps: int = 1500
    batch_size: int = 64
    width: int = 32
    lr: float = 2e-3

    def __post_init__(self) -> None:
        if self.kind not in ("vae", "gan"):
            raise UserError(f"decoder kind={self.kind!r} is invalid: choose vae or gan")
        for name in ("steps", "batch_size", "width", "lr"):
            if getattr(self, name) <= 0:
                raise UserError(f"decoder setting {name}={getattr(self, name)!r} is invalid: it must be above 0")


class Decoder(nn.Module):
    """Maps latents [B, LATENT] and classes int64 [B] to images [B, C, H, W] in -1..1, from a grid of a quarter of their
    size.
    """

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
    """Maps images and classes to `outputs` numbers: mean and log-variance of a VAE, or the logit of a GAN's
    discriminator.
    """

    def __init__(self, channels: int, num_classes: int, width: int, outputs: int, use_spectral_norm: bool) -> None:
        super().__init__()
        wrap = spectral_norm if use_spectral_norm else lambda layer: layer
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
    """`count` generated images, uint8 [count, H, W, C], and their classes, which alternate, int64 [count].

    Trains on real images (uint8 [N, H, W, C], classes int64 [N]), or loads the decoder from the cache. Raises UserError
    for unsuitable images, and if the cache cannot be written or read.
    """
    check_images(real_images, real_labels, num_classes)
    shape = (real_images.shape[1], real_images.shape[2], real_images.shape[3])
    digest = hashlib.blake2b(digest_size=8)
    digest.update(repr((FORMAT, astuple(settings), seed, num_classes, real_images.shape)).encode())
    digest.update(np.ascontiguousarray(real_images).data)
    digest.update(real_labels.astype("<i8").tobytes())
    folder = cache_folder(cache_dir)
    cache_file = folder / f"{settings.kind}-{digest.hexdigest()}.pt"
    try:
        with file_lock(cache_file.with_suffix(".lock")):
            decoder = Decoder(shape, num_classes, settings.width)
            if cache_file.exists():
                decoder.load_state_dict(torch.load(cache_file, weights_only=True))
            else:
                train = _train_vae if settings.kind == "vae" else _train_gan
                decoder = train(real_images, real_labels, num_classes, settings, seed, progress)
                with atomic_write(cache_file) as temporary:
                    torch.save(decoder.state_dict(), temporary)
    except (RuntimeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{cache_file} is damaged: remove it to train again") from error
    except OSError as error:
        raise UserError(
            f"the cache {folder} cannot be used ({error.strerror or error}): set USB_RSMATCH_CACHE to another"
        ) from error
    labels = np.arange(count, dtype=np.int64) % num_classes
    return _sample(decoder, labels, seed, PixelQuantiser.from_images(real_images)), labels


@torch.no_grad()
def _sample(decoder: Decoder, labels: np.ndarray, seed: int, quantiser: PixelQuantiser, batch: int = 128) -> np.ndarray:
    """One image for each class of `labels`, in whole batches. The noise depends only on the seed and the batch's
    number.
    """
    decoder.eval()
    parts = []
    for start in range(0, len(labels), batch):
        rng = torch.Generator().manual_seed(derive(seed, "decoder", "sample", start))
        z = torch.randn(batch, LATENT, generator=rng)
        y = torch.from_numpy(np.arange(start, start + batch) % decoder.embed.num_embeddings)
        images = decoder(z, y).permute(0, 2, 3, 1).numpy()
        parts.append(quantiser.quantise((images + 1) * 127.5))
    return np.concatenate(parts)[: len(labels)]


def _batches(
    images: np.ndarray, labels: np.ndarray, settings: DecoderSettings, seed: int, progress: Progress | None
) -> Iterator[tuple[Tensor, Tensor, torch.Generator]]:
    """For each step, real images in -1..1, their classes and a random generator."""
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    classes = torch.from_numpy(labels.astype(np.int64))
    order = Order(seed, settings.kind, len(images))
    for step in range(settings.steps):
        index = torch.from_numpy(order.index(np.arange(step * settings.batch_size, (step + 1) * settings.batch_size)))
        rng = torch.Generator().manual_seed(derive(seed, settings.kind, "step", step))
        yield pixels[index].float() / 127.5 - 1, classes[index], rng
        if progress is not None:
            progress(f"training the {settings.kind.upper()}", step + 1, settings.steps)


def _networks(
    images: np.ndarray, num_classes: int, settings: DecoderSettings, seed: int, outputs: int, use_spectral_norm: bool
) -> tuple[Decoder, Encoder]:
    shape = (images.shape[1], images.shape[2], images.shape[3])
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(derive(seed, settings.kind, "weights"))
        decoder = Decoder(shape, num_classes, settings.width)
        return decoder, Encoder(shape[2], num_classes, settings.width, outputs, use_spectral_norm)


def _train_vae(
    images: np.ndarray,
    labels: np.ndarray,
    classes: int,
    settings: DecoderSettings,
    seed: int,
    progress: Progress | None,
) -> Decoder:
    """A conditional VAE: Kingma & Welling 1312.6114 (eq. 10), Sohn et al. 2015; Gaussian pixels, standard deviation
    0.25.
    """
    decoder, encoder = _networks(images, classes, settings, seed, 2 * LATENT, use_spectral_norm=False)
    optimizer = torch.optim.Adam([*decoder.parameters(), *encoder.parameters()], lr=settings.lr)
    for x, y, rng in _batches(images, labels, settings, seed, progress):
        mean, log_variance = encoder(x, y).chunk(2, dim=1)
        z = mean + (0.5 * log_variance).exp() * torch.randn(mean.shape, generator=rng)
        reconstruction = decoder(z, y)
        reconstruction_loss = (reconstruction - x).square().flatten(1).sum(1) / (2 * 0.25**2)
        kl_divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
        optimizer.zero_grad()
        (reconstruction_loss + kl_divergence).mean().backward()
        optimizer.step()
    return decoder


def _train_gan(
    images: np.ndarray,
    labels: np.ndarray,
    classes: int,
    settings: DecoderSettings,
    seed: int,
    progress: Progress | None,
) -> Decoder:
    """A conditional GAN: hinge loss and projection as Miyato & Koyama 1802.05637, spectral norm as 1802.05957."""
    decoder, discriminator = _networks(images, classes, settings, seed, 1, use_spectral_norm=True)
    decoder_optimizer = torch.optim.Adam(decoder.parameters(), lr=settings.lr / 2, betas=(0.0, 0.9))
    discriminator_optimizer = torch.optim.Adam(discriminator.parameters(), lr=settings.lr, betas=(0.0, 0.9))
    for x, y, rng in _batches(images, labels, settings, seed, progress):
        fake = decoder(torch.randn(len(x), LATENT, generator=rng), y)
        discriminator_optimizer.zero_grad()
        logits = discriminator(torch.cat([x, fake.detach()]), torch.cat([y, y]))
        ((1 - logits[: len(x)]).relu().mean() + (1 + logits[len(x) :]).relu().mean()).backward()
        discriminator_optimizer.step()
        decoder_optimizer.zero_grad()
        (-discriminator(fake, y).mean()).backward()
        decoder_optimizer.step()
    return decoder
