"""Accuracy of the audit on pools with a known share of synthetic images, and on real images of other file histories.

python -m benchmarks.audit --out results/audit.json --photos DIR

DIR holds photographs in `matched/train` and generated ones in `latent_flow`, ... (docs/audit.md); without it, only
digits are audited. Provenance is used for evaluation alone. `coverage` counts pools for which a share was stated,
`calibration_error` their images' probabilities. Finished pools are kept in the file: the same command resumes.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter

from usb_rsmatch.counter_rng import generator
from usb_rsmatch.data.sources.dataset_registry import open_real
from usb_rsmatch.detection.audit_verdict import SHARE
from usb_rsmatch.detection.metrics import auroc
from usb_rsmatch.errors import UserError
from usb_rsmatch.inference.audit import Audit, audit_with_real
from usb_rsmatch.inference.input_images import ImageList, open_images
from usb_rsmatch.io import write_json
from usb_rsmatch.synthesis.flow import FlowSettings, make_images
from usb_rsmatch.usb import run_facts

SHARES = (0.0, 0.02, 0.05, 0.1, 0.25, 0.5, 0.8, 1.0)
GENERATORS = ("latent_flow", "latent_flow_guided", "latent_flow_8steps")
TRUSTED, POOL = 1000, 2000
FIRST_SEED = 100
BINS = 10  # of probability, for the calibration error
Edit = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True)
class Control:
    """Real images after `edit`, saved as `suffix` with `options`, audited against real images as they are."""

    edit: Edit
    suffix: str
    options: dict[str, Any]


def _resized(factor: float, kernel: Image.Resampling) -> Edit:
    return lambda im: im.resize((round(im.width * factor),) * 2, kernel).resize(im.size, kernel)


def _same(image: Image.Image) -> Image.Image:
    return image


CONTROLS = {
    **{f"JPEG {q}": Control(_same, "jpg", {"quality": q}) for q in (30, 40, 60, 90, 98)},
    "JPEG 90, 4:4:4": Control(_same, "jpg", {"quality": 90, "subsampling": 0}),
    "PNG of a JPEG": Control(_same, "png", {}),
    "WebP 80": Control(_same, "webp", {"quality": 80}),
    "resized to 22 px and back": Control(_resized(22 / 32, Image.Resampling.BILINEAR), "jpg", {"quality": 75}),
    "resized to 29 px and back": Control(_resized(0.9, Image.Resampling.LANCZOS), "jpg", {"quality": 75}),
    "enlarged by 1.5 and back": Control(_resized(1.5, Image.Resampling.BICUBIC), "jpg", {"quality": 75}),
    "sharpened by 60 %": Control(lambda im: im.filter(ImageFilter.UnsharpMask(1, 60, 0)), "jpg", {"quality": 75}),
    "brightened by 20 %": Control(lambda im: ImageEnhance.Brightness(im).enhance(1.2), "jpg", {"quality": 75}),
    "contrast up by 20 %": Control(lambda im: ImageEnhance.Contrast(im).enhance(1.2), "jpg", {"quality": 75}),
}


def photo_files(folder: Path) -> list[str]:
    """The image files below a folder, sorted; UserError if there is none."""
    return sorted(open_images([folder]).names)


def photo_pools(folder: Path, seeds: Sequence[int]) -> Iterator[tuple[dict[str, Any], Callable[[], dict[str, Any]]]]:
    """The key of each photo pool, and a function that measures it; the first seed alone has all controls."""
    real = photo_files(folder / "matched" / "train")
    made = {name: photo_files(folder / name) for name in GENERATORS if (folder / name).is_dir()}
    for seed in seeds:
        order = generator(seed, "bench audit").permutation(len(real))
        shuffled = [real[row] for row in order[: TRUSTED + POOL]]
        if seed == seeds[0]:
            for name, control in CONTROLS.items():
                yield {"control": name, "seed": seed}, partial(measured_control, control, shuffled, seed)
        for share in SHARES:
            for name, files in made.items() if share else (("none", []),):
                yield (
                    {"generator": name, "share": share, "seed": seed},
                    partial(measured_photos, shuffled, files, share, seed),
                )


def digit_pools(data_dir: Path, seeds: Sequence[int], count: int) -> Iterator[tuple[dict[str, Any], Any]]:
    """The same for digits of 8 px and a flow of 3 steps that is trained here; `count` images are audited."""
    data = open_real("digits", data_dir)
    size = data.spec.img_size
    train = data.train.load(np.arange(len(data.train)), size, 1)
    real = np.concatenate([train, data.test.load(np.arange(len(data.test)), size, 1)])
    settings = FlowSettings.recommended(size, guidance=1, sampler_steps=3, solver="euler")
    made: list[np.ndarray] = []
    for seed in seeds:
        for share in (0.0, 0.25, 0.5, 1.0):

            def measure(share: float = share, seed: int = seed) -> dict[str, Any]:
                if not made:
                    made.append(make_images(train, data.train.labels, len(data.classes), count, settings, 0)[0])
                shuffled = real[generator(seed, "bench audit").permutation(len(real))]
                synthetic = round(share * count)
                rest = shuffled[-count:][: count - synthetic]
                pool = ImageList.of_array(np.concatenate([rest, made[0][:synthetic]]))
                return measured_pool(ImageList.of_array(shuffled[:-count]), pool, share, seed)

            yield {"generator": "digits flow, 3 steps", "share": share, "seed": seed}, measure


def measured_photos(real: Sequence[str], made: Sequence[str], share: float, seed: int) -> dict[str, Any]:
    """A pool of files; the first `TRUSTED` real ones are trusted."""
    pool = open_images(_mixed(real[TRUSTED:], made, share, seed))
    return measured_pool(open_images(real[:TRUSTED]), pool, share, seed)


def measured_pool(real: ImageList, pool: ImageList, share: float, seed: int) -> dict[str, Any]:
    """One audited pool, whose last images are synthetic; with the bins of its probabilities."""
    started, cpu = time.perf_counter(), time.process_time()
    audit, _ = audit_with_real(real, pool, seed)
    seconds, used = time.perf_counter() - started, time.process_time() - cpu
    truth = np.arange(len(pool)) >= len(pool) - round(share * len(pool))
    place = np.minimum((audit.probability * BINS).astype(int), BINS - 1)
    bins = [
        [int((place == b).sum()), float(audit.probability[place == b].sum()), int(truth[place == b].sum())]
        for b in range(BINS)
    ]
    return {
        **_said(audit),
        "auroc": auroc(audit.score, truth),
        "trusted": len(real),
        "images": len(pool),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(used, 1),
        "bins": bins,
    }


def measured_control(control: Control, real: Sequence[str], seed: int) -> dict[str, Any]:
    """The audit of as many edited real images as trusted ones."""
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(real[TRUSTED : 2 * TRUSTED]):
            with Image.open(name) as image:
                path = Path(folder) / f"{number}.{control.suffix}"
                control.edit(image.convert("RGB")).save(path, **control.options)
        audit, _ = audit_with_real(open_images(real[:TRUSTED]), open_images([folder]), seed)
    return _said(audit)


def summary(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures that the documentation quotes; None where nothing was measured."""
    pools = [entry for entry in entries if "share" in entry]
    stated = [pool for pool in pools if pool["said"] == SHARE]
    controls = [entry for entry in entries if "control" in entry]
    bins = np.sum([pool["bins"] for pool in stated], axis=0) if stated else np.zeros((BINS, 3))
    error = np.abs(bins[:, 1] - bins[:, 2]).sum() / max(1, bins[:, 0].sum())
    distances = [abs(control["apart"] - 0.5) for control in controls if control["said"] == SHARE]
    large = [pool for pool in stated if pool["images"] >= POOL]
    return {
        "coverage": float(np.mean([p["low"] <= p["share"] <= p["high"] for p in stated])) if stated else None,
        "stated": len(stated),
        "half_width_median": float(np.median([(p["high"] - p["low"]) / 2 for p in large])) if large else None,
        "cannot_tell": sum(pool["said"] == "cannot tell" for pool in pools),
        "histories_differ": sum(pool["said"] == "histories differ" for pool in pools),
        "control_auroc_max": 0.5 + max(distances) if distances else None,
        "controls_refused": sum(control["said"] != SHARE for control in controls),
        "controls_false": sum(control["said"] == SHARE and control["low"] > 0 for control in controls),
        "calibration_error": float(error) if stated else None,
        "reliability": bins.tolist(),
        "seconds_2000": float(np.median([p["seconds"] for p in pools if p["images"] >= POOL])) if large else None,
        "cpu_seconds_2000": float(np.median([p["cpu_seconds"] for p in pools if p["images"] >= POOL]))
        if large
        else None,
    }


