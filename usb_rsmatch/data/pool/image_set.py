"""A set of uint8 images of one size, each with its class, provenance and generator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from usb_rsmatch.data.images.hashes import image_digests
from usb_rsmatch.data.images.lazy_images import Images, join, take
from usb_rsmatch.data.pool.image_names import ImageNames
from usb_rsmatch.data.pool.provenance import Provenance

REAL = Provenance.REAL.word


@dataclass(frozen=True)
class ImageSet:
    """N images of one size; row i of every column describes image i.

    `images` is uint8 [N, H, W, C] with C 1 or 3: an array, or a lazy one that reads images when they are needed.
    `labels` is int64 [N] with -1 for unknown, `provenance` int8 [N] of `Provenance`, `generator` int16 [N] into
    `generators` (0 is "real"; images of unknown provenance have the entry "unknown"). `is_labeled` bool [N] marks
    images that are also in the labelled set; detection metrics leave them out. `digests` uint64 [N, 2] are equal for
    equal images (computed from the pixels where not given), `names` identify the images in messages.

    Raises ValueError where shapes or dtypes differ from these.
    """

    images: Images
    labels: np.ndarray
    provenance: np.ndarray
    generator: np.ndarray
    generators: tuple[str, ...]
    is_labeled: np.ndarray
    digests: np.ndarray | None = None
    names: ImageNames | None = None

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != np.uint8 or self.images.shape[-1] not in (1, 3):
            raise ValueError(f"images must be uint8 [N, H, W, 1 or 3], got {self.images.dtype} {self.images.shape}")
        wanted = {"labels": np.int64, "provenance": np.int8, "generator": np.int16, "is_labeled": np.bool_}
        for name, dtype in wanted.items():
            column = getattr(self, name)
            if column.shape != self.images.shape[:1] or column.dtype != dtype:
                raise ValueError(f"{name} must be {np.dtype(dtype)} [{len(self)}], got {column.dtype} {column.shape}")
        if self.generators[:1] != (REAL,):
            raise ValueError(f'generators must start with "{REAL}", got {self.generators}')

    def __len__(self) -> int:
        return int(self.images.shape[0])

    @property
    def is_real(self) -> np.ndarray:
        """bool [N]: known to be real."""
        return self.provenance == Provenance.REAL

    @property
    def is_synthetic(self) -> np.ndarray:
        """bool [N]: known to be synthetic."""
        return self.provenance == Provenance.SYNTHETIC

    @property
    def is_unknown(self) -> np.ndarray:
        """bool [N]: of unknown provenance, in no metric that needs it."""
        return self.provenance == Provenance.UNKNOWN

    def take(self, indices: np.ndarray) -> ImageSet:
        """The rows at `indices` (int64 or bool), in their order."""
        return replace(
            self,
            images=take(self.images, indices),
            labels=self.labels[indices],
            provenance=self.provenance[indices],
            generator=self.generator[indices],
            is_labeled=self.is_labeled[indices],
            digests=None if self.digests is None else self.digests[indices],
            names=None if self.names is None else self.names.take(indices),
        )

    def hashed(self) -> np.ndarray:
        """The digests uint64 [N, 2], computed from the pixels where they are not known."""
        return image_digests(self.images[:]) if self.digests is None else self.digests

    def by_generator(self) -> dict[str, int]:
        """Number of synthetic images of each generator, without generators that have none."""
        counts = np.bincount(self.generator[self.is_synthetic], minlength=len(self.generators))
        return {name: int(n) for name, n in zip(self.generators, counts, strict=True) if n}

    def by_class(self, classes: Sequence[str]) -> dict[str, int]:
        """Number of images of each class, and of class "unknown" if there are any."""
        counts = np.bincount(self.labels + 1, minlength=len(classes) + 1)
        named = {name: int(n) for name, n in zip(classes, counts[1:], strict=True)}
        return named if counts[0] == 0 else {**named, "unknown": int(counts[0])}


def real_images(
    images: Images,
    labels: np.ndarray,
    is_labeled: bool | np.ndarray,
    digests: np.ndarray | None = None,
    names: ImageNames | None = None,
) -> ImageSet:
    """An ImageSet of real images [N, H, W, C] with labels [N]; `is_labeled` is one flag for all, or bool [N]."""
    n = len(images)
    return ImageSet(
        images=images,
        labels=np.asarray(labels, dtype=np.int64),
        provenance=np.full(n, Provenance.REAL, dtype=np.int8),
        generator=np.zeros(n, dtype=np.int16),
        generators=(REAL,),
        is_labeled=np.broadcast_to(np.asarray(is_labeled, dtype=np.bool_), (n,)).copy(),
        digests=digests,
        names=names,
    )


def concatenate(parts: Sequence[ImageSet]) -> ImageSet:
    """The image sets concatenated in their order, with one common list of generators.

    Raises ValueError where their images differ in size or channels.
    """
    generators = tuple(dict.fromkeys(name for part in parts for name in part.generators))
    numbers = [np.array([generators.index(name) for name in part.generators], np.int16) for part in parts]
    digests = [part.digests for part in parts if part.digests is not None]
    names = [part.names for part in parts if part.names is not None]
    return ImageSet(
        images=join([part.images for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        provenance=np.concatenate([part.provenance for part in parts]),
        generator=np.concatenate([own[part.generator] for own, part in zip(numbers, parts, strict=True)]),
        generators=generators,
        is_labeled=np.concatenate([part.is_labeled for part in parts]),
        digests=np.concatenate(digests) if len(digests) == len(parts) else None,
        names=ImageNames.join(names) if len(names) == len(parts) else None,
    )
