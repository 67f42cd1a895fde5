"""What the runs of one setting left for pictures, arm by arm: which setting, which runs, and what is in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from usb_rsmatch.bench.analysis import NAME, Analysis, read_analysis
from usb_rsmatch.bench.table import Setting, Table

if TYPE_CHECKING:
    import numpy as np

MOST_SEEDS = 5  # runs an arm that are read; a mean over more looks the same
MOST_ARMS = 6  # arms in the pictures; more are colours that nobody tells apart


@dataclass(frozen=True)
class Insight:
    """The analyses of one setting: {arm: its runs', by seed}, in the table's order; `indices` are the arms' places."""

    setting: Setting
    runs: dict[str, list[Analysis]]
    indices: dict[str, int]
    seeds: dict[str, list[int]]
    left_out: int  # arms beyond MOST_ARMS

    @property
    def provenance(self) -> list[str]:
        """`real` and every generator of any run: a name's place gives its colour in all pictures."""
        return list(dict.fromkeys(name for runs in self.runs.values() for run in runs for name in run.generators))

    @property
    def generators(self) -> list[str]:
        """Every generator with scored images in any run."""
        names: dict[str, None] = {}
        for run in self.detecting.values():
            for analysis in run:
                assert analysis.scores_generator is not None
                present = set(analysis.scores_generator.tolist()) - {0}
                names |= dict.fromkeys(name for index, name in enumerate(analysis.generators) if index in present)
        return list(names)

    @property
    def detecting(self) -> dict[str, list[Analysis]]:
        """The arms with a detector that scored both real and synthetic images."""
        found = {arm: [run for run in runs if _scores_both(run)] for arm, runs in self.runs.items()}
        return {arm: runs for arm, runs in found.items() if runs}


def gather(table: Table) -> Insight | None:
    """The analyses of the setting in which most arms have one (the first of several); None where no run left one.

    Errors: UserError for a damaged file.
    """
    counts = [
        sum(any((record.result.path.parent / NAME).is_file() for record in cell.records) for cell in cells.values())
        for cells in table.cells
    ]
    if not counts or not max(counts):
        return None
    at = counts.index(max(counts))
    runs: dict[str, list[Analysis]] = {}
    seeds: dict[str, list[int]] = {}
    for arm in table.arms:
        cell = table.cells[at].get(arm)
        pairs: list[tuple[int, Analysis]] = []
        for record in cell.records if cell and len(runs) < MOST_ARMS else []:
            analysis = read_analysis(record.result.path.parent) if len(pairs) < MOST_SEEDS else None
            if analysis is not None:
                pairs.append((record.result.seed, analysis))
        if pairs:
            runs[arm], seeds[arm] = [analysis for _, analysis in pairs], [seed for seed, _ in pairs]
    indices = {arm: table.arms.index(arm) for arm in runs}
    return Insight(table.settings[at], runs, indices, seeds, max(counts) - len(runs))


def real_and_made(run: Analysis, generator: str) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the real images and of one generator's, float32 [n] and [m]; m is 0 where it has none."""
    assert run.scores is not None and run.scores_generator is not None
    number = run.generators.index(generator) if generator in run.generators else -1
    return run.scores[run.scores_generator == 0], run.scores[run.scores_generator == number]


def _scores_both(run: Analysis) -> bool:
    import numpy as np

    if run.scores is None or run.scores_generator is None or not np.isfinite(run.scores).all():
        return False
    return bool((run.scores_generator == 0).any() and (run.scores_generator > 0).any())
