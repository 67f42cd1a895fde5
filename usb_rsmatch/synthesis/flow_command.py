"""The flow engine's part of `usb-rsmatch synthesize`: creates the engine, or a file of difficulty scores."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from usb_rsmatch.csv_files import refuse_existing
from usb_rsmatch.data.sources.dataset_registry import RealData
from usb_rsmatch.errors import UserError
from usb_rsmatch.synthesis.difficulty_request import DifficultyRequest
from usb_rsmatch.synthesis.training_images import load_training_images, training_indices

if TYPE_CHECKING:
    from usb_rsmatch.synthesis.flow_engine import FlowEngine

FLOW_BATCH = 128
FLOW_SIZES, LATENT_SIZES = (8, 64), (8, 256)  # px
FLOW_FLAGS = {
    "train_steps": "steps",
    "train_batch_size": "batch_size",
    "width": "width",
    "depth": "depth",
    "lr": "lr",
    "ema": "ema",
    "p_uncond": "p_uncond",
    "p_no_difficulty": "p_no_difficulty",
    "solver": "solver",
    "weights": "weights",
    "steps": "sampler_steps",
    "guidance": "guidance",
}
ONLY_FLOW = (
    "part",
    "cache",
    "difficulty",
    "difficulty_scores",
    "write_difficulty",
    "autoencoder",
    *(flag for flag in FLOW_FLAGS if flag not in ("steps", "guidance")),
)


def flow_engine(args: argparse.Namespace, real: RealData | None, size: int | None, batch: int) -> FlowEngine:
    """The engine that the flags describe. Raises UserError for invalid flags and data."""
    from usb_rsmatch.synthesis.flow_engine import FlowEngine
    from usb_rsmatch.synthesis.flow_settings import FlowSettings

    if args.dtype == "float16":
        raise UserError("--dtype float16: the flow engine trains in float32 or bfloat16; choose one of these")
    if args.depth is not None and args.autoencoder is None:
        raise UserError("--depth is for the latent flow: give --autoencoder too, or remove it")
    real, side = _training_set(real, size, args.autoencoder is not None)
    given = {field: getattr(args, flag) for flag, field in FLOW_FLAGS.items() if getattr(args, flag) is not None}
    if args.dtype != "auto":
        given["bf16"] = args.dtype == "bfloat16"
    part = args.part or "train"
    latent = args.autoencoder is not None
    settings = FlowSettings.for_latents(**given) if latent else FlowSettings.recommended(side, **given)
    request = _request(args)
    latents = None
    if args.autoencoder is not None:
        from usb_rsmatch.autoencoder import open_autoencoder
        from usb_rsmatch.synthesis.flow_settings import pick_device
        from usb_rsmatch.synthesis.latents import LatentSpace

        latents = LatentSpace.of(open_autoencoder(args.autoencoder, pick_device(args.device)), side)
    images, labels = load_training_images(real, part, args.seed, side)
    scores = None if request is None else _scores(args, real, images, labels)
    classes = len(real.classes)
    return FlowEngine(
        images, labels, classes, settings, args.seed, batch, part, args.device, args.cache, scores, request, latents
    )


def make_score_file(args: argparse.Namespace, real: RealData | None) -> str:
    """Write the difficulty scores of the training images to `--write-difficulty`; returns a line about the result.

    Raises UserError for invalid flags and data, and if the file exists.
    """
    from usb_rsmatch.synthesis.difficulty_scores import cached_scores, write_scores

    for flag in ("out", "difficulty", "difficulty_scores"):
        if getattr(args, flag) is not None:
            raise UserError(f"--write-difficulty only makes scores: remove --{flag.replace('_', '-')}")
    path = Path(args.write_difficulty).expanduser()
    refuse_existing(path)
    size = None if args.size is None else int(args.size) if args.size.isdigit() else 0
    real, side = _training_set(real, size, args.autoencoder is not None)
    part = args.part or "train"
    images, labels = load_training_images(real, part, args.seed, side)
    scores = cached_scores(images, labels, len(real.classes), args.seed, args.cache, args.device)
    write_scores(path, scores, real.train, training_indices(real, part, args.seed), labels, real.classes)
    likely = float((scores.probability > 0.5).mean())
    return f"{path}: difficulty of {len(images)} images; unseen classifiers give {likely:.1%} of them their class"


def _training_set(real: RealData | None, size: int | None, latent: bool) -> tuple[RealData, int]:
    """The real data set and the side of its images in pixels. Raises UserError for a missing one and other sides."""
    if real is None:
        raise UserError("--engine flow trains on real images: give --dataset NAME")
    side = real.spec.img_size if size is None else size
    smallest, largest = LATENT_SIZES if latent else FLOW_SIZES
    if not smallest <= side <= largest:
        more = "" if latent else ", or --autoencoder for up to 256 px"
        raise UserError(
            f"the generator makes images of 8 to {largest} px, not {side}: give for example --size 64{more}"
        )
    return real, side


def _request(args: argparse.Namespace) -> DifficultyRequest | None:
    if args.difficulty is None and args.difficulty_scores is None:
        if args.p_no_difficulty is not None:
            raise UserError("--p-no-difficulty needs --difficulty or --difficulty-scores")
        return None
    return DifficultyRequest.parse(args.difficulty or "match")


def _scores(args: argparse.Namespace, real: RealData, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The scores of the training images, from the file or from out-of-fold classifiers."""
    from usb_rsmatch.synthesis.difficulty_scores import cached_scores, read_scores

    if args.difficulty_scores is None:
        return cached_scores(images, labels, len(real.classes), args.seed, args.cache, args.device).score
    rows = training_indices(real, args.part or "train", args.seed)
    return read_scores(args.difficulty_scores, real.train, rows, labels, real.classes)
