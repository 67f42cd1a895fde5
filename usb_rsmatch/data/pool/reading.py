"""Reads what a pool selected of its sources: labelled, unlabelled, validation and test images, and a report on each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from usb_rsmatch.data.pool.image_names import ImageNames
from usb_rsmatch.data.pool.image_set import REAL, ImageSet, concatenate, real_images
from usb_rsmatch.data.pool.pack import packed
from usb_rsmatch.data.pool.preprocessing import Pipeline
from usb_rsmatch.data.pool.settings import PoolConfig
from usb_rsmatch.data.pool.split import Split
from usb_rsmatch.data.pool.synthetic_selection import Selection, SyntheticSelection
from usb_rsmatch.data.sources.dataset_registry import RealData
from usb_rsmatch.data.sources.source import JoinedSource, Source


@dataclass(frozen=True)
class RealImages:
    """The real images of a pool. `unlabeled` begins with the labelled ones where they are part of the pool."""

    labeled: ImageSet
    unlabeled: ImageSet
    validation: ImageSet | None
    test: ImageSet
    report: Mapping[str, Any]


def read_real(config: PoolConfig, data: RealData, split: Split, pack: bool = False) -> RealImages:
    """Read the real images; with `pack` images in files are first packed into an array in the user's cache."""
    pipeline = Pipeline.of(config, data.spec)
    train, test = (packed(part, pipeline, pack) for part in (data.train, data.test))
    source = train if data.unlabeled is None else JoinedSource(train, packed(data.unlabeled, pipeline, pack))
    labeled = _real(pipeline, source, split.labeled, True)
    unlabeled = _real(pipeline, source, split.rest, False)
    if config.include_lb_to_ulb:
        unlabeled = concatenate([labeled, unlabeled])
    parts = [data.train, data.test, *([] if data.unlabeled is None else [data.unlabeled])]
    return RealImages(
        labeled=labeled,
        unlabeled=unlabeled,
        validation=_real(pipeline, source, split.validation, False) if config.validation_count else None,
        test=_real(pipeline, test, np.arange(len(test)), False),
        report={
            "source": config.dataset,
            "provenance": "real",
            "available": len(source),
            "taken": len(unlabeled),
            "by_class": unlabeled.by_class(data.classes),
            "by_generator": {},
            "skipped": {path: reason for part in parts for path, reason in part.skipped.items()},
        },
    )


def read_test(config: PoolConfig, data: RealData) -> ImageSet:
    """The test set alone, as `read_real` reads it."""
    pipeline = Pipeline.of(config, data.spec)
    return _real(pipeline, packed(data.test, pipeline), np.arange(len(data.test)), False)


def read_synthetic(
    config: PoolConfig, data: RealData, selected: SyntheticSelection, pack: bool = False
) -> tuple[ImageSet | None, list[dict[str, Any]]]:
    """The selected synthetic images in their order, None for no source, and a report on each source."""
    pipeline = Pipeline.of(config, data.spec)
    parts = [_synthetic(pipeline, part, pack) for part in selected.parts]
    reports = [_report(part, images, data.classes) for part, images in zip(selected.parts, parts, strict=True)]
    return (concatenate(parts).take(selected.place) if parts else None), reports


def _real(pipeline: Pipeline, source: Source, rows: np.ndarray, is_labeled: bool) -> ImageSet:
    images, digests = pipeline.take(source, rows)
    return real_images(images, source.labels[rows], is_labeled, digests, ImageNames.of(source, rows))


def _synthetic(pipeline: Pipeline, part: Selection, pack: bool) -> ImageSet:
    source, rows = packed(part.source, pipeline, pack), part.rows
    images, digests = pipeline.take(source, rows)
    flags = np.ones(len(rows), dtype=np.bool_)
    return ImageSet(
        images=images,
        labels=source.labels[rows],
        is_synthetic=flags,
        generator=(source.generator[rows] + 1).astype(np.int16),
        generators=(REAL, *source.generators),
        is_labeled=~flags,
        digests=digests,
        names=ImageNames.of(source, rows),
    )


def _report(part: Selection, images: ImageSet, classes: Sequence[str]) -> dict[str, Any]:
    return {
        "source": part.entry["source"],
        "provenance": "synthetic",
        "available": len(part.source),
        "taken": len(images),
        "by_class": images.by_class(classes),
        "by_generator": images.by_generator(),
        "skipped": part.source.skipped,
    }
