"""`rs_loader: batched`: views of whole batches, from images that stay uint8 in memory, on disk or on the GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from usb_rsmatch.counter_rng import LABELED_STRONG_VIEW, LABELED_VIEW, QUARTER_TURN, UNLABELED, Order, uniforms
from usb_rsmatch.data.pool.image_set import ImageSet
from usb_rsmatch.data.pool.provenance import Provenance
from usb_rsmatch.data.sources.dataset_registry import DataSpec
from usb_rsmatch.data.views import augment

Steps = Callable[[], range]
Share = tuple[int, int]  # of several processes: this one's rank, and how many there are
WHOLE: Share = (0, 1)

# The views that USB's data set makes for each algorithm, by name (datasets/cv_datasets/datasetbase.py:96-116); the rest
# take DEFAULT.
WEAK, MEDIUM, STRONG = augment.weak, augment.medium, augment.strong
DEFAULT = {"x_ulb_w": WEAK, "x_ulb_s": STRONG}
UNLABELED_VIEWS: Mapping[str, Mapping[str, Callable[..., Tensor]]] = {
    "supervised": {},
    "fullysupervised": {},
    "pseudolabel": {"x_ulb_w": WEAK},
    "vat": {"x_ulb_w": WEAK},
    "pimodel": {"x_ulb_w": WEAK, "x_ulb_s": WEAK},
    "meanteacher": {"x_ulb_w": WEAK, "x_ulb_s": WEAK},
    "mixmatch": {"x_ulb_w": WEAK, "x_ulb_s": WEAK},
    "sequencematch": {"x_ulb_w": WEAK, "x_ulb_m": MEDIUM, "x_ulb_s": STRONG},
    "comatch": {"x_ulb_w": WEAK, "x_ulb_s_0": STRONG, "x_ulb_s_1": STRONG},
    "remixmatch": {"x_ulb_w": WEAK, "x_ulb_s_0": STRONG, "x_ulb_s_1": STRONG},
}


class BatchedImages:
    """An `ImageSet` whose batches are gathered and augmented as tensors on one device."""

    def __init__(self, images: ImageSet, spec: DataSpec, seed: int, crop_ratio: float, device: torch.device) -> None:
        self.set, self.spec, self.seed, self.device = images, spec, seed, device
        size = images.images.shape[1]
        self.view_spec = augment.ViewSpec(padding=int(size * (1 - crop_ratio)), flip=spec.flip)
        self.labels = torch.from_numpy(np.asarray(images.labels, dtype=np.int64))
        self.provenance = torch.from_numpy(np.asarray(images.provenance, dtype=np.int64))
        self.generator = torch.from_numpy(np.asarray(images.generator))
        # A pool in memory is kept channels first on the device; a lazy pool is read batch by batch.
        held = isinstance(images.images, np.ndarray) and not isinstance(images.images, np.memmap)
        self.resident = self._channels_first(images.images[:]).contiguous().to(device) if held else None

    def __len__(self) -> int:
        return len(self.set.images)

    @staticmethod
    def _channels_first(images: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)

    def gather(self, indices: np.ndarray | Tensor) -> Tensor:
        """uint8 [n, C, H, W] on the device, without waiting for the device, unless the pool is on disk."""
        if self.resident is not None:
            return self.resident.index_select(0, torch.as_tensor(indices).to(self.device, non_blocking=True))
        on_host = indices.cpu().numpy() if isinstance(indices, Tensor) else indices
        images = self._channels_first(self.set.images[on_host])
        if self.device.type == "cuda":  # a copy from pageable memory would block
            images = images.contiguous().pin_memory()
        return images.to(self.device, non_blocking=True)

    def view(self, kind: Callable[..., Tensor], images: Tensor, positions: Tensor, view: int) -> Tensor:
        """Normalised float32 [n, 3, H, W] views of gathered images."""
        return self.normalise(kind(images, self.seed, positions, view, self.view_spec))

    def normalise(self, images: Tensor) -> Tensor:
        return augment.normalise(images, self.spec.mean, self.spec.std)

    def labeled_batch(self, name: str, positions: np.ndarray, indices: np.ndarray) -> dict[str, Tensor]:
        """USB's labelled batch: `idx_lb`, `x_lb`, `y_lb`, and `x_lb_s` for DeFixMatch."""
        images, at = self.gather(indices), torch.from_numpy(positions)
        index = torch.from_numpy(indices)
        batch = {"idx_lb": index, "x_lb": self.view(WEAK, images, at, LABELED_VIEW), "y_lb": self.labels[index]}
        if name == "defixmatch":
            batch["x_lb_s"] = self.view(STRONG, images, at, LABELED_STRONG_VIEW)
        return batch

    def unlabeled_batch(self, name: str, positions: np.ndarray, indices: np.ndarray) -> dict[str, Tensor]:
        """USB's unlabelled batch for the algorithm `name`, with `is_synthetic`, `provenance` and `generator`."""
        index, at = torch.from_numpy(indices), torch.from_numpy(positions)
        batch = {
            "idx_ulb": index,
            "provenance": self.provenance[index],
            "is_synthetic": self.provenance[index] == Provenance.SYNTHETIC,
            "generator": self.generator[index].long(),
        }
        views = UNLABELED_VIEWS.get(name, DEFAULT)
        if not views:
            return batch
        images = self.gather(indices)
        for number, (key, kind) in zip(UNLABELED, views.items(), strict=False):
            batch[key] = self.view(kind, images, at, number)
        if name == "remixmatch":
            quarter = (uniforms(self.seed, at, QUARTER_TURN, 1)[:, 0] * 4).long()
            batch["rot_v"] = quarter
            batch["x_ulb_s_0_rot"] = rotate(batch["x_ulb_s_0"], quarter)
        return batch


