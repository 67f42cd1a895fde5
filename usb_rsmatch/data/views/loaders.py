"""The pool as USB's loaders: `pil` is USB's own path sample by sample, `batched` makes the views of whole batches."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from semilearn.datasets.augmentation import RandAugment
from semilearn.datasets.cv_datasets.datasetbase import BasicDataset
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torchvision import transforms

from usb_rsmatch.counter_rng import LABELED_VIEW, UNLABELED, Order, keyed_globals
from usb_rsmatch.data.pool.pool import HybridPool, ImageSet
from usb_rsmatch.data.sources.dataset_registry import DataSpec, is_known_dataset
from usb_rsmatch.data.views.batched import (
    WEAK,
    WHOLE,
    BatchedEvaluation,
    BatchedImages,
    BatchedTraining,
    Share,
    Steps,
    positions_of,
)
from usb_rsmatch.errors import UserError
from usb_rsmatch.keys import stands_on_a_base_rule


def describes_pool(args: Any) -> bool:
    """Whether the configuration asks for a pool of ours: `synthetic:` images, or a data set that we read."""
    return bool(getattr(args, "synthetic", None)) or is_known_dataset(getattr(args, "dataset", ""))


def view_name(args: Any) -> str:
    """The algorithm by whose name USB chooses the views; RSMatch wants those of its base rule."""
    return getattr(args, "rs_base", "fixmatch") if stands_on_a_base_rule(args.algorithm) else args.algorithm


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
    """USB's data set over an `ImageSet`: same views by algorithm name, keyed draws, provenance as extra keys.

    An item is asked for by `(position, index)`, whose draws are a pure function of the position, or by `index` alone,
    with draws from the global generators as in USB. Grey images are viewed as RGB, because USB's RandAugment cannot
    take mode L. `is_synthetic` and `generator` travel in the batch; `process_batch` keeps them from every `train_step`
    that does not name them, and none does.
    """

    def __init__(
        self, images: ImageSet, spec: DataSpec, views: PilViews, name: str, seed: int, num_classes: int, kind: str
    ) -> None:
        train = kind != "eval"
        options: dict[str, Any] = {"transform": views.weak if train else views.plain, "is_ulb": kind == "ulb"}
        if train:
            options["strong_transform"] = views.strong
            if "medium_transform" in inspect.signature(BasicDataset.__init__).parameters:  # USB's head only
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
        with keyed_globals(self.seed, position, UNLABELED[0] if self.kind == "ulb" else LABELED_VIEW):
            return self._item(index)

    def _item(self, index: int) -> dict[str, Any]:
        item = super().__getitem__(index)
        if self.kind == "ulb":
            if self.alg == "sequencematch" and "x_ulb_m" not in item:  # the wheel knows no medium view
                item["x_ulb_m"] = self.views.medium(self._rgb(index))
            item["is_synthetic"] = bool(self.set.is_synthetic[index])
            item["generator"] = int(self.set.generator[index])
        return item

    def weak_views(self, indices: np.ndarray | Tensor, positions: np.ndarray, view: int) -> Tensor:
        """Normalised weak views float32 [n, 3, H, W] of the images at `indices` int64 [n], drawn by `positions`."""
        if self.batched is not None:
            return self.batched.view(WEAK, self.batched.gather(indices), torch.from_numpy(positions), view)
        views = []
        for index, position in zip(indices.tolist(), positions.tolist(), strict=True):
            with keyed_globals(self.seed, position, view):
                views.append(self.views.weak(self._rgb(index)))
        return torch.stack(views) if views else torch.empty(0, 3, *self.data.shape[1:3])

    def plain_views(self, indices: np.ndarray) -> Tensor:
        """Normalised images float32 [n, 3, H, W], without augmentation."""
        if self.batched is not None:
            return self.batched.normalise(self.batched.gather(indices))
        return torch.stack([self.views.plain(self._rgb(index)) for index in indices.tolist()])


def own_session(worker: int) -> None:
    """A worker process apart from its parent's group: Ctrl-C is for the run alone, which ends its workers itself."""
    if hasattr(os, "setsid"):
        os.setsid()


