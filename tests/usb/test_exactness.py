"""In the default setting, a run's losses are those of semilearn's own loop on the same data, for every baseline."""

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
# Left out: multimatch is for text; dash warms up and crmatch rotates through loaders of their own, which USB restarts
# and draws from the global generators.
BASELINES = sorted(set(ALGORITHMS.keys()) - {"rsmatch", "multimatch", "dash", "crmatch"})


class Batches(Dataset):
    """Recorded batches, served one an index."""

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
        stock = ALGORITHMS[name].__new__(ALGORITHMS[name])
        stock.set_dataset = lambda: ours.dataset_dict  # the data set is the one thing that is handed to USB
        stock.set_data_loader = lambda: {
            **{
                key: DataLoader(batches, batch_size=None, generator=torch.Generator())
                for key, batches in recorded.items()
            },
            "eval": DataLoader(ours.dataset_dict["eval"], batch_size=args.eval_batch_size, generator=torch.Generator()),
        }
        stock.__init__(args, get_net_builder(args.net, False))
        # stock.train is semilearn's own loop with its own hooks; the shim stands for the GPU that they name
        theirs = run_loop(stock, stock.train)
    assert len(losses) == len(theirs) == STEPS
    assert losses == theirs
