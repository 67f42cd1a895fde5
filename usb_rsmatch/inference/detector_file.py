"""An audit's detector as one file: its networks, the preprocessing, and the real images' scores as reference."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from usb_rsmatch.data.pool.preprocessing import Pipeline
from usb_rsmatch.detection.audit_detector import WIDTH, Look
from usb_rsmatch.detection.detector import ResidualDetector, blur_residual
from usb_rsmatch.errors import UserError
from usb_rsmatch.io import atomic_write
from usb_rsmatch.usb.checkpoint import digest
from usb_rsmatch.version import __version__

FORMAT = 1


@dataclass(frozen=True)
class SavedDetector:
    """One detector per fold, and its logits float32 [n] of the real images on which it was not trained."""

    pipeline: Pipeline
    look: Look
    detectors: list[ResidualDetector]
    real_scores: list[np.ndarray]
    seed: int


def save_detector(saved: SavedDetector, path: Path) -> None:
    """Write a detector, atomically, with a digest of its contents."""
    content: dict[str, Any] = {
        "usb_rsmatch_detector": FORMAT,
        "version": __version__,
        "pipeline": {"size": saved.pipeline.size, "channels": saved.pipeline.channels, "jpeg": saved.pipeline.jpeg},
        "mean": list(saved.look.mean),
        "std": list(saved.look.std),
        "width": WIDTH,
        "seed": saved.seed,
        "detectors": [dict(detector.state_dict()) for detector in saved.detectors],
        "real_scores": [torch.from_numpy(scores) for scores in saved.real_scores],
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
    detectors = []
    for state in content["detectors"]:
        detector = ResidualDetector(blur_residual, content["width"])
        detector.load_state_dict(state)
        detectors.append(detector.eval().requires_grad_(False))
    return SavedDetector(
        Pipeline(**content["pipeline"]),
        Look(tuple(content["mean"]), tuple(content["std"])),
        detectors,
        [scores.numpy() for scores in content["real_scores"]],
        content["seed"],
    )
