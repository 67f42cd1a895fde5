"""Partial fine-tuning of a backbone: frozen weights and BatchNorm statistics, gradient checkpointing."""

from __future__ import annotations

import re
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from usb_rsmatch.errors import UserError

NORMS = (_BatchNorm, nn.GroupNorm, nn.LayerNorm)
NAMES_OF_NORMS = re.compile(r"norm(act)?(\dd)?$", re.IGNORECASE)


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalisation layer; timm has classes of its own, such as `RmsNorm` and `GroupNormAct`."""
    return isinstance(module, NORMS) or NAMES_OF_NORMS.search(type(module).__name__) is not None


def batchnorms(network: nn.Module) -> list[nn.Module]:
    """The BatchNorm layers of a network."""
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]


def freeze(backbone: nn.Module, head: nn.Module, what: str) -> None:
    """Keep a part of a backbone as it is: `norm`, its normalisation layers, or `backbone`, everything but `head`.

    BatchNorm layers then also keep their running statistics, and normalise by them in training.
    """
    if what == "none":
        return
    learning = set(map(id, head.parameters()))
    frozen = [backbone] if what == "backbone" else [module for module in backbone.modules() if is_norm(module)]
    for module in frozen:
        for weight in module.parameters():
            if id(weight) not in learning:
                weight.requires_grad_(False)
    kind = type(backbone)
    if batchnorms(backbone) and not issubclass(kind, FixedBatchNorm):
        backbone.__class__ = type(kind.__name__, (FixedBatchNorm, kind), {"__module__": kind.__module__})


class FixedBatchNorm:
    """A mixin for a backbone whose BatchNorm layers stay in evaluation mode."""

    def train(self, mode: bool = True) -> Any:
        super().train(mode)  # type: ignore[misc]
        for module in batchnorms(self):  # type: ignore[arg-type]
            module.eval()
        return self


def checkpoint_gradients(backbone: nn.Module, net: str) -> None:
    """Recompute activations in the backward pass instead of keeping them, by timm's own implementation.

    Raises UserError for a network that has none, and for one with BatchNorm, whose statistics each recomputation would
    update again.
    """
    if batchnorms(backbone) and not isinstance(backbone, FixedBatchNorm):
        raise UserError(
            f"grad_checkpointing updates BatchNorm twice in a step, and {net} has it: freeze: norm, or leave it"
        )
    switch = getattr(getattr(backbone, "model", None), "set_grad_checkpointing", None)
    try:
        if switch is None:
            raise AssertionError
        switch(True)
    except AssertionError:
        raise UserError(f"grad_checkpointing is not implemented by {net}: take another network of timm") from None
