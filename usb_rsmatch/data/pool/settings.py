"""The settings of a pool: one typed field for each configuration key, read from any namespace and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from usb_rsmatch.data.images.history import read_history
from usb_rsmatch.data.pool.provenance import RESERVED
from usb_rsmatch.data.sources.class_names import read_mapping
from usb_rsmatch.errors import UserError
from usb_rsmatch.keys import Key, convert, keys_of, read_values, setting, short_repr

ALL = "all"  # of num_labels: every training image that has a class is labelled


@dataclass(frozen=True)
class PoolConfig:
    """USB's keys under their names, and ours; None means "not set".

    `reencode` is a JPEG quality: every image of the pool, real and synthetic, then goes through that JPEG.
    """

    num_labels: int | str = setting("int", 400, "labelled images in all", low=1, word=ALL)
    data_dir: str = setting("str", "./data", "folder of the data sets")
    dataset: str = setting(
        "str", "cifar10", "photos, digits, fashionmnist, tinyimagenet, folder, or one of USB's image sets"
    )
    labels: str | Mapping[str, Any] | None = setting(
        "file",
        None,
        "for dataset: folder, CSV or JSONL tables of file, class and split: FILE, or a mapping with train and test",
        "ours",
        optional=True,
    )
    num_classes: int | None = setting(
        "int", None, "number of classes; default: as many as the data set has", optional=True, low=2
    )
    include_lb_to_ulb: bool = setting("bool", True, "labelled images are in the unlabelled pool too")
    lb_imb_ratio: float = setting("float", 1, "imbalance of the labelled images, largest class over smallest")
    ulb_imb_ratio: float = setting("float", 1, "imbalance of the unlabelled images")
    ulb_num_labels: int | None = setting(
        "int", None, "real unlabelled images (of the largest class where imbalanced)", optional=True, low=0
    )
    img_size: int | None = setting(
        "int", None, "side of the images in pixels; default: the data set's own", optional=True, low=8, high=4096
    )
    seed: int = setting("int", 0, "seed of everything random", low=0, high=2**32 - 1)
    synthetic: Sequence[Mapping[str, Any]] = setting(
        "list", [], "synthetic sources: mappings with `source`, and `generator`, `count`", "ours"
    )
    unlabeled: Sequence[Mapping[str, Any]] = setting(
        "list", [], "sources of unknown provenance: mappings with `source`, and `name`, `count`", "ours"
    )
    real_count: int | None = setting(
        "int",
        None,
        "images in the pool known to be real, labelled ones included; 0 leaves the labelled ones out too",
        "ours",
        low=0,
        optional=True,
    )
    synthetic_count: int | None = setting(
        "int", None, "images in the pool known to be synthetic", "ours", low=0, optional=True
    )
    synthetic_ratio: float | None = setting(
        "float", None, "share of synthetic images among those of known provenance", "ours", low=0, high=1, optional=True
    )
    validation_count: int = setting("int", 0, "real training images cut off for choosing anything", "ours", low=0)
    validation_fold: str | None = setting(
        "str", None, "I/N: part I of N of the labelled images is held out for choosing anything", "ours", optional=True
    )
    on_error: str = setting(
        "raise|skip", "raise", "an unreadable image stops the run, or is skipped and listed", "ours"
    )
    skip_limit: float = setting(
        "float",
        0.01,
        "with on_error: skip, the share of a source's images that may be unreadable",
        "ours",
        low=0,
        high=1,
    )
    flip: bool | None = setting(
        "bool", None, "views are mirrored at random; default: the data set's own", "ours", optional=True
    )
    mean: Sequence[float] | None = setting(
        "list", None, "mean of each channel in 0 to 1; default: the data set's own", "ours", optional=True
    )
    std: Sequence[float] | None = setting(
        "list", None, "standard deviation of each channel; default: the data set's own", "ours", optional=True
    )
    reencode: int | None = setting(
        "int", None, "JPEG quality at which all images are re-encoded", "ours", low=1, high=100, optional=True
    )
    clear_below: int = setting("int", 0, "grey levels under this become 0, in all images", "ours", low=0, high=255)
    real_history: Sequence[Mapping[str, Any]] = setting(
        "list", [], "steps that real images go through as the generated ones did: {resize: PIXELS}, {jpeg: Q}", "ours"
    )
    fit: str = setting(
        "crop|pad|squash", "crop", "how an image becomes square: cut to its centre, padded with black, squashed", "ours"
    )
    layouts: Mapping[str, Any] = setting("mapping", {}, "further folder layouts, by prefix", "ours")

    @classmethod
    def read(cls, args: Any) -> PoolConfig:
        """The pool's keys of a namespace; missing ones and None (USB also writes "None") take their defaults.

        Raises UserError for an invalid value, and for keys that exclude each other.
        """
        values = read_values(POOL_KEYS, args, "pool")
        entries = {key: [_entry(key, entry) for entry in values.get(key, [])] for key in ("synthetic", "unlabeled")}
        config = cls(**{**values, **entries})
        config._check()
        return config

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON and YAML."""
        return asdict(self)

    @property
    def labeled_in_pool(self) -> bool:
        """Whether the labelled images are in the unlabelled pool too."""
        return self.include_lb_to_ulb and self.real_count != 0

    def synthetic_wanted(self, real: int) -> int | None:
        """The number of synthetic images for `real` unlabelled real ones; None for all that there are."""
        if self.synthetic_ratio is not None:
            return round(real * self.synthetic_ratio / (1 - self.synthetic_ratio))
        return self.synthetic_count

    def _check(self) -> None:
        if self.validation_count and self.validation_fold is not None:
            raise UserError("give validation_count or validation_fold, not both")
        read_history(self.real_history)
        if self.synthetic_count is not None and self.synthetic_ratio is not None:
            raise UserError("give synthetic_count or synthetic_ratio, not both")
        for name in ("synthetic_count", "synthetic_ratio"):
            if getattr(self, name) and not self.synthetic:
                raise UserError(f"{name} is given, but there is no `synthetic:` source to draw from")
        if self.synthetic_ratio and self.real_count == 0:
            raise UserError("synthetic_ratio needs real images; with real_count: 0 take synthetic_count")
        if self.synthetic_ratio == 1:
            raise UserError("synthetic_ratio must be under 1; for synthetic images alone take real_count: 0")
        for name in ("mean", "std"):
            values = getattr(self, name) or []
            if not all(isinstance(value, (int, float)) and 0 <= value <= 1 for value in values):
                raise UserError(f"{name}: {values} must be numbers from 0 to 1, one for each channel")
        if self.std is not None and 0 in self.std:
            raise UserError(f"std: {self.std} must not contain 0, images are divided by it")
        for name in ("lb_imb_ratio", "ulb_imb_ratio"):
            if abs(getattr(self, name)) < 1:
                raise UserError(f"{name}: {getattr(self, name)} must be 1 or more, or -1 or less")


