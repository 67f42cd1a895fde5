"""Which images a pool takes from which source: the real ones of the split, and synthetic ones in proportion."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from usb_rsmatch.data.pool.balanced_order import draw_order, interleave
from usb_rsmatch.data.pool.image_set import REAL
from usb_rsmatch.data.pool.settings import PoolConfig
from usb_rsmatch.data.pool.split import Split
from usb_rsmatch.data.sources.class_names import ClassIndex
from usb_rsmatch.data.sources.dataset_registry import RealData
from usb_rsmatch.data.sources.registry import SourceRequest, open_source
from usb_rsmatch.data.sources.source import JoinedSource, Source
from usb_rsmatch.errors import UserError

_ENTRY_KEYS = ("source", "generator", "count", "mapping")


@dataclass(frozen=True)
class Selection:
    """The images at `rows` int64 [n] of a source, which `origin` names in the configuration."""

    origin: str
    source: Source
    rows: np.ndarray
    synthetic: bool = False
    labeled: bool = False


@dataclass(frozen=True)
class PoolSelection:
    """What a pool takes from which source.

    `further` are the real unlabelled images other than the labelled ones; `order` int64 [N] brings the synthetic
    images, one source after the other, into the pool's order.
    """

    labeled: Selection
    further: Selection
    validation: Selection
    test: Selection
    synthetic: Sequence[Selection]
    order: np.ndarray

    def all(self) -> list[Selection]:
        """Every selection: labelled, further real, validation, test, and those of the synthetic sources."""
        return [self.labeled, self.further, self.validation, self.test, *self.synthetic]


def select_images(config: PoolConfig, data: RealData, split: Split) -> PoolSelection:
    """Select the real images of a split, and as many synthetic ones as the configuration wants.

    Smaller selections of synthetic images are prefixes of larger ones. Every prefix holds the sources in proportion to
    their counts, and each source its generators in proportion and its classes balanced. Raises UserError where there
    are too few.
    """
    wanted = config.synthetic_wanted(len(split.rest) + (len(split.labeled) if config.include_lb_to_ulb else 0))
    entries = config.synthetic if wanted != 0 else []
    sources = [_open(config, entry, wanted, data, split) for entry in entries]
    orders = [_order(source, entry, config.seed) for source, entry in zip(sources, entries, strict=True)]
    available = sum(map(len, orders))
    if wanted is not None and wanted > available:
        raise UserError(
            f"{wanted} synthetic images are asked for, the sources have {available}; "
            "lower synthetic_count or synthetic_ratio, or add a source"
        )
    turns = interleave([len(order) for order in orders])[:wanted]
    place = np.empty(len(turns), dtype=np.int64)
    place[np.argsort(turns, kind="stable")] = np.arange(len(turns))
    train = data.train if data.unlabeled is None else JoinedSource(data.train, data.unlabeled)
    return PoolSelection(
        labeled=Selection(config.dataset, train, split.labeled, labeled=True),
        further=Selection(config.dataset, train, split.rest),
        validation=Selection(config.dataset, train, split.validation),
        test=Selection(config.dataset, data.test, np.arange(len(data.test))),
        synthetic=[
            Selection(entry["source"], source, order[: int((turns == number).sum())], synthetic=True)
            for number, (entry, source, order) in enumerate(zip(entries, sources, orders, strict=True))
        ],
        order=place,
    )


def _open(config: PoolConfig, entry: Mapping[str, Any], wanted: int | None, data: RealData, split: Split) -> Source:
    text, count = entry["source"], entry.get("count")
    prefix, _, argument = text.partition(":")
    if isinstance(count, Mapping):
        count = sum(count.values())
    size = config.img_size or data.spec.img_size
    source = open_source(
        text,
        SourceRequest(
            classes=ClassIndex(data.classes, data.aliases, entry.get("mapping")),
            generator=str(entry.get("generator") or _default_generator(argument) or prefix),
            count=count or (wanted if len(config.synthetic) == 1 else None),
            options={key: value for key, value in entry.items() if key not in _ENTRY_KEYS},
            layouts=config.layouts,
            real=partial(_images_but, data, split.validation, size),
            spare=partial(_images_but, data, split.used, size),
        ),
    )
    if REAL in source.generators:
        raise UserError(f"{text}: calls a generator {REAL!r}, which means no generator; rename it")
    return source.without_unreadable(config.skip_limit) if config.on_error == "skip" else source


def _images_but(data: RealData, left_out: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Training images uint8 [N, H, W, C] that have a class, less those at `left_out`, and their labels int64 [N]."""
    rows = np.setdiff1d(np.flatnonzero(data.train.labels >= 0), left_out)
    return data.train.load(rows, size, data.spec.channels), data.train.labels[rows]


def _default_generator(argument: str) -> str:
    """A generator's name from the path of its images: sd-1.4 for the folder sd-1.4, edm for edm.npz."""
    place = Path(argument)
    return place.name if os.path.isdir(os.path.expanduser(argument)) else place.stem


def _order(source: Source, entry: Mapping[str, Any], seed: int) -> np.ndarray:
    """The source's images in drawing order, as many as its `count` says: in all, or of each generator."""
    count = entry.get("count")
    prefix, _, argument = entry["source"].partition(":")
    unnamed = None if entry.get("generator") else _default_generator(argument) or prefix
    if not isinstance(count, Mapping):
        order = np.arange(len(source))
        if not source.in_order:
            order = draw_order(source.labels, source.generator, source.generators, seed, unnamed=unnamed)
        return order[: _at_most(count, len(order), entry["source"])]
    sizes = {name: int((source.generator == g).sum()) for g, name in enumerate(source.generators)}
    limits = {
        name: _at_most(n, sizes.get(name, 0), f"{entry['source']}, generator {name}") for name, n in count.items()
    }
    return draw_order(source.labels, source.generator, source.generators, seed, limits, unnamed)


def _at_most(count: int | None, available: int, origin: str) -> int:
    if count is not None and count > available:
        raise UserError(f"{origin}: count {count} is asked for, it has {available} images; lower the count")
    return available if count is None else count
