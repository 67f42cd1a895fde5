"""The output folder with npz files instead of PNG: `images-00000.npz`, ..., about a thousand images and labels each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from usb_rsmatch.io import atomic_write
from usb_rsmatch.synthesis.engine import GeneratedImage
from usb_rsmatch.synthesis.output import Output, Row
from usb_rsmatch.synthesis.plan import PlannedImage

IMAGES_PER_FILE = 1024


class NpzOutput(Output):
    """One npz file for each group of batches, with `images` uint8 [N, H, W, C] and `labels` int64 [N].

    Each batch has a temporary file of its own until its group is complete. Instead of `file_name`, a line of
    `metadata.jsonl` has the npz file as `shard`, the position in it as `index`, and the image's name as `image`.
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

    def load(self, items: Sequence[PlannedImage]) -> list[np.ndarray]:
        positions = dict(self._positions())
        shards: dict[str, np.ndarray] = {}
        found = []
        for item in items:
            shard, index = positions[item.file]
            if shard not in shards:
                shards[shard] = _read(self.folder / shard)[0]
            found.append(shards[shard][index])
        return found

    def _positions(self) -> Iterable[tuple[str, tuple[str, int]]]:
        """Pairs of an unflagged image's name, and its npz file and index."""
        for group in range(self.plan.groups):
            items = [item for batch in self.plan.batches_of(group) for item in self.plan.items(batch)]
            kept = [item for item in items if item.file in self.rows and not self.rows[item.file]["flagged"]]
            for index, item in enumerate(kept):
                yield item.file, (self._shard(group).name, index)

    def _final(self, rows: Iterable[Row]) -> Iterable[Row]:
        positions = dict(self._positions())
        for row in rows:
            name = row.pop("file_name")
            shard, index = positions[name]
            yield {"shard": shard, "index": index, "image": name, **row}

    def _has(self, batch: int, item: PlannedImage, row: Row | None) -> bool:
        if row is None:
            return False
        return self._part(batch, "npz").is_file() or self._shard(batch // self.plan.group).is_file()

    def _save_images(self, batch: int, items: Sequence[PlannedImage], made: Sequence[GeneratedImage]) -> None:
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
    with np.load(path, allow_pickle=False) as arrays:
        return arrays["images"], arrays["labels"]
