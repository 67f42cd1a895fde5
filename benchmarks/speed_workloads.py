"""The workloads of the speed benchmark: stock USB and ours on the same images, in two sizes."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from semilearn import get_net_builder
from semilearn.core.utils import ALGORITHMS
from semilearn.datasets.cv_datasets.datasetbase import BasicDataset
from sklearn.datasets import load_digits

from usb_rsmatch.data.pool.image_set import ImageSet
from usb_rsmatch.data.views.hybrid_dataset import PilViews
from usb_rsmatch.usb import training
from usb_rsmatch.usb.compat import cuda_calls_stay_on_cpu
from usb_rsmatch.usb.config import resolve

STEPS = 2_000  # more than are measured: no evaluation, log line or checkpoint falls between
NETWORKS: Mapping[str, Mapping[str, Any]] = {
    "wrn_28_2": {"net": "wrn_28_2", "batch_size": 64, "uratio": 7},
    "small": {"net": "small_wrn_10_1", "batch_size": 16, "uratio": 7},  # config/quickstart
}


def colour_digits(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Embedded digits at 32 px in noisy colours: images uint8 [count, 32, 32, 3] and labels int64 [count]."""
    digits, rng = load_digits(), np.random.default_rng(seed)
    chosen = rng.integers(len(digits.images), size=count)
    grey = np.kron(digits.images[chosen] / 16, np.ones((4, 4)))[..., None]
    images = 255 * grey * rng.uniform(0.5, 1, (count, 1, 1, 3)) + rng.normal(0, 20, (count, 32, 32, 3))
    return images.clip(0, 255).astype(np.uint8), digits.target[chosen]


def write_images(folder: Path) -> None:
    """A folder data set of 600 colour digits and 100 test ones, and an archive of synthetic ones beside it."""
    for part, count in (("train", 600), ("test", 100)):
        for number, (image, label) in enumerate(zip(*colour_digits(count, number_of(part)), strict=True)):
            path = folder / part / str(label) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    images, labels = colour_digits(600, number_of("synthetic"))
    np.savez(folder / "synthetic.npz", image=images, label=labels)


def number_of(part: str) -> int:
    """The seed of a part's images."""
    return ("train", "test", "synthetic").index(part)


def configuration(size: str, folder: Path, **changes: Any) -> dict[str, Any]:
    """A run on the images of `write_images` (`wrn_28_2`) or on embedded digits (`small`), with all that is fast."""
    config: dict[str, Any] = {
        **NETWORKS[size],
        "algorithm": "fixmatch",
        "num_labels": 100,
        "num_train_iter": STEPS,
        "num_eval_iter": STEPS,
        "num_log_iter": STEPS,
        "num_workers": 0,  # as many processes as the other side: one
        "rs_warmup": 0.0,  # RSMatch's every part acts from the first step on
        "rs_loader": "batched",
        "rs_fast": True,
        "device": "cpu",
        "save_dir": str(folder / "runs"),
        "save_name": "benchmark",
    }
    if size == "wrn_28_2":
        config |= {"dataset": "folder", "data_dir": str(folder)}
        config["synthetic"] = [{"source": f"npz:{folder / 'synthetic.npz'}", "generator": "tinted"}]
    else:
        config["dataset"] = "digits"
    return config | changes


def ours(config: Mapping[str, Any]) -> Any:
    """The algorithm of a configuration as `usb-rsmatch train` builds it."""
    args, _ = resolve(config)
    return training.build(args)


def stock(config: Mapping[str, Any]) -> Any:
    """The algorithm of a configuration as USB itself builds it: its class, hooks, samplers, loaders and PIL views.

    Ours are only the images in memory, and what stands in for the GPU that USB's code names.
    """
    args, _ = resolve(config)
    training.complete_args(args)
    pool, seed = args.pool, args.seed
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    views = PilViews(pool.spec, args.img_size, args.crop_ratio)

    def dataset(images: ImageSet, **options: Any) -> BasicDataset:
        rgb = np.repeat(images.images, 3, axis=3) if images.images.shape[3] == 1 else np.asarray(images.images)
        return BasicDataset(args.algorithm, rgb, images.labels, args.num_classes, **options)

    datasets = {
        "train_lb": dataset(pool.labeled, transform=views.weak, strong_transform=views.strong),
        "train_ulb": dataset(pool.unlabeled, transform=views.weak, is_ulb=True, strong_transform=views.strong),
        "eval": dataset(pool.test, transform=views.plain),
        "test": None,
    }
    args.lb_dest_len, args.ulb_dest_len = len(datasets["train_lb"]), len(datasets["train_ulb"])
    kind = type("Stock", (ALGORITHMS[args.algorithm],), {"set_dataset": lambda self: datasets})
    quiet = logging.getLogger("benchmarks.stock")
    quiet.setLevel(logging.WARNING)
    with cuda_calls_stay_on_cpu():
        return kind(args, get_net_builder(args.net, False), logger=quiet)