POOL_KEYS = keys_of(PoolConfig)
_TEXTS = tuple(Key(name, "str", None, "of an entry", optional=True) for name in ("source", "generator", "name"))
_COUNT = Key("count", "int", None, "images of a source", low=1)


def _entry(kind: str, entry: Any) -> dict[str, Any]:
    """A checked entry of `synthetic:` or `unlabeled:`: a `source`, optionally a `count` and keys of the source.

    An entry of `synthetic:` may also have a `generator` and a `mapping`, one of `unlabeled:` a `name`.
    """
    if not isinstance(entry, Mapping) or not isinstance(entry.get("source"), str):
        example = "`source`, such as folder:./images"
        raise UserError(f"{kind}: an entry needs a {example}; got {short_repr(entry)}")
    entry = dict(entry)
    where, count = f"{kind}, {entry['source']}", entry.get("count")
    if kind == "unlabeled":
        if "generator" in entry:
            raise UserError(f"{where}: has no generator, its images are of unknown provenance; give it a `name`")
        if "mapping" in entry:
            raise UserError(f"{where}: has no mapping, classes of images of unknown provenance are not read")
        if isinstance(count, Mapping):
            raise UserError(f"{where}: count takes a number, as the images of each generator are not known")
    if isinstance(count, Mapping):
        entry["count"] = {str(name): convert(_COUNT, n, f"{where}, {name}") for name, n in count.items()}
    elif count is not None:
        entry["count"] = convert(_COUNT, count, where)
    for key in _TEXTS:
        if isinstance(entry.get(key.name), str):
            convert(key, entry[key.name], where)
    if isinstance(entry.get("mapping"), str):
        entry["mapping"] = read_mapping(entry["mapping"])  # its content, so that the manifest is complete
    generator = str(entry.get("generator", "")).casefold()
    if generator in RESERVED:
        raise UserError(f"{where} cannot name its generator {generator!r}, which means no generator")
    return entry
