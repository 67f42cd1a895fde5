"""The network's outputs for several batches, in one joint forward pass or in one pass for each batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def outputs(algorithm: Any, *batches: Tensor) -> list[dict[str, Tensor]]:
    """The network's `logits` and `feat` for each batch; with `use_cat` in one joint forward pass, as in USB."""
    if not algorithm.use_cat:
        return [algorithm.model(batch) for batch in batches]
    together = algorithm.model(torch.cat(batches))
    parts = {key: together[key].split([len(batch) for batch in batches]) for key in ("logits", "feat")}
    return [{key: parts[key][i] for key in parts} for i in range(len(batches))]
