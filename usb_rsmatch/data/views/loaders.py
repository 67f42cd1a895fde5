"""USB's loaders over a pool: `pil` views one image at a time, as USB does; `batched` views whole batches."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from usb_rsmatch.counter_rng import Order
from usb_rsmatch.data.views.batched import (
    WHOLE,
    BatchedEvaluation,
    BatchedImages,
    BatchedTraining,
    Share,
    Steps,
    positions_of,
)
from usb_rsmatch.data.views.hybrid_dataset import HybridDataset
from usb_rsmatch.data.views.settings import LoaderSettings


def start_own_session(worker: int) -> None:
    """Give a worker process a session of its own: Ctrl-C then reaches the run alone, which ends its workers."""
    if hasattr(os, "setsid"):
        os.setsid()


class KeyedSampler(Sampler[tuple[int, int]]):
    """`(position, index)` for each sample of an epoch's remaining steps.

    With several processes, each has its `share` (rank, number of processes): every R-th position of a batch.
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


def build_batched_loaders(
    datasets: dict[str, Any], settings: LoaderSettings, steps: Steps, device: torch.device
) -> dict[str, Any]:
    """The loaders of `rs_loader: batched`; the data sets then view whole batches too."""
    for dataset in datasets.values():
        if dataset is not None and dataset.batched is None:
            dataset.batched = BatchedImages(dataset.set, dataset.spec, dataset.seed, settings.crop_ratio, device)
    loaders: dict[str, Any] = {}
    for kind in ("lb", "ulb"):
        images, size = datasets[f"train_{kind}"].batched, settings.images_per_step(kind)
        loaders[f"train_{kind}"] = BatchedTraining(
            images, settings.algorithm, kind, size, steps, settings.steps_per_epoch, settings.share
        )
    for name in ("eval", "validation", "test"):
        if datasets.get(name) is not None:
            loaders[name] = BatchedEvaluation(datasets[name].batched, settings.eval_batch_size)
    return loaders


def build_loaders(
    datasets: dict[str, Any], settings: LoaderSettings, steps: Steps, device: torch.device
) -> dict[str, Any]:
    """Loaders by name; the training ones load the batches of `steps()`, the others all images in order."""
    if settings.batched:
        return build_batched_loaders(datasets, settings, steps, device)
    workers, share = settings.num_workers, settings.share
    pin = device.type == "cuda"

    def training(dataset: HybridDataset, stream: str, batch_size: int, workers: int) -> DataLoader[Any]:
        order = Order(dataset.seed, stream, len(dataset))
        return DataLoader(
            dataset,
            batch_size=batch_size // share[1],
            sampler=KeyedSampler(order, batch_size, steps, settings.steps_per_epoch, share),
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=start_own_session,
            pin_memory=pin,
            generator=torch.Generator(),  # its own, so that the start of an epoch does not use the global one
        )

    loaders: dict[str, Any] = {
        "train_lb": training(datasets["train_lb"], "labeled", settings.images_per_step("lb"), workers),
        "train_ulb": training(datasets["train_ulb"], "unlabeled", settings.images_per_step("ulb"), 2 * workers),
    }
    for name in ("eval", "validation", "test"):
        if datasets.get(name) is not None:
            loaders[name] = DataLoader(
                datasets[name],
                batch_size=settings.eval_batch_size,
                num_workers=0 if isinstance(datasets[name].set.images, np.ndarray) else workers,  # read from files
                pin_memory=pin,
                generator=torch.Generator(),
            )
    return loaders
