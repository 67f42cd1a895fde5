"""`usb-rsmatch synthesize`: creates the engine and the plan from the flags, then generates the images batch by
batch.
"""

from __future__ import annotations

import argparse
import errno
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from usb_rsmatch.data.images.decode import fit
from usb_rsmatch.data.sources.dataset_registry import RealData, open_real
from usb_rsmatch.errors import Interrupted, UserError
from usb_rsmatch.io import write_json
from usb_rsmatch.progress import Progress
from usb_rsmatch.synthesis.class_descriptions import choose_classes, describe_classes
from usb_rsmatch.synthesis.dataset_card import figure, read_quality, write_card
from usb_rsmatch.synthesis.deferred_interrupt import DeferredInterrupt
from usb_rsmatch.synthesis.engine import Engine, is_out_of_memory
from usb_rsmatch.synthesis.flow_command import FLOW_BATCH, FLOW_SIZES, ONLY_FLOW, flow_engine, make_score_file
from usb_rsmatch.synthesis.npz_output import IMAGES_PER_FILE, NpzOutput
from usb_rsmatch.synthesis.output import Output
from usb_rsmatch.synthesis.plan import Plan, PlannedImage
from usb_rsmatch.synthesis.training_images import load_training_images
from usb_rsmatch.version import __version__

DIFFUSERS_BATCH = 8
REPORT_IMAGES = 10_000  # largest number of generated images; more hardly change the classifier's figures
PIPELINE_FLAGS = ("preset", "model", "revision", "unet", "resolution", "negative_prompt")
ONLY_DIFFUSERS = (*PIPELINE_FLAGS, "prompt", "prompts", "names", "t5")


