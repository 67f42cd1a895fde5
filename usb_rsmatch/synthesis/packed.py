"""Output as npz arrays: `images-00000.npz`, ..., of about a thousand images each, with their labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from usb_rsmatch.io import atomic_write
from usb_rsmatch.synthesis.engine import Made
from usb_rsmatch.synthesis.output import Output, Row
from usb_rsmatch.synthesis.plan import Item

IMAGES_A_FILE = 1024


class PackedOutput(Output):
    """A file for each group of batches, with `images` uint8 [N, H, W, C] and `labels` int64 [N].

    A batch is stored as a file of its own until its group is complete. A line of `metadata.jsonl` has the position of
    its image as `shard` and `index`, and the name of its file in an imagefolder as `image`, instead of `file_name`.
    """

    def close_group(self, group: int) -> None:
        path = self._shard(group)
        parts = [self._part(batch, "npz") for batch in self.plan.batches_of(group)]
        if path.is_file() or not all(part.is_file() for part in parts):
            return
        arrays = [_read(part) for part in parts]
        images, labels = (np.concatenate(column) for column in zip(*arrays, strict=True))
        _write(path, images, labels)
        for part in parts:
            part.unlink()

    def load(self, items: Sequence[Item]) -> list[np.ndarray]:
        places = dict(self._places())
        shards: dict[str, np.ndarray] = {}
        found = []
        for item in items:
            shard, index = places[item.file]
            if shard not in shards:
                shards[shard] = _read(self.folder / shard)[0]
            found.append(shards[shard][index])
        return found

    def _places(self) -> Iterable[tuple[str, tuple[str, int]]]:
        """The position of each kept image, by the name that it would have as a file."""
        for group in range(self.plan.groups):
            items = [item for batch in self.plan.batches_of(group) for item in self.plan.items(batch)]
            kept = [item for item in items if item.file in self.rows and not self.rows[item.file]["flagged"]]
            for index, item in enumerate(kept):
                yield item.file, (self._shard(group).name, index)

    def _final(self, rows: Iterable[Row]) -> Iterable[Row]:
        places = dict(self._places())
        for row in rows:
            name = row.pop("file_name")
            shard, index = places[name]
            yield {"shard": shard, "index": index, "image": name, **row}

    def _has(self, batch: int, item: Item, row: Row | None) -> bool:
        if row is None:
            return False
        return self._part(batch, "npz").is_file() or self._shard(batch // self.plan.group).is_file()

    def _save_images(self, batch: int, items: Sequence[Item], made: Sequence[Made]) -> None:
        kept = [(image.image, item.label) for item, image in zip(items, made, strict=True) if not image.flagged]
        shape = made[0].image.shape
        images = np.stack([image for image, _ in kept]) if kept else np.empty((0, *shape), dtype=np.uint8)
        _write(self._part(batch, "npz"), images, np.array([label for _, label in kept], dtype=np.int64))

    def _shard(self, group: int) -> Path:
        return self.folder / f"images-{group:05d}.npz"


def _write(path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, images=images, labels=labels)


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with np.load(path) as arrays:
        return arrays["images"], arrays["labels"]