def rotate(images: Tensor, quarter: Tensor) -> Tensor:
    """Each of the square images [B, C, S, S] turned counter-clockwise by its number of quarters, int64 [B]."""
    quarter = quarter.to(images.device)[:, None, None, None]
    turned = images
    for turns in (1, 2, 3):
        turned = torch.where(quarter == turns, images.rot90(turns, (2, 3)), turned)
    return turned


def positions_of(step: int, batch_size: int, share: Share = WHOLE) -> np.ndarray:
    """Positions int64 of a step's batch; with several processes, the part of `share` (rank, processes)."""
    rank, size = share
    return np.arange(step * batch_size + rank, (step + 1) * batch_size, size)


class BatchedTraining:
    """A training loader: the batches of an epoch's remaining steps, or a process's share of each."""

    def __init__(
        self,
        images: BatchedImages,
        name: str,
        kind: str,
        batch_size: int,
        steps: Steps,
        per_epoch: int,
        share: Share = WHOLE,
    ) -> None:
        self.images, self.name, self.kind, self.share = images, name, kind, share
        self.batch_size, self.steps, self.per_epoch = batch_size, steps, per_epoch
        self.order = Order(images.seed, "labeled" if kind == "lb" else "unlabeled", len(images))

    def __len__(self) -> int:
        return self.per_epoch

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        make = self.images.labeled_batch if self.kind == "lb" else self.images.unlabeled_batch
        for step in self.steps():
            positions = positions_of(step, self.batch_size, self.share)
            yield make(self.name, positions, self.order.index(positions))


class BatchedEvaluation:
    """An evaluation loader: all images in order, without augmentation."""

    def __init__(self, images: BatchedImages, batch_size: int) -> None:
        self.images, self.batch_size = images, batch_size

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for start in range(0, len(self.images), self.batch_size):
            indices = np.arange(start, min(start + self.batch_size, len(self.images)))
            index = torch.from_numpy(indices)
            images = self.images.normalise(self.images.gather(indices))
            yield {"idx_lb": index, "x_lb": images, "y_lb": self.images.labels[index]}
