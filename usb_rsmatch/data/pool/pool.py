"""Real, synthetic and collected images as one pool: labelled, unlabelled, validation and test sets, with a manifest."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from os import PathLike
from types import SimpleNamespace
from typing import Any, TextIO

import numpy as np
import yaml

from usb_rsmatch.data.images.hashes import array_sha256, digests_sha256
from usb_rsmatch.data.pool.duplicates import found_in, refuse_in_test
from usb_rsmatch.data.pool.image_set import ImageSet, concatenate
from usb_rsmatch.data.pool.notes import pool_notes, repeated_note, shape_notes
from usb_rsmatch.data.pool.preprocessing import Pipeline
from usb_rsmatch.data.pool.provenance import Provenance
from usb_rsmatch.data.pool.reading import read_selections
from usb_rsmatch.data.pool.selection import PoolSelection, Selection, select_images
from usb_rsmatch.data.pool.settings import PoolConfig
from usb_rsmatch.data.pool.split import split_dataset
from usb_rsmatch.data.sources.dataset_registry import DataSpec, RealData, open_dataset
from usb_rsmatch.errors import UserError
from usb_rsmatch.version import __version__

__all__ = ["DataSpec", "HybridPool", "ImageSet", "build_pool"]

SHOWN_DUPLICATES = 20  # the manifest names only the first ones


@dataclass(frozen=True)
class HybridPool:
    """What a semi-supervised run trains and tests on.

    `unlabeled` holds the labelled images first (if they are included), then further real ones, then synthetic ones,
    then those of unknown provenance. `config` are the keys that it was built from, `sources` reports what was taken
    from each source, `duplicates` counts the real training images that are also in the test set, `duplicate_names`
    names the first of them, `unknown_duplicates` counts the images of unknown provenance that are also in the labelled,
    validation or test set, `hashes` are the SHA-256 of the parts, and `notes` are lines on what a user should know
    before training.
    """

    spec: DataSpec
    classes: tuple[str, ...]
    labeled: ImageSet
    unlabeled: ImageSet
    validation: ImageSet | None
    test: ImageSet
    config: Mapping[str, Any] = field(default_factory=dict)
    sources: tuple[Mapping[str, Any], ...] = ()
    duplicates: int = 0
    duplicate_names: tuple[str, ...] = ()
    unknown_duplicates: Mapping[str, int] = field(default_factory=dict)
    hashes: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @classmethod
    def from_config(cls, config: str | PathLike[str] | Mapping[str, Any] | Any, pack: bool = False) -> HybridPool:
        """The pool of a YAML file, a mapping or a namespace with its keys; missing keys take their defaults.

        Raises UserError for a file that cannot be read, and whatever `build_pool` finds wrong.
        """
        if isinstance(config, (str, PathLike)):
            config = _read(config, "YAML", yaml.safe_load)
        return build_pool(PoolConfig.read(SimpleNamespace(**config) if isinstance(config, Mapping) else config), pack)

    @classmethod
    def from_manifest(cls, path: str | PathLike[str], **changes: Any) -> HybridPool:
        """Rebuild the pool that a manifest describes; `changes` are keys that differ here, such as `data_dir`.

        Raises UserError that names a part which differs from the manifest, and whatever `build_pool` finds wrong.
        """
        manifest = _read(path, "JSON", json.load)
        if not isinstance(manifest.get("config"), Mapping) or not isinstance(manifest.get("parts"), Mapping):
            raise UserError(f"{path}: is not the manifest of a pool; `usb-rsmatch pool --out` writes one")
        pool = cls.from_config({**manifest["config"], **changes})
        now = pool.manifest()["parts"]
        for name in {**manifest["parts"], **now}:
            before, after = manifest["parts"].get(name), now.get(name)
            if before is None or after is None or any(before.get(key) != after[key] for key in after):
                raise UserError(f"{path}: the {name} images are not those of the manifest; restore the sources")
        return pool

    def __len__(self) -> int:
        return len(self.unlabeled)

    @property
    def names(self) -> Sequence[str]:
        """The name of each unlabelled image for messages; a path if the image is a file."""
        return self.unlabeled.names or ()

    @property
    def provenance(self) -> dict[str, Any]:
        """Unlabelled images by provenance: {"real", "synthetic", "unknown": count, "by_generator": {name: count}}."""
        counts = np.bincount(self.unlabeled.provenance, minlength=len(Provenance))
        return {
            **{kind.word: int(counts[kind]) for kind in Provenance},
            "by_generator": self.unlabeled.by_generator(),
        }

    def parts(self) -> dict[str, ImageSet]:
        """The image sets by name, without those that do not exist."""
        parts = {
            "labeled": self.labeled,
            "unlabeled": self.unlabeled,
            "validation": self.validation,
            "test": self.test,
        }
        return {name: part for name, part in parts.items() if part is not None}

    def manifest(self) -> dict[str, Any]:
        """Everything that is needed to rebuild and verify the same pool elsewhere, as plain JSON values."""
        return {
            "config": dict(self.config),
            "seed": self.config.get("seed"),
            "dataset": self.spec.name,
            "classes": list(self.classes),
            "image_shape": list(self.unlabeled.images.shape[1:]),
            "view": {"mean": list(self.spec.mean), "std": list(self.spec.std), "flip": self.spec.flip},
            "pool": self.provenance,
            "sources": [dict(source) for source in self.sources],
            "notes": list(self.notes),
            "duplicates": {
                "real_train_in_test": self.duplicates,
                "first": list(self.duplicate_names),
                **{f"unknown_in_{name}": count for name, count in self.unknown_duplicates.items()},
            },
            "parts": {
                name: {
                    "count": len(part),
                    "by_class": part.by_class(self.classes),
                    "by_generator": part.by_generator(),
                    **({"unknown": int(part.is_unknown.sum())} if part.is_unknown.any() else {}),
                    "sha256": self.hashes.get(name) or digests_sha256(part.hashed()),
                    "labels_sha256": array_sha256(part.labels),
                }
                for name, part in self.parts().items()
            },
            "versions": {
                "usb_rsmatch": __version__,
                **_versions("numpy", "pillow", "torchvision", "scikit-learn"),
            },
        }


def build_pool(config: PoolConfig, pack: bool = False) -> HybridPool:
    """The pool that a configuration describes: its sources are opened, split, drawn from, and read.

    With `pack` images in files are first packed into arrays in the user's cache, which later pools then find there.

    Raises UserError for impossible settings, missing or damaged files, too few images, classes that do not
    match, a synthetic image that is also in the test set, and images that do not fit into memory.
    """
    try:
        data = open_dataset(
            config.dataset,
            config.data_dir,
            config.num_classes,
            config.skip_limit if config.on_error == "skip" else None,
            config.labels,
        )
        data = replace(data, spec=_spec(config, data.spec))
        selected = select_images(config, data, split_dataset(data, config))
        sets = read_selections(selected.all(), Pipeline.of(config, data.spec), pack)
        return _assemble(config, data, selected, sets)
    except MemoryError as error:
        raise UserError(f"the pool does not fit into memory ({error}); lower img_size or the counts") from None


def _assemble(config: PoolConfig, data: RealData, selected: PoolSelection, sets: Sequence[ImageSet]) -> HybridPool:
    """Concatenate the parts, search for test images among the training images, and hash every part."""
    labeled, further, validation, test, *others = sets
    real = concatenate([labeled, further]) if config.labeled_in_pool else further
    synthetic, unknown = others[: len(selected.synthetic.parts)], others[len(selected.synthetic.parts) :]
    pools, found, unknown_duplicates = [real], [], {}
    if synthetic:
        pools.append(concatenate(synthetic).take(selected.synthetic.order))
        refuse_in_test(pools[-1], test)
    if unknown:
        pools.append(concatenate(unknown).take(selected.unknown.order))
        for name, part in (("labeled", labeled), ("validation", validation), ("test", test)):
            rows = np.flatnonzero(found_in(pools[-1], part))
            unknown_duplicates[name] = len(rows)
            found += repeated_note("images of unknown provenance", name, pools[-1], rows)
    unlabeled = concatenate(pools)
    trained = real if config.labeled_in_pool else concatenate([labeled, real])
    repeated = np.flatnonzero(found_in(trained, test))
    opened = [part for part in (data.train, data.test, data.unlabeled) if part is not None]
    drawn = [*selected.synthetic.parts, *selected.unknown.parts]
    skipped = {name: reason for part in opened for name, reason in part.skipped.items()}
    pool = HybridPool(
        spec=data.spec,
        classes=data.classes,
        labeled=labeled,
        unlabeled=unlabeled,
        validation=validation if config.validation_count or config.validation_fold else None,
        test=test,
        config=config.as_dict(),
        sources=(
            _report(selected.labeled, real, data.classes, skipped),
            *(
                _report(part, images, data.classes, part.source.skipped)
                for part, images in zip(drawn, others, strict=True)
            ),
        ),
        duplicates=len(repeated),
        duplicate_names=tuple(trained.names[i] for i in repeated[:SHOWN_DUPLICATES]) if trained.names else (),
        unknown_duplicates=unknown_duplicates,
    )
    sources = [*opened, *(part.source for part in drawn)]
    read = [note for source in sources for note in source.notes] + shape_notes(sources, config.fit)
    notes = tuple(dict.fromkeys([*read, *pool_notes(data.classes, labeled, trained, repeated), *found]))
    hashes = {name: digests_sha256(part.hashed()) for name, part in pool.parts().items()}
    bare: dict[str, Any] = {name: replace(part, digests=None) for name, part in pool.parts().items()}  # to save memory
    return replace(pool, hashes=hashes, notes=notes, **bare)


def _spec(config: PoolConfig, spec: DataSpec) -> DataSpec:
    """The data set's own normalisation and mirroring, or those of the configuration."""
    for name in ("mean", "std"):
        values = getattr(config, name)
        if values is not None and len(values) != spec.channels:
            raise UserError(
                f"{name}: has {len(values)} values, the images of {spec.name} have {spec.channels} channels"
            )
    return replace(
        spec,
        flip=spec.flip if config.flip is None else config.flip,
        mean=spec.mean if config.mean is None else tuple(map(float, config.mean)),
        std=spec.std if config.std is None else tuple(map(float, config.std)),
    )


def _report(part: Selection, images: ImageSet, classes: Sequence[str], skipped: Mapping[str, str]) -> dict[str, Any]:
    """What the manifest says of one source."""
    return {
        "source": part.origin,
        "provenance": part.provenance.word,
        **({"name": part.name} if part.name else {}),
        "available": len(part.source),
        "taken": len(images),
        "by_class": images.by_class(classes),
        "by_generator": images.by_generator(),
        "skipped": skipped,
    }


def _versions(*packages: str) -> dict[str, str]:
    found = {}
    for package in packages:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _read(path: str | PathLike[str], kind: str, parse: Callable[[TextIO], Any]) -> Mapping[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            content = parse(file)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; check the path") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path}: not valid {kind} ({' '.join(str(error).split())})") from None
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: must contain keys and values, such as `dataset: digits`")
    return content
