"""The plan of a run: which images are generated, in which order and in which batch."""

from __future__ import annotations

import functools
import re
import unicodedata
from dataclasses import dataclass

import numpy as np

from usb_rsmatch.errors import UserError

RESERVED = frozenset({"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))})


@dataclass(frozen=True)
class PlannedImage:
    """One image of the plan: its class, by name and number, and its number within the class."""

    name: str
    label: int
    ordinal: int
    file: str  # relative POSIX path in the imagefolder


@dataclass(frozen=True)
class Plan:
    """`count` images in batches of `batch`. Their classes alternate: `chosen` are the numbers of these among `classes`.

    Every `group` batches form a group, and the groups are distributed over shards I/N. The plan does not depend on what
    is done already, so every batch contains the same images, however a run is interrupted.
    """

    classes: tuple[str, ...]
    chosen: tuple[int, ...]
    count: int
    batch: int
    group: int = 1

    def __len__(self) -> int:
        """Number of batches."""
        return -(-self.count // self.batch)

    @property
    def groups(self) -> int:
        return -(-len(self) // self.group)

    def batches_of(self, group: int) -> range:
        """The batches of a group."""
        return range(group * self.group, min((group + 1) * self.group, len(self)))

    def items(self, batch: int) -> list[PlannedImage]:
        """The images of a batch; the last batch may be smaller."""
        folders = folder_names(self.classes)
        rows = range(batch * self.batch, min((batch + 1) * self.batch, self.count))
        items = []
        for row in rows:
            ordinal, position = divmod(row, len(self.chosen))
            label = self.chosen[position]
            items.append(PlannedImage(self.classes[label], label, ordinal, f"{folders[label]}/{ordinal}.png"))
        return items

    def labels(self) -> np.ndarray:
        """Class numbers of all images, int64 [count]."""
        return np.asarray(self.chosen, dtype=np.int64)[np.arange(self.count) % len(self.chosen)]

    def groups_of_shard(self, shard: str | None) -> range:
        """The groups of shard "I/N", or all for None. Raises UserError for an invalid shard."""
        if shard is None:
            return range(self.groups)
        found = re.fullmatch(r"(\d+)/(\d+)", shard)
        part, parts = (int(found[1]), int(found[2])) if found else (0, 0)
        if not 1 <= part <= parts:
            raise UserError(f"--shard {shard}: must be I/N with I from 1 to N, such as 1/4")
        return range(part - 1, self.groups, parts)


@functools.lru_cache(maxsize=8)
def folder_names(classes: tuple[str, ...]) -> tuple[str, ...]:
    """A folder name for each class: its name without the characters that some file systems forbid, without duplicates.

    The comparison ignores case, because for some file systems "cat" and "Cat" are the same name.
    """
    taken: set[str] = set()
    names = []
    for number, name in enumerate(classes):
        folder = re.sub(r"[^\w .,+-]", "_", unicodedata.normalize("NFC", name))[:80].strip(" .")
        if not folder or folder.startswith(("_", ".")) or folder.casefold() in RESERVED:
            folder = f"class_{number}"
        while folder.casefold() in taken:
            folder = f"{folder}_{number}"
        taken.add(folder.casefold())
        names.append(folder)
    return tuple(names)
