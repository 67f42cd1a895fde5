"""Workloads of the speed benchmark: stock USB's algorithms and ours on the same images, with two networks."""

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

STEPS = 2_000  # more than are measured, so that no evaluation, log line or checkpoint is timed
NETWORKS: Mapping[str, Mapping[str, Any]] = {
    "wrn_28_2": {"net": "wrn_28_2", "batch_size": 64, "uratio": 7},
    "small": {"net": "small_wrn_10_1", "batch_size": 16, "uratio": 7},  # config/quickstart
}


def colour_digits(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return scikit-learn's digits at 32 px in noisy colours: images uint8 [count, 32, 32, 3], labels int64 [count]."""
    digits, rng = load_digits(), np.random.default_rng(seed)
    chosen = rng.integers(len(digits.images), size=count)
    grey = np.kron(digits.images[chosen] / 16, np.ones((4, 4)))[..., None]
    images = 255 * grey * rng.uniform(0.5, 1, (count, 1, 1, 3)) + rng.normal(0, 20, (count, 32, 32, 3))
    return images.clip(0, 255).astype(np.uint8), digits.target[chosen]


def write_images(folder: Path) -> None:
    """Write a folder data set of 600 training and 100 test images, and an npz file of 600 synthetic images."""
    for part, count in (("train", 600), ("test", 100)):
        for number, (image, label) in enumerate(zip(*colour_digits(count, seed_of(part)), strict=True)):
            path = folder / part / str(label) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    images, labels = colour_digits(600, seed_of("synthetic"))
    np.savez(folder / "synthetic.npz", image=images, label=labels)


def seed_of(part: str) -> int:
    """Return the seed of the images of a part."""
    return ("train", "test", "synthetic").index(part)


def configuration(size: str, folder: Path, **changes: Any) -> dict[str, Any]:
    """Return the configuration of a run with the fast path.

    The images are those of `write_images` for `wrn_28_2`, and scikit-learn's digits for `small`.
    """
    config: dict[str, Any] = {
        **NETWORKS[size],
        "algorithm": "fixmatch",
        "num_labels": 100,
        "num_train_iter": STEPS,
        "num_eval_iter": STEPS,
        "num_log_iter": STEPS,
        "num_workers": 0,  # one process, as on the other side
        "rs_warmup": 0.0,  # all parts of RSMatch are active from the first step
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


def build_ours(config: Mapping[str, Any]) -> Any:
    """Build the algorithm of a configuration as `usb-rsmatch train` does."""
    args, _ = resolve(config)
    return training.build(args)


def build_stock_usb(config: Mapping[str, Any]) -> Any:
    """Build the algorithm of a configuration as USB itself does: its class, hooks, samplers, loaders and PIL views.

    Only two parts are ours: the images in memory, and the redirection of USB's CUDA calls to the CPU.
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
        algorithm = kind(args, get_net_builder(args.net, False), logger=quiet)
    for model in (algorithm.model, algorithm.ema_model):  # USB's train.py does this after the constructor
        model.to(args.device)
    return algorithm
