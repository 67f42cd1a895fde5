"""The real share of a pool: opens the data set, splits it and reads what the pool takes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from usb_rsmatch.data.pool.image_set import ImageSet, concatenate
from usb_rsmatch.data.pool.pack import packed
from usb_rsmatch.data.pool.preprocessing import Pipeline
from usb_rsmatch.data.pool.settings import PoolConfig
from usb_rsmatch.data.pool.split import Split, class_counts, split_training
from usb_rsmatch.data.sources.dataset_registry import RealData, open_real
from usb_rsmatch.data.sources.source import JoinedSource
from usb_rsmatch.errors import UserError


@dataclass(frozen=True)
class RealShare:
    """The real images of a pool.

    `unlabeled` begins with the labelled images where they are included, `report` goes into the manifest. `held_out` are
    the training images of the validation set, `taken` those of all parts.
    """

    data: RealData
    pipeline: Pipeline
    labeled: ImageSet
    unlabeled: ImageSet
    validation: ImageSet | None
    test: ImageSet
    report: Mapping[str, Any]
    held_out: np.ndarray
    taken: np.ndarray

    def training_images(self) -> tuple[np.ndarray, np.ndarray]:
        """All training images with a class but validation's, uint8 [N, H, W, C] at the pool's size, and labels.

        They are what a generator learns from; what it makes of them takes the pool's own pipeline afterwards.
        """
        return self._all_but(self.held_out)

    def spare_images(self) -> tuple[np.ndarray, np.ndarray]:
        """Those of the training images that are in no part of the pool, and their labels."""
        return self._all_but(self.taken)

    def _all_but(self, without: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        train = self.data.train
        rows = np.setdiff1d(np.flatnonzero(train.labels >= 0), without)
        return train.load(rows, self.pipeline.size, self.pipeline.channels), train.labels[rows]


def read_real(config: PoolConfig, pack: bool = False) -> RealShare:
    """The real share that the configuration describes; with `pack` its files are packed first.

    Raises UserError for missing or damaged files, another number of classes, and too few images.
    """
    data = _opened(config)
    pipeline = _pipeline(data, config)
    train, test, further = (packed(part, pipeline, pack) for part in (data.train, data.test, data.unlabeled))
    source = train if further is None else JoinedSource(train, further)
    split = _split(data, source.labels, config)
    labeled = pipeline.real(source, split.labeled, True)
    unlabeled = pipeline.real(source, split.rest, False)
    if config.include_lb_to_ulb:
        unlabeled = concatenate([labeled, unlabeled])
    parts = [data.train, data.test, *([] if data.unlabeled is None else [data.unlabeled])]
    return RealShare(
        data=data,
        pipeline=pipeline,
        labeled=labeled,
        unlabeled=unlabeled,
        validation=pipeline.real(source, split.validation, False) if config.validation_count else None,
        test=pipeline.real(test, np.arange(len(test)), False),
        report={
            "source": config.dataset,
            "provenance": "real",
            "available": len(source),
            "taken": len(unlabeled),
            "by_class": unlabeled.by_class(data.classes),
            "by_generator": {},
            "skipped": {path: reason for part in parts for path, reason in part.skipped.items()},
        },
        held_out=split.validation,
        taken=np.concatenate([split.labeled, split.rest, split.validation]),
    )


def read_test(config: PoolConfig) -> ImageSet:
    """The test set alone, as `read_real` has it. Raises UserError for missing or damaged files."""
    data = _opened(config)
    pipeline = _pipeline(data, config)
    return pipeline.real(packed(data.test, pipeline, False), np.arange(len(data.test)), False)


def _pipeline(data: RealData, config: PoolConfig) -> Pipeline:
    size = config.img_size or data.spec.img_size
    return Pipeline(size, data.spec.channels, config.reencode, config.clear_below)


def _opened(config: PoolConfig) -> RealData:
    """The data set, its number of classes checked, less unreadable images where they are to be skipped."""
    data = open_real(config.dataset, config.data_dir)
    n = len(data.classes)
    if config.num_classes is not None and config.num_classes != n:
        raise UserError(f"num_classes: {config.num_classes} is given, {config.dataset} has {n}; set that")
    if config.on_error == "raise":
        return data
    return replace(
        data,
        train=data.train.without_unreadable(),
        test=data.test.without_unreadable(),
        unlabeled=None if data.unlabeled is None else data.unlabeled.without_unreadable(),
    )


def _split(data: RealData, labels: np.ndarray, config: PoolConfig) -> Split:
    """The split, its further unlabelled images cut to `real_count`."""
    counts, further = _class_counts(data, config)
    split = split_training(
        labels, len(data.classes), config.dataset, config.seed, counts, further, config.validation_count
    )
    if config.real_count is None:
        return split
    already = len(split.labeled) if config.include_lb_to_ulb else 0
    if not already <= config.real_count <= already + len(split.rest):
        raise UserError(
            f"real_count: {config.real_count} must lie between the {already} labelled images that are part "
            f"of the pool and the {already + len(split.rest)} real ones that there are"
        )
    return replace(split, rest=split.rest[: config.real_count - already])


def _class_counts(data: RealData, config: PoolConfig) -> tuple[list[int], list[int] | None]:
    """Labelled and further unlabelled images a class; None for all that are left."""
    n = len(data.classes)
    if data.proportional or data.all_labeled:
        sizes = np.bincount(data.train.labels, minlength=n)
        if data.all_labeled:
            return sizes.tolist(), None
        return [int(size) for size in sizes * config.num_labels // len(data.train)], None
    labeled = class_counts("num_labels", config.num_labels, n, config.lb_imb_ratio)
    if config.ulb_num_labels is not None:
        return labeled, class_counts("ulb_num_labels", config.ulb_num_labels, n, config.ulb_imb_ratio)
    if config.ulb_imb_ratio != 1:
        raise UserError("ulb_imb_ratio needs ulb_num_labels, the unlabelled images of the largest class")
    return labeled, None
