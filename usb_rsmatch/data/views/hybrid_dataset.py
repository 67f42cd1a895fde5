"""A pool as USB's data sets: the views of one image by USB's own transforms, with provenance as extra keys."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch
from PIL import Image
from semilearn.datasets.augmentation import RandAugment
from semilearn.datasets.cv_datasets.datasetbase import BasicDataset
from torch import Tensor
from torchvision import transforms

from usb_rsmatch.counter_rng import LABELED_VIEW, UNLABELED, seeded_globals
from usb_rsmatch.data.pool.image_set import ImageSet
from usb_rsmatch.data.pool.pool import HybridPool
from usb_rsmatch.data.pool.provenance import Provenance
from usb_rsmatch.data.sources.dataset_registry import DataSpec
from usb_rsmatch.data.views.batched import WEAK, BatchedImages
from usb_rsmatch.data.views.settings import LoaderSettings
from usb_rsmatch.errors import UserError


class PilViews:
    """USB's transforms for one data set: weak, medium, strong, and the plain one of evaluation."""

    def __init__(self, spec: DataSpec, size: int, crop_ratio: float) -> None:
        padding = int(size * (1 - crop_ratio))
        if padding >= size:
            raise UserError(
                f"crop_ratio {crop_ratio:g} pads by {padding} px, too much for images of {size} px: raise it"
            )
        crop = [transforms.RandomCrop(size, padding=padding, padding_mode="reflect")]
        flip = [transforms.RandomHorizontalFlip()] if spec.flip else []
        finish = [transforms.ToTensor(), transforms.Normalize(spec.mean, spec.std)]
        self.weak = transforms.Compose([*crop, *flip, *finish])
        self.medium = transforms.Compose([*crop, *flip, RandAugment(1, 5), *finish])
        self.strong = transforms.Compose([*crop, *flip, RandAugment(3, 5), *finish])
        self.plain = transforms.Compose(finish)


class HybridDataset(BasicDataset):
    """USB's data set over an `ImageSet`: the same views by algorithm name, keyed random numbers, provenance as extra
    keys.

    The key of an item is `(position, index)`, with random numbers that are a pure function of the position, or `index`
    alone, with random numbers from the global generators as in USB. Grey images are converted to RGB, because USB's
    RandAugment does not support mode L. The batch also contains `is_synthetic` (known to be so), `provenance` and
    `generator`; `process_batch` passes them only to a `train_step` that names them, and none does.
    """

    def __init__(
        self, images: ImageSet, spec: DataSpec, views: PilViews, name: str, seed: int, num_classes: int, kind: str
    ) -> None:
        train = kind != "eval"
        options: dict[str, Any] = {"transform": views.weak if train else views.plain, "is_ulb": kind == "ulb"}
        if train:
            options["strong_transform"] = views.strong
            if "medium_transform" in inspect.signature(BasicDataset.__init__).parameters:  # only in USB's HEAD
                options["medium_transform"] = views.medium
        super().__init__(name, images.images, images.labels, num_classes, **options)
        self.set, self.spec, self.views, self.seed, self.kind = images, spec, views, seed, kind
        self.batched: BatchedImages | None = None  # set by `rs_loader: batched`

    def __sample__(self, index: int) -> tuple[Image.Image, Any]:
        return self._rgb(index), int(self.targets[index])

    def _rgb(self, index: int) -> Image.Image:
        image = self.data[index]
        return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).convert("RGB")

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        if not isinstance(key, tuple):
            return self._item(int(key))
        position, index = key
        with seeded_globals(self.seed, position, UNLABELED[0] if self.kind == "ulb" else LABELED_VIEW):
            return self._item(index)

    def _item(self, index: int) -> dict[str, Any]:
        item = super().__getitem__(index)
        if self.kind == "ulb":
            if self.alg == "sequencematch" and "x_ulb_m" not in item:  # the wheel has no medium view
                item["x_ulb_m"] = self.views.medium(self._rgb(index))
            item["provenance"] = int(self.set.provenance[index])
            item["is_synthetic"] = item["provenance"] == Provenance.SYNTHETIC
            item["generator"] = int(self.set.generator[index])
        return item

    def weak_views(self, indices: np.ndarray | Tensor, positions: np.ndarray, view: int) -> Tensor:
        """Normalised weak views float32 [n, 3, H, W] of the images at `indices` int64 [n], drawn by `positions`."""
        if self.batched is not None:
            return self.batched.view(WEAK, self.batched.gather(indices), torch.from_numpy(positions), view)
        views = []
        for index, position in zip(indices.tolist(), positions.tolist(), strict=True):
            with seeded_globals(self.seed, position, view):
                views.append(self.views.weak(self._rgb(index)))
        return torch.stack(views) if views else torch.empty(0, 3, *self.data.shape[1:3])

    def plain_views(self, indices: np.ndarray) -> Tensor:
        """Normalised images float32 [n, 3, H, W], without augmentation."""
        if self.batched is not None:
            return self.batched.normalise(self.batched.gather(indices))
        return torch.stack([self.views.plain(self._rgb(index)) for index in indices.tolist()])


def build_datasets(pool: HybridPool, settings: LoaderSettings) -> dict[str, Any]:
    """USB's `dataset_dict` over a pool, with `validation` if there is one; the test set is `eval`, as in USB."""
    size = pool.unlabeled.images.shape[1]
    views = PilViews(pool.spec, size, settings.crop_ratio)
    name, seed, classes = settings.algorithm, settings.seed, len(pool.classes)

    def dataset(images: ImageSet, kind: str) -> HybridDataset:
        return HybridDataset(images, pool.spec, views, name, seed, classes, kind)

    datasets: dict[str, Any] = {
        "train_lb": dataset(pool.labeled, "lb"),
        "train_ulb": dataset(pool.unlabeled, "ulb"),
        "eval": dataset(pool.test, "eval"),
        "test": None,
    }
    if pool.validation is not None:
        datasets["validation"] = dataset(pool.validation, "eval")
    return datasets
