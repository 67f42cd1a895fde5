"""An audit's detector as one file: its weights, patches and history, and the real images' scores as reference."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from usb_rsmatch.detection.audit_detector import LinearDetector
from usb_rsmatch.errors import UserError
from usb_rsmatch.inference.file_history import JpegTables
from usb_rsmatch.inference.patches import Patches
from usb_rsmatch.io import atomic_write
from usb_rsmatch.usb.checkpoint import digest
from usb_rsmatch.version import __version__

FORMAT = 2


@dataclass(frozen=True)
class SavedDetector:
    """For each training its folds' detectors, and their scores float64 [n] of real images they were not trained on.

    `tables` are the audited files' JPEG tables as text, "" for other formats; `steps` re-encode new images.
    """

    patches: Patches
    trainings: list[tuple[list[LinearDetector], list[np.ndarray]]]
    tables: list[str]
    steps: list[JpegTables]
    seed: int


def save_detector(saved: SavedDetector, path: Path) -> None:
    """Write a detector, atomically, with a digest of its contents."""
    content: dict[str, Any] = {
        "usb_rsmatch_detector": FORMAT,
        "version": __version__,
        "patches": {"side": saved.patches.side, "channels": saved.patches.channels, "count": saved.patches.count},
        "tables": saved.tables,
        "steps": [step.key() for step in saved.steps],
        "seed": saved.seed,
        "weights": [[torch.from_numpy(d.weights) for d in detectors] for detectors, _ in saved.trainings],
        "offsets": [[d.offset for d in detectors] for detectors, _ in saved.trainings],
        "real_scores": [[torch.from_numpy(scores) for scores in held] for _, held in saved.trainings],
    }
    with atomic_write(path) as temporary:
        torch.save({**content, "digest": digest(content)}, temporary)


def load_detector(path: Path) -> SavedDetector:
    """Read a detector; UserError for a file that is missing, damaged or not a detector. Executes no code from it."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        expected = content.pop("digest")
        kind = content["usb_rsmatch_detector"]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the path") from None
    except Exception:
        raise UserError(f"{path}: not a detector saved by `audit --real`, or incomplete; save one again") from None
    if kind != FORMAT:
        raise UserError(
            f"{path}: made by usb_rsmatch {content.get('version')} in format {kind}, this version reads {FORMAT}"
        )
    if digest(content) != expected:
        raise UserError(f"{path} is damaged: its contents do not match its digest; save one again")
    trainings = [
        ([LinearDetector(w.numpy(), b) for w, b in zip(weights, offsets, strict=True)], [s.numpy() for s in held])
        for weights, offsets, held in zip(content["weights"], content["offsets"], content["real_scores"], strict=True)
    ]
    steps = [JpegTables(tuple(map(tuple, tables)), sampling) for tables, sampling in map(json.loads, content["steps"])]
    return SavedDetector(Patches(**content["patches"]), trainings, content["tables"], steps, content["seed"])
