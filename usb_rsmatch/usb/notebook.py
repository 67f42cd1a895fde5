"""USB's notebook functions, extended to our data sets and to machines without a GPU.

`get_dataset`, `get_net_builder`, `get_algorithm` and `Trainer` keep their signatures.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import semilearn
from semilearn import algorithms, lighting
from semilearn.core import algorithmbase
from semilearn.core import utils as core_utils
from semilearn.core.utils import ALGORITHMS, build
from semilearn.lighting import trainer as lighting_trainer

_usb_get_dataset = build.get_dataset
_usb_get_algorithm = algorithms.get_algorithm
_usb_get_net_builder = build.get_net_builder


def get_net_builder(net_name: str, from_name: bool) -> Any:
    """USB's `get_net_builder`, which also knows `timm:NAME`; `get_algorithm` adds the keys of a configuration."""
    from argparse import Namespace

    from usb_rsmatch.usb.network import find_net, is_timm

    args = Namespace(net=net_name, net_from_name=from_name, use_pretrain=False, pretrain_path="", img_size=32)
    return find_net(args) if is_timm(args) else _usb_get_net_builder(net_name, from_name)


def get_dataset(
    args: Any,
    algorithm: str,
    dataset: str,
    num_labels: int,
    num_classes: int,
    data_dir: str = "./data",
    include_lb_to_ulb: bool = True,
) -> Any:
    """USB's `get_dataset`, which also knows our data sets and, with `args.synthetic`, hybrid pools.

    A pool is stored in `args.pool`, and rebuilt if one of its keys has changed.
    """
    from usb_rsmatch.data.pool.pool import HybridPool
    from usb_rsmatch.data.sources.dataset_registry import dataset_names
    from usb_rsmatch.data.views.hybrid_dataset import build_datasets
    from usb_rsmatch.data.views.settings import LoaderSettings, describes_pool
    from usb_rsmatch.errors import UserError
    from usb_rsmatch.usb.config import nearest

    asked = copy.copy(args)
    asked.dataset, asked.num_labels, asked.num_classes = dataset, num_labels, num_classes
    asked.data_dir, asked.include_lb_to_ulb = data_dir, include_lb_to_ulb
    if not describes_pool(asked):
        found = _usb_get_dataset(args, algorithm, dataset, num_labels, num_classes, data_dir, include_lb_to_ulb)
        if found is None:  # USB returns None, which would fail later in training
            raise UserError(f"unknown dataset {dataset!r}{nearest(dataset, dataset_names())}")
        return found
    if not _is_pool_of(getattr(args, "pool", None), asked):
        args.pool = HybridPool.from_config(asked)
    return build_datasets(args.pool, LoaderSettings.read(args))


def _is_pool_of(pool: Any, args: Any) -> bool:
    """Whether `pool` matches the keys of `args`; a pool that was built by hand always does."""
    from usb_rsmatch.data.pool.settings import PoolConfig

    if pool is None or not pool.config:
        return pool is not None
    asked = PoolConfig.read(args).as_dict()
    size = asked.pop("img_size")
    del asked["num_classes"]  # determined by the data set
    return size in (None, pool.unlabeled.images.shape[1]) and asked.items() <= pool.config.items()


def get_algorithm(args: Any, net_builder: Any, tb_log: Any = None, logger: Any = None) -> Any:
    """USB's `get_algorithm`, with our mixins for device, evaluation and checkpoints."""
    from usb_rsmatch.keys import convert
    from usb_rsmatch.usb.config import KEYS
    from usb_rsmatch.usb.mixins import compose_run_class
    from usb_rsmatch.usb.network import find_net, is_timm

    if args.algorithm not in ALGORITHMS:
        return _usb_get_algorithm(args, net_builder, tb_log, logger)  # raises USB's own error
    args.rs_fast = convert(KEYS["rs_fast"], getattr(args, "rs_fast", False), "configuration")  # a list, unread by USB
    kind = compose_run_class(ALGORITHMS[args.algorithm], fast=bool(args.rs_fast))
    if is_timm(args):
        net_builder = find_net(args)
    algorithm = kind(args, net_builder, tb_log=tb_log, logger=logger)
    algorithm.model.to(algorithm.device)
    algorithm.ema_model.to(algorithm.device)
    return algorithm


