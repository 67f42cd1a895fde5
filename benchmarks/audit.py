"""Accuracy of the audit on pools with a known share of synthetic images, and on two controls without any.

python -m benchmarks.audit --out results/audit.json

A pool consists of generated images and of real images that are not in the trusted folder; provenance is only used for
evaluation. `auroc` is the AUROC of the audit's score. `supervised` is the AUROC of the same network trained with true
provenance on equally many images, an upper bound. The controls are a pool of real images only (share 0), and real PNG
files compared with real JPEG files, for which the AUROC between trusted and audited images must be near 0.5. In pools
marked `cleared`, pixel values under 8 of 255 are set to 0 in trusted and audited images.
"""

from __future__ import annotations

import argparse
import datetime
import shlex
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from usb_rsmatch.counter_rng import derive, generator
from usb_rsmatch.data.images.reencode import cleared
from usb_rsmatch.data.sources.dataset_registry import open_real
from usb_rsmatch.detection import audit_detector
from usb_rsmatch.detection.detector import ResidualDetector, blur_residual
from usb_rsmatch.detection.metrics import auroc
from usb_rsmatch.errors import UserError
from usb_rsmatch.inference.audit import Audit, audit_with_real
from usb_rsmatch.inference.input_images import ArrayImage, ImageList, open_images
from usb_rsmatch.io import write_json
from usb_rsmatch.synthesis.flow import FlowSettings, make_images
from usb_rsmatch.usb import training

SHARES = (0.0, 0.05, 0.2, 0.5, 0.8)
GOAL = 0.05  # largest accepted difference between share and estimate
CLEARED = 8  # pixel values below this become 0 in settings with `cleared`
SUPERVISED_STEPS = 600


@dataclass(frozen=True)
class Setting:
    """Pools of one generator. `sampler` replaces recommended FlowSettings; `trusted` and `pool` count images."""

    name: str
    dataset: str
    sampler: Mapping[str, Any]
    trusted: int
    pool: int
    seeds: tuple[int, ...]
    cleared: bool = False
    shares: tuple[float, ...] = SHARES


SETTINGS = (
    Setting("digits, 3 steps", "digits", {"guidance": 1, "sampler_steps": 3, "solver": "euler"}, 700, 1000, (0, 1, 2)),
    Setting("digits, 16 steps", "digits", {}, 700, 1000, (0,), shares=(0.5,)),
    Setting("garments", "fashionmnist", {}, 2000, 2000, (0,), cleared=True),
)
QUICK = (Setting("digits, 3 steps", "digits", {"steps": 30, "sampler_steps": 3, "solver": "euler"}, 60, 80, (0,)),)


def measure(settings: Sequence[Setting], data_dir: Path, log: Any = print) -> dict[str, Any]:
    """Audit all pools of every setting whose data set is available, and one control.

    Raises UserError if no data set is available.
    """
    pools: list[dict[str, Any]] = []
    control: dict[str, Any] | None = None
    skipped: dict[str, str] = {}
    for setting in settings:
        try:
            real, generated = _images(setting, data_dir)
        except UserError as error:
            skipped[setting.name] = str(error)
            log(f"skipped: {setting.name}: {error}")
            continue
        upper_bound = supervised_auroc(real, generated, setting)
        for share in setting.shares:
            for seed in setting.seeds:
                pools.append(one_pool(setting, real, generated, share, seed) | {"supervised": upper_bound})
                log(pool_line(pools[-1]))
        if control is None:
            control = reencoded_control(real, setting)
            log(f"control, real and re-encoded real images: {control}")
    if not pools:
        raise UserError(f"no data set is available: {'; '.join(skipped.values())}")
    near = [abs(p["estimate"] - p["share"]) <= GOAL for p in pools]
    covered = [p["low"] <= p["share"] <= p["high"] for p in pools]
    return {
        "pools": pools,
        "within_5_points": {"count": sum(near), "of": len(near)},
        "interval_coverage": {"count": sum(covered), "of": len(covered), "nominal": 0.95},
        "negative_control": control,
        "skipped": skipped,
    }


def one_pool(setting: Setting, real: np.ndarray, generated: np.ndarray, share: float, seed: int) -> dict[str, Any]:
    """Audit one pool with a share of synthetic images; return true share, estimate and conditions."""
    rng = generator(seed, "bench audit", setting.name)
    order, count = rng.permutation(len(real)), round(share * setting.pool)
    trusted = real[order[: setting.trusted]]
    rest = real[order[setting.trusted : setting.trusted + setting.pool - count]]
    made = generated[rng.permutation(len(generated))[:count]]
    started, cpu = time.perf_counter(), time.process_time()
    audit, _ = audit_with_real(_listed(trusted, "real"), _listed(np.concatenate([rest, made]), "pool"), seed)
    truth = np.arange(setting.pool) >= setting.pool - count
    return {
        "generator": setting.name,
        "cleared": setting.cleared,
        "seed": seed,
        "share": share,
        "estimate": audit.share.estimate,
        "low": audit.share.low,
        "high": audit.share.high,
        "auroc": auroc(audit.score, truth),
        "trusted": setting.trusted,
        "images": setting.pool,
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
    }


