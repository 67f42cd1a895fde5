"""Which images a pool takes from which source: the real ones of the split, synthetic ones, and those of unknown
provenance."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from usb_rsmatch.data.pool.balanced_order import draw_order, interleave
from usb_rsmatch.data.pool.provenance import RESERVED, Provenance
from usb_rsmatch.data.pool.settings import PoolConfig
from usb_rsmatch.data.pool.split import Split
from usb_rsmatch.data.sources.class_names import UNKNOWN, ClassIndex, NoClasses
from usb_rsmatch.data.sources.dataset_registry import RealData
from usb_rsmatch.data.sources.registry import SourceRequest, open_source
from usb_rsmatch.data.sources.source import JoinedSource, Source
from usb_rsmatch.errors import UserError

_ENTRY_KEYS = ("source", "generator", "name", "count", "mapping")


@dataclass(frozen=True)
class Selection:
    """The images at `rows` int64 [n] of a source, which `origin` names in the configuration.

    `name` is the user's name of a source of unknown provenance.
    """

    origin: str
    source: Source
    rows: np.ndarray
    provenance: Provenance = Provenance.REAL
    labeled: bool = False
    name: str = ""


@dataclass(frozen=True)
class Drawn:
    """What a pool takes from several sources; `order` int64 [N] brings the images, one source after the other, into the
    pool's order, of which every prefix holds the sources in proportion to their counts.
    """

    parts: Sequence[Selection]
    order: np.ndarray


@dataclass(frozen=True)
class PoolSelection:
    """What a pool takes from which source; `further` are the real unlabelled images other than the labelled ones."""

    labeled: Selection
    further: Selection
    validation: Selection
    test: Selection
    synthetic: Drawn
    unknown: Drawn

    def all(self) -> list[Selection]:
        """Every selection: labelled, further real, validation, test, synthetic, of unknown provenance."""
        real = [self.labeled, self.further, self.validation, self.test]
        return [*real, *self.synthetic.parts, *self.unknown.parts]


def select_images(config: PoolConfig, data: RealData, split: Split) -> PoolSelection:
    """Select the real images of a split, as many synthetic ones as the configuration wants, and those of `unlabeled:`.

    Smaller selections of synthetic images are prefixes of larger ones. Every prefix holds the sources in proportion to
    their counts, and each source its generators in proportion and its classes balanced. Images of unknown provenance
    are drawn without regard to classes. Raises UserError where there are too few.
    """
    train = data.train if data.unlabeled is None else JoinedSource(data.train, data.unlabeled)
    return PoolSelection(
        labeled=Selection(config.dataset, train, split.labeled, labeled=True),
        further=Selection(config.dataset, train, split.rest),
        validation=Selection(config.dataset, train, split.validation),
        test=Selection(config.dataset, data.test, np.arange(len(data.test))),
        synthetic=_select_synthetic(config, data, split),
        unknown=_select_unknown(config, data, split),
    )


def _select_synthetic(config: PoolConfig, data: RealData, split: Split) -> Drawn:
    wanted = config.synthetic_wanted(len(split.rest) + (len(split.labeled) if config.labeled_in_pool else 0))
    entries = config.synthetic if wanted != 0 else []
    sources = [_open(config, entry, wanted, data, split) for entry in entries]
    orders = [_order(source, entry, config.seed) for source, entry in zip(sources, entries, strict=True)]
    available = sum(map(len, orders))
    if wanted is not None and wanted > available:
        raise UserError(
            f"{wanted} synthetic images are asked for, the sources have {available}; "
            "lower synthetic_count or synthetic_ratio, or add a source"
        )
    named = [
        Selection(entry["source"], source, order, Provenance.SYNTHETIC)
        for entry, source, order in zip(entries, sources, orders, strict=True)
    ]
    return _interleaved(named, wanted)


def _select_unknown(config: PoolConfig, data: RealData, split: Split) -> Drawn:
    """The images of the sources in `unlabeled:` and, unless one of them names it, of the data set's own folder."""
    parts = []
    for entry in config.unlabeled:
        source = _open_unknown(config, entry, data, split)
        name = str(entry.get("name") or _default_name(entry["source"]))
        order = _order(source, entry, config.seed)
        parts.append(Selection(entry["source"], source, order, Provenance.UNKNOWN, name=name))
    own = data.collected
    if own is not None and not any(_same_place(part.source.origin, own.origin) for part in parts):
        _forget(own)
        order = _order(own, {"source": own.origin}, config.seed)
        parts.append(Selection(own.origin, own, order, Provenance.UNKNOWN, name=_default_name(f"flat:{own.origin}")))
    return _interleaved(parts, None)