class Trainer:
    """USB's notebook `Trainer`, for any device; the original skips the hooks that update weights
    (`lighting/trainer.py:57`).

    It trains through the algorithm's own loop, hooks and checkpoints, with the loaders given to `fit`.
    """

    def __init__(self, config: Any, algorithm: Any, verbose: int = 0) -> None:
        self.config, self.algorithm, self.verbose = config, algorithm, verbose
        self.save_path = str(Path(config.save_dir) / config.save_name)
        self.logger = core_utils.get_logger(config.save_name, save_path=self.save_path, level="INFO")

    def fit(self, train_lb_loader: Any, train_ulb_loader: Any, eval_loader: Any) -> None:
        """Train for `num_train_iter` steps; `latest_model.pth` and `model_best.pth` are written to the save folder."""
        algorithm = self.algorithm
        if algorithm.it >= algorithm.num_train_iter:
            self.logger.info(f"All {algorithm.it} steps are done: to train again, create a new one by get_algorithm.")
            return
        algorithm.loader_dict = {"train_lb": train_lb_loader, "train_ulb": train_ulb_loader, "eval": eval_loader}
        algorithm.print_fn = self.logger.info
        algorithm.train()
        self.logger.info(f"Best acc {algorithm.best_eval_acc:.4f} at step {algorithm.best_it + 1}")
        self.logger.info("Training finished.")

    def evaluate(self, data_loader: Any, use_ema_model: bool = False) -> dict[str, float]:
        """Accuracy, precision, recall and F1 on a loader."""
        from usb_rsmatch.usb.evaluation import classification_metrics

        logits, targets = self._logits(data_loader, use_ema_model)
        metrics = classification_metrics(logits, targets)
        result = {"acc": metrics["top-1-acc"], "precision": metrics["precision"]}
        result |= {"recall": metrics["recall"], "f1": metrics["F1"]}
        for key, value in result.items():
            self.logger.info(f"{key}: {value:.4f}")
        return result

    def predict(self, data_loader: Any, use_ema_model: bool = False, return_gt: bool = False) -> Any:
        """Classes and probabilities (and, with `return_gt`, the true classes) as arrays, as in USB."""
        logits, targets = self._logits(data_loader, use_ema_model)
        predictions, probabilities = logits.argmax(1).numpy(), logits.softmax(1).numpy()
        return (predictions, probabilities, targets.numpy()) if return_gt else (predictions, probabilities)

    def _logits(self, data_loader: Any, use_ema_model: bool) -> tuple[Any, Any]:
        import torch

        model = self.algorithm.ema_model if use_ema_model else self.algorithm.model
        was_training = model.training
        model.eval()
        try:
            with torch.no_grad():
                pairs = [
                    (model(self.algorithm._send(data["x_lb"]))["logits"].float().cpu(), torch.as_tensor(data["y_lb"]))
                    for data in data_loader
                ]
        finally:
            model.train(was_training)
        logits, targets = zip(*pairs, strict=True)
        return torch.cat(logits), torch.cat(targets)


def replace_usb_functions() -> None:
    """Replace the functions in the modules from which notebooks and algorithms import them."""
    for module in (semilearn, core_utils, build, algorithmbase):
        module.get_dataset = get_dataset
    for module in (semilearn, core_utils, build):
        module.get_net_builder = get_net_builder
    semilearn.get_algorithm = algorithms.get_algorithm = get_algorithm
    semilearn.Trainer = lighting.Trainer = lighting_trainer.Trainer = Trainer
