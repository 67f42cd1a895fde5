"""The synthetic share of a pool: opens the sources of the configuration and draws from them in proportion."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from usb_rsmatch.data.pool.balanced_order import draw_order, interleave
from usb_rsmatch.data.pool.image_names import ImageNames
from usb_rsmatch.data.pool.image_set import REAL, ImageSet, concatenate
from usb_rsmatch.data.pool.pack import packed
from usb_rsmatch.data.pool.real_part import RealShare
from usb_rsmatch.data.pool.settings import PoolConfig
from usb_rsmatch.data.sources.class_names import ClassIndex
from usb_rsmatch.data.sources.registry import SourceRequest, open_source
from usb_rsmatch.data.sources.source import Source
from usb_rsmatch.errors import UserError

_ENTRY_KEYS = ("source", "generator", "count", "mapping")


@dataclass(frozen=True)
class Drawn:
    """Drawn synthetic images, and a report on each source."""

    images: ImageSet
    reports: tuple[Mapping[str, Any], ...]


def draw_synthetic(config: PoolConfig, real: RealShare, pack: bool = False) -> Drawn:
    """Draw as many synthetic images as the configuration wants, through the same pipeline as the real ones.

    Smaller draws are prefixes of larger ones. Every prefix holds the sources in proportion to their counts,
    and each source its generators in proportion and its classes balanced. Raises UserError where there are
    too few.
    """
    wanted = config.synthetic_wanted(len(real.unlabeled))
    entries = config.synthetic if wanted != 0 else []
    sources = [packed(_open(config, entry, wanted, real), real.pipeline, pack) for entry in entries]
    orders = [_order(source, entry, config.seed) for source, entry in zip(sources, entries, strict=True)]
    available = sum(map(len, orders))
    if wanted is not None and wanted > available:
        raise UserError(
            f"{wanted} synthetic images are asked for, the sources have {available}; "
            "lower synthetic_count or synthetic_ratio, or add a source"
        )
    turns = interleave([len(order) for order in orders])[:wanted]
    chosen = [order[: int((turns == number).sum())] for number, order in enumerate(orders)]
    parts = [_read(real, source, rows) for source, rows in zip(sources, chosen, strict=True)]
    place = np.empty(len(turns), dtype=np.int64)
    place[np.argsort(turns, kind="stable")] = np.arange(
        len(turns)
    )  # from one source after the other to turns
    return Drawn(
        concatenate([real.unlabeled.take(np.arange(0)), *parts]).take(place),
        tuple(
            _report(entry, source, part, real.data.classes)
            for entry, source, part in zip(entries, sources, parts, strict=True)
        ),
    )


def _open(config: PoolConfig, entry: Mapping[str, Any], wanted: int | None, real: RealShare) -> Source:
    text, count, mapping = entry["source"], entry.get("count"), entry.get("mapping")
    prefix, _, argument = text.partition(":")
    index = ClassIndex(real.data.classes, real.data.aliases, mapping)
    if isinstance(count, Mapping):
        count = sum(count.values())
    request = SourceRequest(
        classes=index,
        generator=str(entry.get("generator") or _called(argument) or prefix),
        count=count or (wanted if len(config.synthetic) == 1 else None),
        options={key: value for key, value in entry.items() if key not in _ENTRY_KEYS},
        layouts=config.layouts,
        real=real.training_images,
        spare=real.spare_images,
    )
    source = open_source(text, request)
    if REAL in source.generators:
        raise UserError(f"{text}: calls a generator {REAL!r}, which means no generator; rename it")
    return source.without_unreadable() if config.on_error == "skip" else source


def _called(argument: str) -> str:
    """What a generator is called after the place of its images: sd-1.4 for the folder sd-1.4, edm for edm.npz."""
    place = Path(argument)
    return place.name if os.path.isdir(os.path.expanduser(argument)) else place.stem


def _order(source: Source, entry: Mapping[str, Any], seed: int) -> np.ndarray:
    """The source's images in drawing order, as many as its `count` says: in all, or of each generator."""
    count = entry.get("count")
    if not isinstance(count, Mapping):
        order = np.arange(len(source))
        if not source.in_order:
            order = draw_order(source.labels, source.generator, source.generators, seed)
        return order[: _at_most(count, len(order), entry["source"])]
    sizes = {name: int((source.generator == g).sum()) for g, name in enumerate(source.generators)}
    limits = {
        name: _at_most(n, sizes.get(name, 0), f"{entry['source']}, generator {name}")
        for name, n in count.items()
    }
    return draw_order(source.labels, source.generator, source.generators, seed, limits)


def _at_most(count: int | None, available: int, origin: str) -> int:
    if count is not None and count > available:
        raise UserError(f"{origin}: count {count} is asked for, it has {available} images; lower the count")
    return available if count is None else count


def _read(real: RealShare, source: Source, rows: np.ndarray) -> ImageSet:
    flags = np.ones(len(rows), dtype=np.bool_)
    images, digests = real.pipeline.take(source, rows)
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


def _report(
    entry: Mapping[str, Any], source: Source, part: ImageSet, classes: tuple[str, ...]
) -> dict[str, Any]:
    return {
        "source": entry["source"],
        "provenance": "synthetic",
        "available": len(source),
        "taken": len(part),
        "by_class": part.by_class(classes),
        "by_generator": part.by_generator(),
        "skipped": source.skipped,
    }