def _said(audit: Audit) -> dict[str, Any]:
    found = audit.verdict
    return {
        "said": found.said,
        "estimate": found.share.estimate,
        "low": found.share.low,
        "high": found.share.high,
        "apart": found.apart,
        "separation": found.separation,
    }


def _mixed(real: Sequence[str], made: Sequence[str], share: float, seed: int) -> list[str]:
    synthetic = round(share * POOL)
    chosen = generator(seed, "bench audit", "made").permutation(len(made))[:synthetic]
    return [*real[: POOL - synthetic], *(made[row] for row in chosen)]


def _line(entry: dict[str, Any]) -> str:
    name = entry.get("control") or f"{entry['generator']} {entry['share']:.0%}"
    return (
        f"{name:28s} seed {entry['seed']}  {entry['said']:16s} {entry['estimate']:6.1%} "
        f"({entry['low']:.1%} to {entry['high']:.1%})  AUROC of sides {entry['apart']:.3f}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.audit", description=__doc__)
    parser.add_argument("--out", required=True, metavar="FILE", help="output file (JSON)")
    parser.add_argument("--photos", default=None, metavar="DIR", help="folder of photographs, see docs/audit.md")
    parser.add_argument("--data-dir", default="./data", metavar="DIR", help="folder of the data sets")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds, from 100; default: 3")
    parser.add_argument("--max-minutes", type=float, default=None, metavar="M", help="stop after M minutes, to resume")
    parser.add_argument("--quick", action="store_true", help="trial run with tiny pools: its numbers are meaningless")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    out, began = Path(args.out), time.monotonic()
    seeds = range(FIRST_SEED, FIRST_SEED + (1 if args.quick else args.seeds))
    try:
        planned = list(photo_pools(Path(args.photos), seeds)) if args.photos else []
        planned += list(digit_pools(Path(args.data_dir), seeds, 100 if args.quick else 1000))
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    entries: list[dict[str, Any]] = json.loads(out.read_text())["pools"] if out.exists() else []
    words = ["python", "-m", "benchmarks.audit", *(sys.argv[1:] if argv is None else argv)]
    for key, measure in planned:
        if any(key.items() <= entry.items() for entry in entries):
            continue
        if args.max_minutes is not None and time.monotonic() - began > 60 * args.max_minutes:
            break
        entries.append({**key, **measure()})
        print(_line(entries[-1]), flush=True)
        result = {
            "pools": entries,
            **summary(entries),
            "planned": len(planned),
            "command": shlex.join(words),
            "quick": args.quick,
            "threads": 1,
            "versions": run_facts.versions(),
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        }
        write_json(out, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
