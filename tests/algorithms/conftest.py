"""One step of an open-set algorithm, and what its equations need to be written down again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch

from usb_rsmatch.usb.compat import cuda_calls_stay_on_cpu
from usb_rsmatch.usb.config import resolve
from usb_rsmatch.usb.training import build


class Step(NamedTuple):
    """A step's outputs, the batch that it had, and the algorithm with the weights from before it."""

    out_dict: dict[str, Any]
    log_dict: dict[str, Any]
    batch: dict[str, torch.Tensor]
    algorithm: Any

    def model_outputs(self, *views: torch.Tensor) -> list[dict[str, torch.Tensor]]:
        """The model's outputs of views that pass through it together, as batch statistics ask for."""
        merged, sizes = self.algorithm.model.train()(torch.cat(views)), [len(view) for view in views]
        parts = {name: output.split(sizes) for name, output in merged.items()}
        return [{name: split[i] for name, split in parts.items()} for i in range(len(views))]


@pytest.fixture
def first_step(tiny: dict[str, Any]) -> Callable[..., Step]:
    """`first_step(config changes, prepare=f)`: a step, after `f(algorithm)` has set what should differ."""

    def run(prepare: Callable[[Any], None] = lambda algorithm: None, **changes: Any) -> Step:
        args, _ = resolve({**tiny, "rs_loader": "batched", **changes})
        args.device = "cpu"
        algorithm = build(args)
        with cuda_calls_stay_on_cpu():
            algorithm.model.train()
            algorithm.epoch = 0
            algorithm.call_hook("before_run")
            prepare(algorithm)
            lb, ulb = next(iter(algorithm.loader_dict["train_lb"])), next(iter(algorithm.loader_dict["train_ulb"]))
            out_dict, log_dict = algorithm.train_step(**algorithm.process_batch(**lb, **ulb))
        return Step(out_dict, log_dict, {**lb, **ulb}, algorithm)

    return run
