"""Reads `analysis.npz` of a run and checks its contents, since a plot of a damaged file would be misleading."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from usb_rsmatch.data.pool.provenance import Provenance
from usb_rsmatch.errors import UserError

if TYPE_CHECKING:
    import numpy as np

NAME, FORMAT = "analysis.npz", 1  # as written by usb/analysis.py


@dataclass(frozen=True)
class Pictures:
    """Images uint8 [n, H, W, C] with scores float32 [n] (NaN: not measured) and generators int16 [n]."""

    images: np.ndarray
    scores: np.ndarray
    generators: np.ndarray
    classes: np.ndarray | None = None  # int64 [n], pseudo-classes of a queue's images


@dataclass(frozen=True)
class Analysis:
    """The contents of one run's file. What a run does not have, such as a detector or a queue, is None.

    `confusion` int64 [K, K], true class by predicted; `scores` float32 [n] and `scores_generator` int16 [n] (an index
    into `generators`, of which the first is "real", and "unknown" stands for unknown provenance); `features` float16
    [m, F] with class (-1 unknown) and generator of each.
    """

    path: Path
    confusion: np.ndarray
    classes: tuple[str, ...]
    generators: tuple[str, ...]
    scores: np.ndarray | None
    scores_generator: np.ndarray | None
    features: np.ndarray | None
    features_class: np.ndarray | None
    features_generator: np.ndarray | None
    lowest: Pictures | None
    highest: Pictures | None
    queued: Pictures | None
    queue_class: np.ndarray | None
    queue_generator: np.ndarray | None

    def unknown(self, generator: np.ndarray) -> np.ndarray:
        """Which of the images with these generators int16 [n] are of unknown provenance: bool [n]."""
        name = Provenance.UNKNOWN.word
        return generator == (self.generators.index(name) if name in self.generators else -1)

    def synthetic(self, generator: np.ndarray) -> np.ndarray:
        """Which of the images with these generators int16 [n] are known to be synthetic: bool [n]."""
        return (generator > 0) & ~self.unknown(generator)


def read_analysis(folder: Path) -> Analysis | None:
    """The analysis in a run's folder, None if there is none.

    Raises UserError, one line that names the file, for an incomplete or edited file, or another version.
    """
    import numpy as np

    path = folder / NAME
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            content = {name: file[name] for name in file.files}
        return _checked(path, content)
    except (OSError, ValueError, KeyError, EOFError, IndexError, zipfile.BadZipFile, zlib.error):
        raise UserError(
            f"{path} is damaged or of another version: remove it, and the report is made without its plots"
        ) from None


def _checked(path: Path, content: dict[str, Any]) -> Analysis:
    """The fields of a file; ValueError or KeyError if they contradict each other."""
    confusion = content["confusion"]
    count = len(confusion)
    names = content.get("classes")
    classes = tuple(map(str, range(count) if names is None else names))
    generators = tuple(map(str, content.get("generators", ["real"])))

    def agree(holds: bool) -> None:
        if not holds:
            raise ValueError

    def columns(name: str, *others: str) -> list[Any]:
        """Columns of equal length, or None for each; every generator number has a name."""
        if name not in content:
            return [None] * (1 + len(others))
        found = [content[key] for key in (name, *others)]
        agree(all(len(column) == len(found[0]) for column in found))
        for key, column in zip((name, *others), found, strict=True):
            if key.endswith("_generator") and len(column):
                agree(column.min() >= 0 and column.max() < len(generators))
        return found

    def pictures(name: str, classwise: bool = False) -> Pictures | None:
        further = [f"{name}_class"] if classwise else []
        found = columns(f"{name}_images", f"{name}_scores", f"{name}_generator", *further)
        if found[0] is None:
            return None
        agree(found[0].ndim == 4 and found[0].dtype.name == "uint8" and found[0].shape[-1] in (1, 3))
        return Pictures(*found)

    agree(int(content["format"]) == FORMAT)
    agree(confusion.shape == (count, count) and count > 1 and confusion.dtype.kind == "i" and confusion.min() >= 0)
    agree(len(classes) == count and generators[:1] == ("real",))
    scores, scores_generator = columns("scores", "scores_generator")
    features, features_class, features_generator = columns("features", "features_class", "features_generator")
    agree(features is None or (features.ndim == 2 and features.dtype.kind == "f"))
    queue_class, queue_generator = columns("queue_class", "queue_generator")
    return Analysis(
        path, confusion, classes, generators, scores, scores_generator, features, features_class, features_generator,
        pictures("lowest"), pictures("highest"), pictures("queued", classwise=True), queue_class, queue_generator,
    )  # fmt: skip