def run(args: argparse.Namespace) -> str:
    """Run the command with the flags of `arguments.py`; returns a line about the result.

    Raises UserError for invalid flags, data and models, and Interrupted after a stop request; the
    same command then resumes.
    """
    foreign = ONLY_DIFFUSERS if args.engine == "flow" else ONLY_FLOW
    if strange := [name for name in foreign if getattr(args, name) is not None]:
        flag = "--" + strange[0].replace("_", "-")
        raise UserError(f"{flag} cannot be combined with --engine {args.engine}; remove it")
    for name in ("count", "per_class", "batch_size", "steps", "resolution"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: must be at least 1")
    if args.guidance is not None and not 0 <= args.guidance < math.inf:
        raise UserError(f"--guidance {args.guidance}: must be a number of at least 0")
    real = open_real(args.dataset, args.data_dir, args.labels) if args.dataset else None
    if args.write_difficulty is not None:
        return make_score_file(args, real)
    if args.out is None:
        raise UserError("the output folder is missing: give --out DIR")
    classes, chosen = choose_classes(args.classes, real.classes if real else None)
    if args.report and real is None:
        raise UserError("--report needs real images for comparison: give --dataset NAME")
    count = _count(args, len(chosen))
    size = _size(args, real)
    channels = real.spec.channels if real else 3
    batch = args.batch_size or (FLOW_BATCH if args.engine == "flow" else DIFFUSERS_BATCH)
    packed = args.format == "npz"
    plan = Plan(classes, chosen, count, batch, max(1, IMAGES_PER_FILE // batch) if packed else 1)
    groups = plan.groups_of_shard(args.shard)
    if args.engine == "flow":
        engine: Engine = flow_engine(args, real, size, batch)
    else:
        engine = _diffusion_engine(args, classes, chosen, size, channels)
    generator = args.name or engine.generator
    identity = {
        "engine": args.engine,
        "generator": generator,
        "dataset": args.dataset,
        "classes": [classes[c] for c in chosen],
        "label_names": list(classes),
        "count": count,
        "seed": args.seed,
        "size": size,
        "channels": channels,
        "format": args.format,
        "batch_size": batch,
        "settings": dict(engine.settings),
        "versions": _versions(args.engine),
    }
    output = (NpzOutput if packed else Output)(Path(args.out).expanduser(), plan, identity, generator)
    for note in output.notes:
        print(f"note: {note}", file=sys.stderr)
    try:
        with DeferredInterrupt() as stop:
            made = fill(output, engine, groups, stop)
            return _close(args, output, real, made, stop)
    except KeyboardInterrupt:
        raise Interrupted(f"stopped with {_progress(output)}; the same command resumes") from None
    except OSError as error:
        full = error.errno in (None, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # None: of Pillow's encoders
        remedy = "free space there" if full else "make it writable (or choose another --out)"
        why = f"{error.strerror or error}, with {_progress(output)}"
        raise UserError(f"{output.folder}: {why}; {remedy}, then the same command resumes") from error


def fill(output: Output, engine: Engine, groups: Sequence[int], stop: DeferredInterrupt) -> int:
    """Make the missing batches of some groups; returns the number of images made.

    Raises UserError if there is not enough memory, with a batch size that fits.
    """
    plan = output.plan
    todo = {group: [batch for batch in plan.batches_of(group) if not output.is_done(batch)] for group in groups}
    total = sum(len(plan.items(batch)) for group in groups for batch in plan.batches_of(group))
    left = sum(len(plan.items(batch)) for batches in todo.values() for batch in batches)
    if left:
        engine.prepare()
    with Progress(total, "making images", done=total - left) as progress:
        for group, batches in todo.items():
            for batch in batches:
                items = plan.items(batch)
                made = _generate_batch(engine, items)
                with stop.deferred():
                    output.save(batch, items, made, engine.texts())
                progress.update(len(items))
            with stop.deferred():
                output.close_group(group)
    return left


def _generate_batch(engine: Engine, items: Sequence[PlannedImage]) -> list[Any]:
    try:
        return engine.make(items)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    size = len(items)
    while size > 1:  # outside of the except block, which would keep the tensors of the failed call in memory
        size //= 2
        if _fits(engine, items[:size]):
            raise UserError(f"out of memory with {len(items)} images at once; {size} fit: give --batch-size {size}")
    raise UserError("out of memory even with one image at once: give --dtype float16 or bfloat16, or another --device")


def _fits(engine: Engine, items: Sequence[PlannedImage]) -> bool:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        engine.attempt(items)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True


def _close(args: argparse.Namespace, output: Output, real: RealData | None, made: int, stop: DeferredInterrupt) -> str:
    """Finish the folder if everything is done; returns a line about the result."""
    output.refresh()
    if not output.complete():
        return f"shard {args.shard}: {made} images made, {_progress(output)} are in {output.folder}"
    if made or not (output.folder / "metadata.jsonl").is_file():
        with stop.deferred():
            output.finish()
    if args.report and real is not None:
        measure_quality(output, real, args.seed, args.device)
    quality = read_quality(output.folder)
    with stop.deferred():
        write_card(output, quality, "npz" if args.format == "npz" else "folder")
    kept = len(output.kept())
    flagged = f", {output.plan.count - kept} removed by the safety checker" if kept < output.plan.count else ""
    figures = f"\n{_figures(quality)}" if quality and args.report else ""
    return f"{output.folder}: {kept} images by {output.generator}{flagged}{'' if made else ', already done'}{figures}"


def _figures(quality: Mapping[str, Any]) -> str:
    accuracy, real_accuracy = figure(quality["class_accuracy"]), figure(quality["real_class_accuracy"])
    frechet, real_frechet = figure(quality["classifier_frechet"]), figure(quality["real_classifier_frechet"])
    return (
        f"accuracy on the intended class {accuracy} (held-out real images {real_accuracy}), "
        f"classifier Frechet distance {frechet} ({real_frechet}), diversity {figure(quality['diversity'])} (1)"
    )


def measure_quality(output: Output, real: RealData, seed: int, device: str) -> None:
    """Measure the output's quality against the real training images and write it to `quality.json`."""
    from usb_rsmatch.synthesis.quality import measure

    if (output.folder / "quality.json").is_file():
        return
    items = output.kept()[:REPORT_IMAGES]
    if not items:
        raise UserError(f"{output.folder}: the safety checker removed every image, so that there is nothing to measure")
    side = min(max(output.run["size"] or real.spec.img_size, FLOW_SIZES[0]), FLOW_SIZES[1])
    channels = real.spec.channels
    pictures = (Image.fromarray(p[..., 0] if p.shape[-1] == 1 else p) for p in output.load(items))
    images = np.stack([fit(picture, side, channels) for picture in pictures])
    labels = np.array([item.label for item in items], dtype=np.int64)
    real_images, real_labels = load_training_images(real, "train", seed, side)
    print("evaluating the images by a classifier of the real ones", file=sys.stderr)
    figures = measure(real_images, real_labels, images, labels, len(real.classes), device=device)
    write_json(output.folder / "quality.json", {k: None if v != v else v for k, v in asdict(figures).items()})


def _diffusion_engine(
    args: argparse.Namespace, classes: Sequence[str], chosen: Sequence[int], size: int | None, channels: int
) -> Engine:
    from usb_rsmatch.synthesis import prompts
    from usb_rsmatch.synthesis.diffusion import DiffusionEngine, DiffusionSettings

    prompt_flags = [flag for flag in ("prompt", "prompts", "t5") if getattr(args, flag) is not None]
    if len(prompt_flags) > 1:
        raise UserError(f"--{prompt_flags[0]} and --{prompt_flags[1]} are both given; keep one of them")
    descriptions = describe_classes([classes[c] for c in chosen], args.names)
    settings: Mapping[str, str] = {}
    if args.t5:
        class_prompts, settings = prompts.from_t5(args.t5, args.t5_input, args.sentences, descriptions, args.seed)
    elif args.prompts:
        class_prompts = prompts.from_file(args.prompts, descriptions)
    else:
        class_prompts = prompts.from_templates(args.prompt or prompts.TEMPLATES, descriptions)
    names = (*PIPELINE_FLAGS, "steps", "guidance", "device", "dtype")
    requested = DiffusionSettings(**{name: getattr(args, name) for name in names})
    engine = DiffusionEngine(requested, class_prompts, size, channels, args.seed)
    engine.settings = {**engine.settings, **settings}
    return engine


def _count(args: argparse.Namespace, classes: int) -> int:
    if (args.count is None) == (args.per_class is None):
        raise UserError("the number of images is missing or given twice: give either --count N or --per-class N")
    return args.count or args.per_class * classes


def _size(args: argparse.Namespace, real: RealData | None) -> int | None:
    """The requested side, else the data set's; None for images that are not resized."""
    if args.size == "full" and args.engine == "flow":
        raise UserError("--size full needs --engine diffusers; give a side in pixels")
    if args.size == "full" or (args.size is None and real is None):
        return None
    if args.size is None:
        return real.spec.img_size if real else None
    if not args.size.isdigit() or int(args.size) < 4:
        raise UserError(f"--size {args.size}: must be a side in pixels, at least 4, or full")
    return int(args.size)


def _progress(output: Output) -> str:
    output.refresh()
    plan = output.plan
    done = sum(len(plan.items(batch)) for batch in range(len(plan)) if output.is_done(batch))
    return f"{done} of {plan.count} images"


def _versions(engine: str) -> dict[str, str]:
    packages = ("torch", "numpy", "pillow", *(("diffusers", "transformers") if engine == "diffusers" else ()))
    return {"usb_rsmatch": __version__, **{name: metadata.version(name) for name in packages}}
