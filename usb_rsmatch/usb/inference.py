"""A trained run from Python: `load_run(folder).predict(images)`, `.synthetic_score(images)`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from usb_rsmatch.data.augment import normalise
from usb_rsmatch.device import choose_device
from usb_rsmatch.errors import UserError
from usb_rsmatch.usb import checkpoint, config
from usb_rsmatch.usb.run import build


class Run:
    """The averaged weights of a run folder, ready to predict. `classes` are the names, in the order of the logits."""

    def __init__(self, folder: Path, device: str | None = None) -> None:
        if not (folder / "config.yaml").exists():
            raise UserError(f"{folder} is no run folder: it has no config.yaml")
        args, _ = config.resolve(config.read_yaml(folder / "config.yaml"))
        args.device = choose_device(device)
        content, _ = checkpoint.read_latest(folder)
        if content is None:
            raise UserError(f"{folder} has no checkpoint yet")
        self.algorithm = build(args)
        if getattr(args, "pool", None) is None:
            raise UserError(f"{folder} was trained on a data set of USB's own: only runs on a pool can be loaded")
        self.algorithm.ema_model.load_state_dict(content["ema_model"])
        self.model = self.algorithm.ema_model.eval()
        self.algorithm.model = self.model  # so that the detector's scores are those of the averaged weights too
        self.pool = args.pool
        self.classes, self.spec, self.device = args.pool.classes, args.pool.spec, args.device

    def _batches(self, images: np.ndarray | Tensor, batch_size: int) -> Any:
        """Normalised batches of uint8 images [N, H, W] or [N, H, W, C] of the size that the run was trained on."""
        try:
            array = np.asarray(images)
        except ValueError:
            raise UserError("the images differ in size: the run takes an array of images of one size") from None
        array = array[..., None] if array.ndim == 3 else array
        expected = self.pool.unlabeled.images.shape[1:3]
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[1:3] != expected or array.shape[3] not in (1, 3):
            raise UserError(
                f"the run takes uint8 images [N, {expected[0]}, {expected[1]}, 1 or 3], not "
                f"{array.dtype} {list(array.shape)}"
            )
        for start in range(0, len(array), batch_size):
            batch = torch.from_numpy(np.ascontiguousarray(array[start : start + batch_size])).permute(0, 3, 1, 2)
            yield normalise(batch.to(self.device), self.spec.mean, self.spec.std)

    @torch.no_grad()
    def predict(self, images: np.ndarray | Tensor, batch_size: int = 512) -> np.ndarray:
        """Class probabilities float32 [N, K] of uint8 images [N, H, W(, C)]."""
        parts = [self.model(x)["logits"].float().softmax(1).cpu().numpy() for x in self._batches(images, batch_size)]
        return np.concatenate([np.empty((0, len(self.classes)), np.float32), *parts])

    @torch.no_grad()
    def synthetic_score(self, images: np.ndarray | Tensor, batch_size: int = 512) -> np.ndarray:
        """Probability of synthetic float32 [N] of uint8 images [N, H, W(, C)]; UserError without a detector."""
        if not hasattr(self.algorithm, "synthetic_logit") or self.algorithm.network.detector is None:
            raise UserError("this run trained no detector: only rsmatch with rs_detector csqueue or pu does")
        parts = [
            self.algorithm.synthetic_logit(x).float().sigmoid().cpu().numpy() for x in self._batches(images, batch_size)
        ]
        return np.concatenate([np.empty(0, np.float32), *parts])


def load_run(folder: str | Path, device: str | None = None) -> Run:
    """The run of a folder; UserError where there is none or its checkpoint is damaged."""
    return Run(Path(folder), device)
