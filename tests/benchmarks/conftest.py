"""Folders of finished comparisons, as the campaigns read them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

Runs = Mapping[tuple[str, str | float | None], tuple[float, ...]]


def detection(auroc: float) -> dict[str, Any]:
    figures = {"auroc": auroc, "ap": auroc, "fpr95": 1 - auroc}
    return {**figures, "by_generator": {"flow": figures}}


@pytest.fixture
def compared(write_result: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Make a comparison's folder: `compared(name of grid, {(arm, value of axis): values by seed}, axis)`.

    The values are accuracies, or AUROCs with `auroc`.
    """

    def make(name: str, runs: Runs, axis: str | None = None, auroc: bool = False) -> Path:
        places = []
        for (arm, place), values in runs.items():
            for seed, value in enumerate(values):
                folder = f"{name}/{len(places)}"
                changes: dict[str, Any] = {"detection": detection(value)} if auroc else {"accuracy__last": value}
                sha = f"{len(places):064x}"
                write_result(folder, seed=seed, config_sha256=sha, **changes)
                axes = {"seed": seed} if axis is None else {"seed": seed, axis: place}
                places.append({"folder": folder.split("/")[1], "arm": arm, "axes": axes, "config_sha256": sha})
        varied = ["seed", "algorithm", "synthetic_count", *([axis] if axis else [])]
        record = {"name": name, "baseline": None, "varied": varied, "runs": places}
        (tmp_path / "results" / name / "grid.json").write_text(json.dumps(record))
        return tmp_path / "results" / name

    return make
