"""The output folder of `usb-rsmatch synthesize`: images and their metadata, written in whole batches."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from usb_rsmatch.cache import file_lock
from usb_rsmatch.data.images.decode import read_image
from usb_rsmatch.errors import UserError
from usb_rsmatch.io import atomic_write, is_leftover, parse_json, write_json, write_text
from usb_rsmatch.synthesis.engine import GeneratedImage
from usb_rsmatch.synthesis.plan import Plan, PlannedImage

RUN, METADATA, FLAGGED = "synthesis.json", "metadata.jsonl", "flagged.jsonl"
PARTS = ".parts"  # metadata of finished batches, until all batches are done
LOCK = ".lock"

Row = dict[str, Any]  # a line of metadata.jsonl


class Output:
    """A folder to which images are written batch by batch. `run` identifies the run, as values that JSON can store.

    Nothing is written before the first batch is done, so that a failed start leaves no files. Raises UserError if the
    folder belongs to another run or contains other files.
    """

    def __init__(self, folder: Path, plan: Plan, run: Mapping[str, Any], generator: str) -> None:
        self.folder, self.plan, self.run, self.generator = folder, plan, json.loads(json.dumps(run)), generator
        self.notes: list[str] = []
        self._opened, self._begun = time.time(), False
        self._check()
        self.rows = self._known_rows()

    # which batches are done -----------------------------------------------------------------------------------------

    def is_done(self, batch: int) -> bool:
        """Whether every image of a batch has its metadata and exists."""
        return all(self._has(batch, item, self.rows.get(item.file)) for item in self.plan.items(batch))

    def refresh(self) -> None:
        """Read the metadata again, with that of other shards."""
        self.rows = self._known_rows()

    def complete(self) -> bool:
        """Whether every batch of the whole plan is done."""
        return all(map(self.is_done, range(len(self.plan))))

    # writing ----------------------------------------------------------------------------------------------------------

    def save(
        self, batch: int, items: Sequence[PlannedImage], made: Sequence[GeneratedImage], texts: Mapping[str, str]
    ) -> None:
        """Write a batch: first the images, then their metadata, so that every image with metadata exists."""
        self._begin(texts)
        self._save_images(batch, items, made)
        rows = [self._row(item, image) for item, image in zip(items, made, strict=True)]
        write_text(self._part(batch, "jsonl"), _lines(rows))
        self.rows.update({row["file_name"]: row for row in rows})

    def finish(self) -> None:
        """Write `metadata.jsonl` (and `flagged.jsonl`), when all batches are done, and remove the files of single
        batches.
        """
        with file_lock(self.folder / LOCK):
            rows = [self.rows[item.file] for batch in range(len(self.plan)) for item in self.plan.items(batch)]
            flagged = [row for row in rows if row["flagged"]]
            if flagged:
                write_text(self.folder / FLAGGED, _lines(flagged))
            kept = [row for row in rows if not row["flagged"]]
            unflagged = ({key: value for key, value in row.items() if key != "flagged"} for row in kept)
            write_text(self.folder / METADATA, _lines(self._final(unflagged)))
            for file in (self.folder / PARTS).glob("*.*"):
                file.unlink(missing_ok=True)
            self._remove_leftovers()
            with contextlib.suppress(OSError):
                (self.folder / PARTS).rmdir()

    def close_group(self, group: int) -> None:
        """Called when all batches of a group are done."""

    def write_once(self, name: str, text: str) -> None:
        """Write a further file of the run, unless it already has this text."""
        path = self.folder / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)

    # reading ----------------------------------------------------------------------------------------------------------

    def kept(self) -> list[PlannedImage]:
        """The finished images in the plan's order, without flagged ones."""
        items = (item for batch in range(len(self.plan)) for item in self.plan.items(batch))
        return [item for item in items if item.file in self.rows and not self.rows[item.file]["flagged"]]

    def load(self, items: Sequence[PlannedImage]) -> list[np.ndarray]:
        """Read images of the output, uint8 [H, W, C] each."""
        return [np.atleast_3d(np.asarray(read_image(self.folder / item.file))) for item in items]

    # internals --------------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"{self.folder} is a file: choose another --out")
        record = self.folder / RUN
        if not record.is_file():
            inside = sorted(self.folder.iterdir()) if self.folder.is_dir() else []
            if strange := [path.name for path in inside if path.name != LOCK and not is_leftover(path)]:
                raise UserError(f"{self.folder} contains other files ({strange[0]}): choose another --out")
            return
        try:
            existing = _flat(parse_json(record.read_text(encoding="utf-8")))
            versions = existing.pop("versions")
        except (OSError, ValueError, KeyError, AttributeError):
            raise UserError(f"{record} is damaged: choose another --out, or put the file back") from None
        ours = {key: value for key, value in _flat(self.run).items() if key != "versions"}
        for key in [*ours, *existing]:
            if existing.get(key) != ours.get(key):
                differ = f"its {key} is {_short(existing.get(key))}, not {_short(ours.get(key))}"
                raise UserError(
                    f"{self.folder} contains another run: {differ}; choose another --out, or use its settings"
                )
        changed = [name for name, version in self.run["versions"].items() if versions.get(name) != version]
        if changed:
            was, now = versions.get(changed[0]), self.run["versions"][changed[0]]
            self.notes.append(
                f"{self.folder} was started with {changed[0]} {was}, now it is {now}: new images may differ in their "
                "last bits from those of a run with one version"
            )

    def _begin(self, texts: Mapping[str, str]) -> None:
        if self._begun and (self.folder / RUN).is_file():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with file_lock(self.folder / LOCK):
            self._check()  # another shard may have started in the meantime
            if not (self.folder / RUN).is_file():
                write_json(self.folder / RUN, self.run)
            for name, text in texts.items():
                self.write_once(name, text)
        self._begun = True

    def _remove_leftovers(self) -> None:
        """Remove incomplete files of killed processes, but not of one that may still be writing."""
        for path in self.folder.rglob(".*.tmp"):
            with contextlib.suppress(OSError):
                if is_leftover(path) and path.stat().st_mtime < self._opened:
                    path.unlink()

    def _known_rows(self) -> dict[str, Row]:
        files = [self.folder / METADATA, self.folder / FLAGGED, *sorted((self.folder / PARTS).glob("*.jsonl"))]
        rows: dict[str, Row] = {}
        for file in files:
            if file.is_file():
                try:
                    found = [parse_json(line) for line in file.read_text(encoding="utf-8").splitlines() if line]
                    for row in found:
                        name = row.pop("image", None) or row["file_name"]
                        rows[name] = {**row, "file_name": name, "flagged": row.get("flagged", False)}
                except (ValueError, KeyError, TypeError):
                    raise UserError(
                        f"{file} is damaged: remove it, and the same command makes its images again"
                    ) from None
        return rows

    def _row(self, item: PlannedImage, made: GeneratedImage) -> Row:
        return {
            "file_name": item.file,
            "label": item.name,
            "generator": self.generator,
            **made.metadata,
            "flagged": made.flagged,
        }

    def _part(self, batch: int, suffix: str) -> Path:
        return self.folder / PARTS / f"{batch:06d}.{suffix}"

    def _has(self, batch: int, item: PlannedImage, row: Row | None) -> bool:
        if row is None or row["flagged"]:
            return row is not None
        try:
            return (self.folder / item.file).stat().st_size > 0  # a power failure may have left it empty
        except OSError:
            return False

    def _final(self, rows: Iterable[Row]) -> Iterable[Row]:
        return rows

    def _save_images(self, batch: int, items: Sequence[PlannedImage], made: Sequence[GeneratedImage]) -> None:
        for item, image in zip(items, made, strict=True):
            if not image.flagged:
                write_png(self.folder / item.file, image.image)


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Save uint8 [H, W, 1 or 3] as PNG, atomically."""
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    with atomic_write(path, flush=False) as temporary:
        picture.save(temporary, format="PNG")


def _flat(run: Mapping[str, Any]) -> dict[str, Any]:
    """A run's keys and those of its engine's settings in one flat dictionary."""
    return {**{key: value for key, value in run.items() if key != "settings"}, **run["settings"]}


def _lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
