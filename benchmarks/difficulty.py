"""Whether images that are asked for at a higher difficulty are harder, on scikit-learn's digits.

python -m benchmarks.difficulty --out results/difficulty.json

70 % of the training images are scored and train the flow model, once per seed. The judge, a support vector machine, is
trained on the other 30 % and on the test images: it has seen neither generated images nor the images that were scored.
`levels` has for each asked difficulty the judge's mean 1 - P(asked class) and its error, with t intervals over seeds;
`real_by_score` has the same for the scored real images. `monotone` is Spearman's rank correlation between the asked
difficulty and the mean measured one.
"""

from __future__ import annotations

import argparse
import datetime
import shlex
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.speed import processor
from usb_rsmatch.data.sources.dataset_registry import open_real
from usb_rsmatch.io import write_json
from usb_rsmatch.report.statistics import estimate
from usb_rsmatch.synthesis.difficulty_request import DifficultyRequest
from usb_rsmatch.synthesis.difficulty_scores import STEPS, out_of_fold_scores
from usb_rsmatch.synthesis.flow_engine import FlowEngine
from usb_rsmatch.synthesis.flow_settings import FlowSettings
from usb_rsmatch.synthesis.plan import Plan
from usb_rsmatch.synthesis.training_images import load_training_images, training_indices
from usb_rsmatch.usb import run_facts

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
PART = "train[:70%]"
SIZE, BATCH = 8, 100


@dataclass(frozen=True)
class Scale:
    """Seeds of the generators, images of each level and seed, training steps (None: recommended), and of scores."""

    seeds: tuple[int, ...]
    count: int
    steps: int | None = None
    score_steps: int = STEPS


FULL = Scale((0, 1, 2, 3, 4), 1000)
QUICK = Scale((0, 1), 100, 20, 50)


class Judge:
    """A support vector machine with calibrated probabilities, trained on images that nothing else uses."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        from sklearn.calibration import CalibratedClassifierCV
        from sklearn.svm import SVC

        machine = SVC(C=10.0, gamma="scale")
        self.machine = CalibratedClassifierCV(machine, cv=5, ensemble=False).fit(_flat(images), labels)

    def __call__(self, images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Difficulties 1 - P(class) float64 [N] and errors bool [N] of images with intended classes `labels` [N]."""
        probabilities = self.machine.predict_proba(_flat(images))
        return 1 - probabilities[np.arange(len(labels)), labels], probabilities.argmax(axis=1) != labels


def measure(scale: Scale, cache: str, log: Any = print) -> dict[str, Any]:
    """Train, sample and judge every seed and level; returns the values of the result file."""
    real = open_real("digits", ".")
    measured: dict[float, list[tuple[float, float]]] = {level: [] for level in LEVELS}
    by_score: list[list[tuple[float, float]]] = [[] for _ in LEVELS]
    rows = training_indices(real, PART, 0)
    images, labels = load_training_images(real, PART, 0, SIZE)
    others = np.setdiff1d(np.arange(len(real.train)), rows)
    judge = Judge(
        np.concatenate([real.train.load(others, SIZE, 1), real.test.load(np.arange(len(real.test)), SIZE, 1)]),
        np.concatenate([real.train.labels[others], real.test.labels]),
    )
    correlations = []
    for seed in scale.seeds:
        started = time.perf_counter()
        scores = out_of_fold_scores(images, labels, 10, seed, steps=scale.score_steps, device="cpu").score
        for bin_, low in enumerate(np.arange(len(LEVELS)) / len(LEVELS)):
            chosen = (scores >= low) & (scores < low + 1 / len(LEVELS))
            by_score[bin_].append(_means(*judge(images[chosen], labels[chosen])))
        changes = {} if scale.steps is None else {"steps": scale.steps}
        settings = FlowSettings.recommended(SIZE, **changes)
        plan = Plan(real.classes, tuple(range(10)), scale.count, BATCH)
        for level in LEVELS:
            request = DifficultyRequest.parse(str(level))
            engine = FlowEngine(images, labels, 10, settings, seed, BATCH, PART, "cpu", cache, scores, request)
            made = np.stack([image.image for batch in range(len(plan)) for image in engine.make(plan.items(batch))])
            measured[level].append(_means(*judge(made, plan.labels())))
        correlations.append(spearman(LEVELS, [measured[level][-1][0] for level in LEVELS]))
        found = " ".join(f"{level}: {measured[level][-1][0]:.3f}" for level in LEVELS)
        log(f"seed {seed}: {found}, {time.perf_counter() - started:.0f} s")
    means = [float(np.mean([value for value, _ in measured[level]])) for level in LEVELS]
    return {
        "monotone": {"flow": round(spearman(LEVELS, means), 4)},
        "monotone_by_seed": {"flow": [round(value, 4) for value in correlations]},
        "levels": {"flow": [{"asked": level, **_summary(measured[level])} for level in LEVELS]},
        "real_by_score": [
            {"low": round(n / len(LEVELS), 2), "high": round((n + 1) / len(LEVELS), 2), **_summary(values)}
            for n, values in enumerate(by_score)
        ],
        "gain_by_level": None,
        "setting": {
            "dataset": "digits",
            "part": PART,
            **asdict(scale),
            "images_of_the_judge": len(others) + len(real.test),
        },
    }


def spearman(asked: Sequence[float], found: Sequence[float]) -> float:
    """Spearman's rank correlation of two sequences without ties in the first."""
    from scipy.stats import spearmanr

    return float(spearmanr(asked, found).statistic)


def _means(difficulty: np.ndarray, error: np.ndarray) -> tuple[float, float]:
    return float(difficulty.mean()), float(error.mean())


def _summary(values: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Mean and interval of measured difficulties and errors over seeds."""
    summary: dict[str, Any] = {}
    for name, column in zip(("difficulty", "error"), zip(*values, strict=True), strict=True):
        found = estimate(column)
        interval = None if found.low is None or found.high is None else [round(found.low, 4), round(found.high, 4)]
        summary[name] = {"mean": round(found.mean, 4), "interval": interval}
    return summary


def _flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1) / 255.0


def table(result: Mapping[str, Any]) -> str:
    """The levels as lines of text."""
    lines = []
    for engine, levels in result["levels"].items():
        for level in levels:
            values = [f"{name} {level[name]['mean']:.3f} {level[name]['interval']}" for name in ("difficulty", "error")]
            lines.append(f"{engine} asked {level['asked']}: measured {', '.join(values)}")
        lines.append(f"{engine}: rank correlation of asked and measured difficulty {result['monotone'][engine]}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.difficulty", description=__doc__)
    parser.add_argument("--out", required=True, metavar="FILE", help="output file (JSON)")
    parser.add_argument("--cache", metavar="DIR", help="folder of trained generators; default: a temporary one")
    parser.add_argument("--quick", action="store_true", help="trial run: its numbers are meaningless")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        result = measure(QUICK if args.quick else FULL, args.cache or temporary, lambda text: print(text, flush=True))
    words = ["python", "-m", "benchmarks.difficulty", *(sys.argv[1:] if argv is None else argv)]
    result |= {
        "command": shlex.join(words),
        "quick": args.quick,
        "threads": 1,
        "processor": processor(),
        "versions": run_facts.versions(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    write_json(Path(args.out), result)
    print(table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
