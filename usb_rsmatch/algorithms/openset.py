"""Shared parts of the open-set algorithms: heads on the features, one-vs-all losses, further views, outlier hook."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from semilearn.core.algorithmbase import AlgorithmBase
from semilearn.core.utils import ALGORITHMS
from torch import Tensor, nn

from usb_rsmatch.algorithms.networks import BackboneWithHeads, HeadsOnBackbone
from usb_rsmatch.counter_rng import seeded_globals
from usb_rsmatch.errors import UserError


class OpenSetNet(BackboneWithHeads):
    """A backbone with further heads.

    `heads` maps the backbone's output (`logits` [B, K], `feat` [B, F]) to further outputs by name.
    """

    def __init__(self, backbone: nn.Module, heads: nn.Module) -> None:
        super().__init__(backbone)
        self.heads = heads

    def forward(self, x: Tensor, **kwargs: Any) -> Any:
        """The outputs of the backbone and of the heads; with `only_fc` or `only_feat` those of the backbone only."""
        output = self.backbone(x, **kwargs)
        return output if kwargs else {**output, **self.heads(output)}


def linear(inputs: int, outputs: int, bias: bool) -> nn.Linear:
    """A linear layer with Xavier's normal weights and no initial bias, as in the code of all three methods' authors."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.xavier_normal_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class OpenSetAlgorithm(HeadsOnBackbone):
    """An algorithm with `Heads` on the backbone, whose `outlier_score` is evaluated as a detector.

    `Heads(num_features, num_classes)` makes the module that `OpenSetNet` holds.
    """

    Heads: type[nn.Module]

    def wrap(self, backbone: Any) -> OpenSetNet:
        return OpenSetNet(backbone, self.Heads(backbone.num_features, self.num_classes))

    def set_hooks(self) -> None:
        from usb_rsmatch.algorithms.outlier_score import (
            OutlierHook,  # late: semilearn may be importing this module
        )

        super().set_hooks()
        self.register_hook(OutlierHook(), "OutlierHook", "HIGH")  # after USB's own: it uses this step's EMA weights

    def outputs(self, *views: Tensor) -> list[dict[str, Tensor]]:
        """The model's outputs for each view, in one joint forward pass if `use_cat` is set."""
        if not self.use_cat:
            return [self.model(view) for view in views]
        merged = self.model(torch.cat(views))
        parts = {name: output.split([len(view) for view in views]) for name, output in merged.items()}
        return [{name: split[i] for name, split in parts.items()} for i in range(len(views))]

    def weak_views(self, indices: Tensor, view: int, like: Tensor) -> Tensor:
        """Further weak views [n, 3, H, W] of images of the pool, drawn by the step's position, on the device of
        `like`.
        """
        dataset, count = self.dataset_dict["train_ulb"], len(indices)
        positions = np.arange(self.it * count, (self.it + 1) * count)
        if hasattr(dataset, "weak_views"):
            return dataset.weak_views(indices, positions, view).to(like.device, non_blocking=True)
        views = []
        for i, position in zip(indices.tolist(), positions.tolist(), strict=True):  # one of USB's own data sets
            with seeded_globals(self.args.seed, position, view):
                views.append(dataset.transform(dataset.__sample__(i)[0]))
        return torch.stack(views).to(like.device)


def refuse_several_processes(args: Any, name: str) -> None:
    """UserError for a job of several processes: these algorithms keep a memory of the pool in one."""
    if getattr(args, "distributed", False) and getattr(args, "world_size", 1) > 1:
        raise UserError(f"{name} keeps its memory of the pool in a single process: train it with one")


def register_algorithm(name: str, algorithm: type[AlgorithmBase]) -> None:
    """Add to USB's registry, once; another algorithm of that name is kept, with a warning."""
    if name not in ALGORITHMS:
        ALGORITHMS.register(name)(algorithm)
    elif ALGORITHMS[name] is not algorithm:
        warnings.warn(f"another algorithm is registered as {name!r} already; it is left in place", stacklevel=2)


EPSILON = 1e-8  # inside the logarithms of one-vs-all losses, as in the code of OpenMatch's and IOMatch's authors


# one-vs-all classifiers: logits [B, 2, K], where index 1 of the middle axis means "of this class", 0 "not of it" ----


def one_vs_all(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities of an outlier and of an inlier for each class, both [B, K]."""
    outlier, inlier = logits.softmax(1).unbind(1)
    return outlier, inlier


def one_vs_all_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The true class's classifier learns inlier, the hardest other one outlier (OVANet; OpenMatch Eq. 1).

    mean over images of  -log p(inlier | y) - min over k != y of log p(outlier | k).  `labels` int64 [B]. As in the
    authors' code, `EPSILON` is added to each probability, which bounds the loss of one image by -2 log EPSILON.
    """
    outlier, inlier = one_vs_all(logits)
    index = labels[:, None]
    positive = (inlier.gather(1, index)[:, 0] + EPSILON).log()
    hardest = (outlier.scatter(1, index, torch.inf).amin(1) + EPSILON).log()
    return -(positive + hardest).mean()
