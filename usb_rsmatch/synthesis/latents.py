"""Between images and the latents in which a latent flow works: enlarge and encode, decode and reduce."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from usb_rsmatch.autoencoder import FACTOR, Autoencoder
from usb_rsmatch.errors import UserError

SMALLEST_SIDE = 64  # px; smaller images are enlarged, because 8 latents a side keep their details
BATCH = 256


@dataclass(frozen=True)
class LatentSpace:
    """Latents of an autoencoder that works at `side` px, for images of another size or grey ones as well."""

    autoencoder: Autoencoder
    side: int

    @classmethod
    def of(cls, autoencoder: Autoencoder, image_size: int) -> LatentSpace:
        """The space for images of `image_size` px, which are enlarged to at least 64 px and a multiple of 8."""
        return cls(autoencoder, max(SMALLEST_SIDE, -(-image_size // FACTOR) * FACTOR))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a latent."""
        return self.autoencoder.channels, self.side // FACTOR, self.side // FACTOR

    @property
    def identity(self) -> str:
        """A text for everything that determines the latents of an image."""
        return f"{self.autoencoder.fingerprint} {self.side}"

    def encode(self, images: np.ndarray, device: torch.device) -> Tensor:
        """Latents float16 [N, C, h, w] on the CPU of images uint8 [N, H, W, 1 or 3]. Raises UserError if not finite."""
        parts = []
        for first in range(0, len(images), BATCH):
            pixels = torch.from_numpy(images[first : first + BATCH].transpose(0, 3, 1, 2).copy()).to(device) / 255
            latents = self.autoencoder.encode(self._fit(pixels.expand(-1, 3, -1, -1), self.side))
            parts.append(latents.half().cpu())
        found = torch.cat(parts)
        if not torch.isfinite(found).all():
            raise UserError(f"--autoencoder {self.autoencoder.name}: its latents are not finite; give another one")
        return found

    def decode(self, latents: Tensor, size: int, channels: int) -> Tensor:
        """Images float [N, channels, size, size] in [0, 255] of latents [N, C, h, w]."""
        images = self._fit(self.autoencoder.decode(latents), size).clamp(0, 1) * 255
        return images.mean(dim=1, keepdim=True) if channels == 1 else images

    @staticmethod
    def _fit(images: Tensor, side: int) -> Tensor:
        if images.shape[-1] == side:
            return images
        return F.interpolate(images, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
