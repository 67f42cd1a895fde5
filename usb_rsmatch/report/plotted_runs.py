"""Selects the runs whose analyses are plotted: one setting, its arms, and a few runs of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from usb_rsmatch.report.analysis_file import NAME, Analysis, read_analysis
from usb_rsmatch.report.comparison import Cell, Setting, Table
from usb_rsmatch.report.result_file import Result

if TYPE_CHECKING:
    import numpy as np

MOST_SEEDS = 10  # largest number of runs per arm that are read
MOST_ARMS = 6  # largest number of arms in the plots: more colours cannot be distinguished


@dataclass(frozen=True)
class PlottedRuns:
    """The analyses of one setting: {arm: its runs', by seed}, in the table's order; `indices` are the arms' places."""

    setting: Setting
    several: bool  # whether there are other settings
    runs: dict[str, list[Analysis]]
    indices: dict[str, int]
    seeds: dict[str, list[int]]
    left_out: list[str]  # arms beyond MOST_ARMS

    @property
    def provenance(self) -> list[str]:
        """`real`, every generator of any run, and `unknown`: a name's place gives its colour in all pictures."""
        return list(dict.fromkeys(name for runs in self.runs.values() for run in runs for name in run.generators))

    @property
    def generators(self) -> list[str]:
        """Every generator with scored images in any run with a detector."""
        names: dict[str, None] = {}
        for run in self.detecting.values():
            for analysis in run:
                assert analysis.scores_generator is not None
                numbers = analysis.scores_generator
                present = set(numbers[analysis.synthetic(numbers)].tolist())
                names |= dict.fromkeys(name for index, name in enumerate(analysis.generators) if index in present)
        return list(names)

    @property
    def detecting(self) -> dict[str, list[Analysis]]:
        """The arms with a detector that scored both images known to be real and images known to be synthetic."""
        return self._arms(_scores_both)

    @property
    def scoring(self) -> dict[str, list[Analysis]]:
        """Those arms, and the arms with a detector that scored images of unknown provenance."""
        return self._arms(lambda run: _scores_both(run) or _scores_unknown(run))

    def _arms(self, shown: Callable[[Analysis], bool]) -> dict[str, list[Analysis]]:
        found = {arm: [run for run in runs if shown(run)] for arm, runs in self.runs.items()}
        return {arm: runs for arm, runs in found.items() if runs}

    def explain(self) -> list[str]:
        """Which setting and arms the plots show, if they do not show all."""
        lines = []
        if self.several:
            lines.append(f"Plots of single runs show {self.setting.label}.")
        if self.left_out:
            lines.append(
                f"Pictures of single runs leave out {', '.join(self.left_out)}: the baseline comes first, then arms "
                "with a detector."
            )
        return lines


def gather(table: Table) -> PlottedRuns | None:
    """The analyses of the setting in which most arms have one; None if no run has one.

    Of several such settings it is the one with most detectors, then with most synthetic images, then the first. If
    there are many arms, the baseline and those with a detector have priority.
    Raises UserError for a damaged file.
    """
    left = [{arm: cell for arm, cell in cells.items() if _left(cell)} for cells in table.cells]
    at = max(range(len(left)), key=lambda index: _worth(left[index]), default=0)
    if not left or not left[at]:
        return None
    cells = left[at]
    ordered = sorted(cells, key=lambda arm: (arm != table.baseline, cells[arm].auroc is None))
    shown = [arm for arm in table.arms if arm in ordered[:MOST_ARMS]]
    runs: dict[str, list[Analysis]] = {}
    seeds: dict[str, list[int]] = {}
    for arm in shown:
        results = _left(cells[arm])[:MOST_SEEDS]
        found = [read_analysis(result.path.parent) for result in results]
        runs[arm] = [analysis for analysis in found if analysis is not None]
        seeds[arm] = [result.seed for result in results]
    indices = {arm: table.arms.index(arm) for arm in shown}
    left_out = [arm for arm in table.arms if arm in cells and arm not in shown]
    return PlottedRuns(table.settings[at], len(table.settings) > 1, runs, indices, seeds, left_out)


def _worth(cells: Mapping[str, Cell]) -> tuple[int, int, int]:
    """How much a setting's plots can show: numbers of arms, detectors, images not known to be real."""
    results = [record.result for cell in cells.values() for record in cell.records]
    synthetic = max((result.synthetic + result.unknown for result in results), default=0)
    return len(cells), sum(cell.auroc is not None for cell in cells.values()), synthetic


def _left(cell: Cell) -> list[Result]:
    """The results of a cell that have an analysis, in the order of seeds."""
    return [record.result for record in cell.records if (record.result.path.parent / NAME).is_file()]


def real_and_made(run: Analysis, generator: str) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the real images and of one generator's, float32 [n] and [m]; m is 0 if it has none."""
    assert run.scores is not None and run.scores_generator is not None
    number = run.generators.index(generator) if generator in run.generators else -1
    return run.scores[run.scores_generator == 0], run.scores[run.scores_generator == number]


def _scores_both(run: Analysis) -> bool:
    import numpy as np

    if run.scores is None or run.scores_generator is None or not np.isfinite(run.scores).all():
        return False
    return bool((run.scores_generator == 0).any() and run.synthetic(run.scores_generator).any())


def _scores_unknown(run: Analysis) -> bool:
    return run.scores_generator is not None and bool(run.unknown(run.scores_generator).any())