def _interleaved(parts: Sequence[Selection], wanted: int | None) -> Drawn:
    """The first `wanted` images of the sources, which take turns in proportion to their counts; None for all."""
    turns = interleave([len(part.rows) for part in parts])[:wanted]
    order = np.empty(len(turns), dtype=np.int64)
    order[np.argsort(turns, kind="stable")] = np.arange(len(turns))
    counts = [int((turns == number).sum()) for number in range(len(parts))]
    return Drawn([replace(part, rows=part.rows[:count]) for part, count in zip(parts, counts, strict=True)], order)


def _open(config: PoolConfig, entry: Mapping[str, Any], wanted: int | None, data: RealData, split: Split) -> Source:
    text, count = entry["source"], entry.get("count")
    if isinstance(count, Mapping):
        count = sum(count.values())
    source = open_source(
        text,
        SourceRequest(
            classes=ClassIndex(data.classes, data.aliases, entry.get("mapping")),
            generator=str(entry.get("generator") or _default_name(text)),
            count=count or (wanted if len(config.synthetic) == 1 else None),
            **_common_request(config, entry, data, split),
        ),
    )
    taken = [name for name in source.generators if name.casefold() in RESERVED]
    if taken:
        raise UserError(f"{text}: calls a generator {taken[0]!r}, which means no generator; give it a `generator`")
    return source.without_unreadable(config.skip_limit) if config.on_error == "skip" else source


def _open_unknown(config: PoolConfig, entry: Mapping[str, Any], data: RealData, split: Split) -> Source:
    """A source whose classes, provenance folders and names of generators are not read."""
    prefix, colon, argument = entry["source"].partition(":")
    text = f"flat{colon}{argument}" if prefix == "folder" else entry["source"]
    request = SourceRequest(
        classes=NoClasses(data.classes),
        generator="",
        count=entry.get("count"),
        any_provenance=True,
        **_common_request(config, entry, data, split),
    )
    source = open_source(text, request)
    _forget(source)
    return source.without_unreadable(config.skip_limit) if config.on_error == "skip" else source


def _common_request(config: PoolConfig, entry: Mapping[str, Any], data: RealData, split: Split) -> dict[str, Any]:
    size = config.img_size or data.spec.img_size
    return {
        "options": {key: value for key, value in entry.items() if key not in _ENTRY_KEYS},
        "layouts": config.layouts,
        "real": partial(_images_but, data, split.validation, size, config.fit),
        "spare": partial(_images_but, data, split.used, size, config.fit),
    }


def _forget(source: Source) -> None:
    """Remove classes and generators from a source of unknown provenance, so that nothing can read them."""
    source.labels = np.full(len(source), UNKNOWN, dtype=np.int64)
    source.generators = (Provenance.UNKNOWN.word,)
    source.generator = np.zeros(len(source), dtype=np.int16)
    source.in_order = False


def _same_place(first: str, second: str) -> bool:
    return os.path.realpath(os.path.expanduser(first)) == os.path.realpath(os.path.expanduser(second))


def _images_but(data: RealData, left_out: np.ndarray, size: int, fit: str) -> tuple[np.ndarray, np.ndarray]:
    """Training images uint8 [N, H, W, C] that have a class, less those at `left_out`, and their labels int64 [N]."""
    rows = np.setdiff1d(np.flatnonzero(data.train.labels >= 0), left_out)
    return data.train.load(rows, size, data.spec.channels, fit), data.train.labels[rows]


def _default_name(text: str) -> str:
    """A name from the path of a source's images, else from its kind: sd-1.4 for folder:sd-1.4, edm for npz:edm.npz."""
    prefix, _, argument = text.partition(":")
    place = Path(argument)
    return (place.name if os.path.isdir(os.path.expanduser(argument)) else place.stem) or prefix


def _order(source: Source, entry: Mapping[str, Any], seed: int) -> np.ndarray:
    """The source's images in drawing order, as many as its `count` says: in all, or of each generator."""
    count = entry.get("count")
    unnamed = None if entry.get("generator") else _default_name(entry["source"])
    if source.generators == (Provenance.UNKNOWN.word,):
        unnamed = Provenance.UNKNOWN.word
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
