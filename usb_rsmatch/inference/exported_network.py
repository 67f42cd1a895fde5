"""A trained run as one network from uint8 images to probabilities, without the dummy head."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from usb_rsmatch.detection.detector import reads_features
from usb_rsmatch.errors import UserError


class ExportedNetwork(nn.Module):
    """Normalisation, classifier and, optionally, detector.

    It contains no dummy head and no second copy of the weights: its state dict is exactly what prediction needs.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, classifier: nn.Module, detector: nn.Module | None, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        self.classifier, self.detector = classifier, detector
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(list(values), dtype=torch.float32)[:, None, None])

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(logits [N, K], probabilities [N, K]) of uint8 images [N, C, H, W], and with a detector synthetic [N]."""
        x = ((images.float() / 255.0) - self.mean) / self.std
        x = x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x
        out = self.classifier(x)
        logits = out["logits"].float()
        if self.detector is None:
            return logits, logits.softmax(1)
        seen = out["feat"] if reads_features(self.detector) else x
        return logits, logits.softmax(1), self.detector(seen).float().sigmoid()


def build_exported_network(run: Any, detector: bool | None = None) -> ExportedNetwork:
    """The network of a loaded run, on the CPU, in evaluation mode; the run itself is not changed.

    `detector` says whether to include the detector; None: if the run has one. UserError if it is requested but missing.
    """
    from usb_rsmatch.algorithms.networks import RSNet

    if detector and not run.has_detector:
        raise UserError("this run trained no detector: leave --detector out, or train rsmatch with csqueue or pu")
    classifier = copy.deepcopy(run.model).cpu()
    found: nn.Module | None = None
    for module in [module for module in classifier.modules() if isinstance(module, RSNet)]:
        found, module.detector = module.detector, None
        del module.dummy_head
    keep = found if detector is not False else None
    return ExportedNetwork(classifier, keep, run.spec.mean, run.spec.std).eval().requires_grad_(False)
