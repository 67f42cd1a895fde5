"""In the default setting, the losses of every baseline equal those of semilearn's own loop on the same data."""

from __future__ import annotations

import inspect
import random
from typing import Any

import numpy as np
import pytest
import torch
from semilearn import get_net_builder
from semilearn.core.utils import ALGORITHMS
from torch.utils.data import DataLoader, Dataset

from usb_rsmatch.usb.compat import cuda_calls_stay_on_cpu
from usb_rsmatch.usb.config import resolve
from usb_rsmatch.usb.training import build

STEPS = 50
# Not tested here: multimatch, which is for text; dash (warm-up) and crmatch (rotations), whose additional loaders USB
# restarts and shuffles by the global generators: `test_every_algorithm.py` tests these two.
BASELINES = sorted(set(ALGORITHMS.keys()) - {"rsmatch", "multimatch", "dash", "crmatch"})


class Batches(Dataset):
    """Recorded batches as a data set: one batch per index."""

    def __init__(self, batches: list[dict[str, Any]]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.batches[index]


def run_loop(algorithm: Any, train: Any) -> list[float]:
    """Losses of every step of a training loop."""
    losses: list[float] = []
    step = algorithm.train_step

    def recorded(*args: Any, **kwargs: Any) -> Any:
        out_dict, log_dict = step(*args, **kwargs)
        losses.append(float(out_dict["loss"].detach()))
        return out_dict, log_dict

    recorded.__signature__ = inspect.signature(step)  # type: ignore[attr-defined]
    algorithm.train_step = recorded
    train()
    return losses


@pytest.mark.parametrize("name", BASELINES)
def test_losses_equal_those_of_semilearns_own_loop(name: str, tiny: dict[str, Any]) -> None:
    config = {**tiny, "algorithm": name, "num_train_iter": STEPS, "num_eval_iter": 25, "epoch": 1}
    args, _ = resolve(config)
    args.device = "cpu"
    ours = build(args)
    recorded = {key: Batches(list(ours.loader_dict[key])) for key in ("train_lb", "train_ulb")}
    losses = run_loop(ours, ours.train)

    torch.manual_seed(args.seed)
    random.seed(args.seed)
    np.random.seed(args.seed)
    with cuda_calls_stay_on_cpu():
        unmodified = ALGORITHMS[name].__new__(ALGORITHMS[name])
        unmodified.set_dataset = lambda: ours.dataset_dict  # only the data come from our run
        unmodified.set_data_loader = lambda: {
            **{
                key: DataLoader(batches, batch_size=None, generator=torch.Generator())
                for key, batches in recorded.items()
            },
            "eval": DataLoader(ours.dataset_dict["eval"], batch_size=args.eval_batch_size, generator=torch.Generator()),
        }
        unmodified.__init__(args, get_net_builder(args.net, False))
        # semilearn's own loop with its own hooks; the context above replaces the GPU that they require
        theirs = run_loop(unmodified, unmodified.train)
    assert len(losses) == len(theirs) == STEPS
    assert losses == theirs