def reencoded_control(real: np.ndarray, setting: Setting) -> dict[str, Any]:
    """Audit real JPEG files (quality 90) with other real images, PNG files, as trusted: no image is synthetic."""
    order = generator(0, "bench control").permutation(len(real))
    half = min(len(order) // 2, setting.trusted)
    with tempfile.TemporaryDirectory() as name:
        for side, rows, suffix in (("png", order[:half], "png"), ("jpeg", order[half : 2 * half], "jpg")):
            (Path(name) / side).mkdir()
            for row in rows:
                pixels = real[row, ..., 0] if real.shape[-1] == 1 else real[row]
                Image.fromarray(pixels).save(Path(name) / side / f"{row}.{suffix}", quality=90)
        folders = [open_images([Path(name) / side]) for side in ("png", "jpeg")]
        found = {}
        for key, jpeg in (("both_reencoded", "auto"), ("as_they_are", None)):
            audit, _ = audit_with_real(folders[0], folders[1], 0, jpeg=jpeg)
            share = audit.share
            found[key] = {
                "auroc": trusted_pool_auroc(audit),
                "estimate": share.estimate,
                "low": share.low,
                "high": share.high,
                "jpeg": audit.pipeline.jpeg,
            }
    return {"dataset": setting.dataset, "images": half, **found}


def trusted_pool_auroc(audit: Audit) -> float:
    """Return the AUROC between held-out trusted and held-out audited images, mean over the audit's detectors."""
    values = []
    for part in audit.parts:
        scores, truth = (
            np.concatenate([part.real, part.pool]),
            np.repeat([False, True], [len(part.real), len(part.pool)]),
        )
        values.append(auroc(scores, truth) or 0.5)
    return float(np.mean(values))


def supervised_auroc(real: np.ndarray, generated: np.ndarray, setting: Setting) -> float:
    """Train the audit's network with true provenance on half of the images; return its AUROC on the other half."""
    seed = derive(0, "bench supervised", setting.name)
    rng, half = generator(seed, "rows"), min(setting.pool, len(real), len(generated)) // 2
    sides = [images[rng.permutation(len(images))[: 2 * half]] for images in (real, generated)]
    look = audit_detector.Look.of(sides[0])
    tensors = [look(torch.from_numpy(np.ascontiguousarray(s.transpose(0, 3, 1, 2)))) for s in sides]
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        detector = ResidualDetector(blur_residual, audit_detector.WIDTH)
    optimiser = torch.optim.AdamW(
        detector.parameters(), audit_detector.LEARNING_RATE, weight_decay=audit_detector.WEIGHT_DECAY
    )
    for step in range(SUPERVISED_STEPS):
        rows = generator(seed, "batch", step).integers(0, half, (2, audit_detector.BATCH))
        out = detector(torch.cat([side[torch.from_numpy(r)] for side, r in zip(tensors, rows, strict=True)]))
        loss = F.softplus(out[: audit_detector.BATCH]).mean() + F.softplus(-out[audit_detector.BATCH :]).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    scores = np.concatenate([audit_detector.logits(detector, side[half:], look) for side in sides])
    return auroc(scores, np.repeat([False, True], half)) or 0.5


def _images(setting: Setting, data_dir: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return real and generated images uint8 [N, H, W, C]; the generator is trained on the whole training set."""
    data = open_real(setting.dataset, data_dir)
    size, channels = data.spec.img_size, data.spec.channels
    train = data.train.load(np.arange(len(data.train)), size, channels)
    made, _ = make_images(
        train,
        data.train.labels,
        len(data.classes),
        round(max(setting.shares) * setting.pool),
        FlowSettings.recommended(size, **setting.sampler),
        0,
    )
    real = np.concatenate([train, data.test.load(np.arange(len(data.test)), size, channels)])
    if setting.cleared:
        real, made = (cleared(images, CLEARED) for images in (real, made))
    return real, made


def _listed(images: np.ndarray, name: str) -> ImageList:
    items = [ArrayImage(images, row) for row in range(len(images))]
    return ImageList([f"{name} {row}" for row in range(len(images))], items)


def pool_line(pool: Mapping[str, Any]) -> str:
    """Return the log line of a pool."""
    found = "-" if pool["auroc"] is None else f"{pool['auroc']:.3f}"
    return (
        f"{pool['generator']:18s} seed {pool['seed']}  share {pool['share']:4.0%}  estimate {pool['estimate']:6.1%} "
        f"({pool['low']:.1%} to {pool['high']:.1%})  AUROC {found}, supervised {pool['supervised']:.3f}, "
        f"{pool['cpu_seconds']:.0f} s"
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.audit", description=__doc__)
    parser.add_argument("--out", required=True, metavar="FILE", help="output file (JSON)")
    parser.add_argument("--data-dir", default="./data", metavar="DIR", help="folder of the data sets")
    parser.add_argument("--only", default=None, metavar="TEXT", help="only settings whose name contains TEXT")
    parser.add_argument("--quick", action="store_true", help="trial run with tiny pools: its numbers are meaningless")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    settings = QUICK if args.quick else [s for s in SETTINGS if args.only is None or args.only in s.name]
    try:
        result = measure(settings, Path(args.data_dir), log=lambda text: print(text, flush=True))
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    words = ["python", "-m", "benchmarks.audit", *(sys.argv[1:] if argv is None else argv)]
    result |= {
        "command": shlex.join(words),
        "quick": args.quick,
        "threads": 1,
        "versions": training.versions(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    write_json(args.out, result)
    near, covered = result["within_5_points"], result["interval_coverage"]
    print(f"within 5 points: {near['count']} of {near['of']}; intervals that contain the share: {covered['count']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
