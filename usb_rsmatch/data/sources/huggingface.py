"""Source `hf:PATH`: Hugging Face `datasets` data sets saved to disk; needs the package `datasets`."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from usb_rsmatch.data.images.hashes import bytes_digests, content_order
from usb_rsmatch.data.sources.folder import folder
from usb_rsmatch.data.sources.metadata import LABEL_COLUMNS
from usb_rsmatch.data.sources.registry import SourceRequest
from usb_rsmatch.data.sources.source import FileSource, Source
from usb_rsmatch.errors import UserError


def open_hf(argument: str, request: SourceRequest) -> Source:
    """A data set saved with `save_to_disk`; of several splits the one named `split` ("train").

    Its one Image column is read; the first of the columns `LABEL_COLUMNS` contains the classes, as names or
    numbers. Raises UserError if the package is missing or the folder contains something else.
    """
    request.reject_options(argument, "split")
    try:
        import datasets
    except ImportError:
        raise UserError(f"hf:{argument} needs the package `datasets`: pip install 'usb-rsmatch[datasets]'") from None
    root = folder(argument)
    try:
        opened = datasets.load_from_disk(str(root))
    except (OSError, ValueError) as error:
        raise UserError(f"{root}: not a data set saved by `datasets` ({error}); check the path") from None
    if isinstance(opened, datasets.DatasetDict):
        split = str(request.options.get("split", "train"))
        if split not in opened:
            raise UserError(f"{root}: has no split {split!r}, only {', '.join(opened)}; set the source's `split`")
        opened = opened[split]
    pictures = [name for name, kind in opened.features.items() if isinstance(kind, datasets.Image)]
    if len(pictures) != 1:
        raise UserError(f"{root}: has {len(pictures)} image columns, must have one")
    stored = opened.cast_column(pictures[0], datasets.Image(decode=False))[pictures[0]]
    labels = _labels(opened, request, root)
    files = [_content(entry) for entry in stored]
    order = content_order(bytes_digests(files))
    return FileSource(str(root), [files[i] for i in order], labels[order], (request.generator,), numbers=order)


def _content(entry: Mapping[str, Any] | None) -> bytes:
    """The bytes of one image's file; empty if there is none, which is reported when the image is read."""
    if entry is None:
        return b""
    with contextlib.suppress(OSError):
        return entry["bytes"] or Path(entry["path"] or "").read_bytes()
    return b""


def _labels(opened: Any, request: SourceRequest, root: Path) -> np.ndarray:
    by_name = {name.casefold(): name for name in reversed(list(opened.features))}
    column = next((by_name[name] for name in LABEL_COLUMNS if name in by_name), None)
    if column is None:
        return np.full(len(opened), -1)
    names = getattr(opened.features[column], "names", None)
    values = [None if value is None or value == -1 else value for value in opened[column]]
    texts = [value if value is None else str(names[value] if names else value) for value in values]
    return request.classes.of_names(texts, str(root), numeric=True)
