"""Names of a pool's images for messages, made when they are needed: a million of them would fill memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np


class Named(Protocol):
    """A source that has a name and a file size for each of its images."""

    def name(self, index: int) -> str: ...

    def file_sizes(self, indices: np.ndarray) -> np.ndarray: ...


class ImageNames(Sequence[str]):
    """Name i belongs to image `row[i]` of source `part[i]`; it is a path if the image is a file."""

    def __init__(self, sources: Sequence[Named], part: np.ndarray, row: np.ndarray) -> None:
        self.sources, self.part, self.row = tuple(sources), part, row

    @classmethod
    def of(cls, source: Named, rows: np.ndarray) -> ImageNames:
        """The names of the rows int64 [N] of one source."""
        return cls((source,), np.zeros(len(rows), np.int16), np.asarray(rows, np.int32))

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, i: int) -> str:  # type: ignore[override]  # slices: see `take`
        return self.sources[int(self.part[i])].name(int(self.row[i]))

    def take(self, indices: np.ndarray) -> ImageNames:
        """The names at `indices` (int64 or bool)."""
        return ImageNames(self.sources, self.part[indices], self.row[indices])

    @classmethod
    def join(cls, parts: Sequence[ImageNames]) -> ImageNames:
        """Several lists of names concatenated."""
        starts = np.cumsum([0, *(len(part.sources) for part in parts)])[:-1]
        return cls(
            [source for part in parts for source in part.sources],
            np.concatenate([part.part + start for part, start in zip(parts, starts, strict=True)]).astype(np.int16),
            np.concatenate([part.row for part in parts]),
        )