class KeyedSampler(Sampler[tuple[int, int]]):
    """`(position, index)` for each sample of the steps that are left of an epoch.

    Of several processes each has its `share` (rank, number of processes): every so-many-th position of a batch.
    """

    def __init__(self, order: Order, batch_size: int, steps: Steps, per_epoch: int, share: Share = WHOLE) -> None:
        self.order, self.batch_size, self.steps, self.per_epoch = order, batch_size, steps, per_epoch
        self.share = share

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for step in self.steps():
            positions = positions_of(step, self.batch_size, self.share)
            yield from zip(positions.tolist(), self.order.index(positions).tolist(), strict=True)

    def __len__(self) -> int:
        return self.per_epoch * self.batch_size // self.share[1]


def build_datasets(pool: HybridPool, args: Any) -> dict[str, Any]:
    """USB's `dataset_dict` over a pool, and `validation` where one was cut; the test set is `eval`, as in USB."""
    size = pool.unlabeled.images.shape[1]
    views = PilViews(pool.spec, size, getattr(args, "crop_ratio", 0.875))
    name, classes = view_name(args), len(pool.classes)
    seed = int(getattr(args, "seed", 0))

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


def share_of(args: Any) -> Share:
    """Which part of every batch this process has."""
    return getattr(args, "rank", 0), max(getattr(args, "world_size", 1), 1)


def build_batched_loaders(datasets: dict[str, Any], args: Any, steps: Steps, device: torch.device) -> dict[str, Any]:
    """The loaders of `rs_loader: batched`; the data sets then view whole batches too."""
    crop_ratio = getattr(args, "crop_ratio", 0.875)
    for dataset in datasets.values():
        if dataset is not None and dataset.batched is None:
            dataset.batched = BatchedImages(dataset.set, dataset.spec, dataset.seed, crop_ratio, device)
    per_epoch, share = args.num_train_iter // args.epoch, share_of(args)
    loaders: dict[str, Any] = {}
    for kind, size in (("lb", args.batch_size), ("ulb", args.batch_size * args.uratio)):
        images = datasets[f"train_{kind}"].batched
        loaders[f"train_{kind}"] = BatchedTraining(images, view_name(args), kind, size, steps, per_epoch, share)
    for name in ("eval", "validation", "test"):
        if datasets.get(name) is not None:
            loaders[name] = BatchedEvaluation(datasets[name].batched, args.eval_batch_size)
    return loaders


def build_loaders(datasets: dict[str, Any], args: Any, steps: Steps, device: torch.device) -> dict[str, Any]:
    """Loaders by name; the training ones give the batches of `steps()`, the others all images in order."""
    if getattr(args, "rs_loader", "pil") == "batched":
        return build_batched_loaders(datasets, args, steps, device)
    workers = int(args.num_workers)
    per_epoch, share = args.num_train_iter // args.epoch, share_of(args)
    pin = device.type == "cuda"

    def training(dataset: HybridDataset, stream: str, batch_size: int, workers: int) -> DataLoader[Any]:
        order = Order(dataset.seed, stream, len(dataset))
        return DataLoader(
            dataset,
            batch_size=batch_size // share[1],
            sampler=KeyedSampler(order, batch_size, steps, per_epoch, share),
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=own_session,
            pin_memory=pin,
            generator=torch.Generator(),  # its own, so that starting an epoch draws nothing from the global one
        )

    loaders: dict[str, Any] = {
        "train_lb": training(datasets["train_lb"], "labeled", args.batch_size, workers),
        "train_ulb": training(datasets["train_ulb"], "unlabeled", args.batch_size * args.uratio, 2 * workers),
    }
    for name in ("eval", "validation", "test"):
        if datasets.get(name) is not None:
            loaders[name] = DataLoader(
                datasets[name],
                batch_size=args.eval_batch_size,
                num_workers=0 if isinstance(datasets[name].set.images, np.ndarray) else workers,  # read from files
                pin_memory=pin,
                generator=torch.Generator(),
            )
    return loaders
