"""The table of a comparison: arms by settings, each cell an estimate over seeds, paired with the baseline's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from usb_rsmatch.errors import UserError
from usb_rsmatch.report.collection import Collection, Record
from usb_rsmatch.report.result_file import Scalar
from usb_rsmatch.report.statistics import Estimate, average_ranks, estimate, paired_difference


@dataclass(frozen=True)
class Setting:
    """One combination of axis values except the seed, in which arms are compared."""

    axes: dict[str, Scalar]

    @property
    def label(self) -> str:
        """`num_labels=40, dataset=digits`; empty if there is only one setting."""
        return ", ".join(f"{key}={value}" for key, value in self.axes.items())


@dataclass(frozen=True)
class Cell:
    """One arm in one setting, over seeds. Accuracies and differences are in percent, AUROC is 0 to 1."""

    records: list[Record]
    accuracy: Estimate
    best_accuracy: Estimate  # chosen on the test set
    difference: Estimate | None  # from the baseline; None for the baseline and without a common seed
    leads: bool  # whether no arm of the setting has a higher mean

    @property
    def auroc(self) -> Estimate | None:
        """Area under the detector's ROC curve on the whole pool."""
        return self.detection("auroc")

    @property
    def pool(self) -> str:
        """The unlabelled pool in words; several if different ones are mixed."""
        return "; ".join(dict.fromkeys(record.result.describe_pool() for record in self.records))

    @property
    def by_seed(self) -> dict[int, float]:
        """{seed: accuracy in percent}."""
        return by_seed(self.records)

    def detection(self, figure: str, generator: str | None = None) -> Estimate | None:
        """`auroc`, `ap` or `fpr95`, 0 to 1, of all synthetic images or of one generator's; None if no run has it."""
        results = [record.result for record in self.records]
        parts = [
            result.detection if generator is None else result.detection_by_generator.get(generator)
            for result in results
        ]
        values = [value for part in parts if part and (value := part[figure]) is not None]
        return estimate(values) if values else None


@dataclass(frozen=True)
class Table:
    """Everything that is shown. `cells[i].get(j)` is arm j in setting i."""

    name: str
    arms: list[str]
    settings: list[Setting]
    cells: list[dict[str, Cell]]
    ranks: dict[str, float]
    baseline: str | None
    remarks: list[str]

    @property
    def records(self) -> list[Record]:
        """Every run once, setting by setting, arm by arm."""
        listed: dict[str, Record] = {}
        for cells in self.cells:
            for arm in self.arms:
                for record in cells[arm].records if arm in cells else []:
                    listed.setdefault(str(record.result.path), record)
        return list(listed.values())

    @property
    def detects(self) -> bool:
        """Whether any arm has a detector."""
        return any(cell.auroc for cells in self.cells for cell in cells.values())

    @property
    def pool(self) -> str | None:
        """The unlabelled pool in words, if it is the same in every run."""
        pools = {record.result.describe_pool() for record in self.records}
        return pools.pop() if len(pools) == 1 else None


def by_seed(records: Sequence[Record]) -> dict[int, float]:
    """{seed: final accuracy in percent}."""
    return {record.result.seed: 100 * record.result.last for record in records}


def make_table(collection: Collection, baseline: str | None = None) -> Table:
    """The table of a collection; `baseline` replaces the grid's.

    An arm that sets an axis's key itself appears in every setting of that axis.
    Raises UserError for a baseline that is not an arm.
    """
    baseline = baseline or collection.baseline
    arms = list(dict.fromkeys(record.arm for record in collection.records))
    if baseline is not None and baseline not in arms:
        raise UserError(f"the baseline {baseline!r} has no results: choose one of {', '.join(arms)}")
    settings = _settings(collection)
    cells = [_cells(setting, arms, collection.records, baseline) for setting in settings]
    blocks = []
    for row in cells:
        for seed in sorted({seed for cell in row.values() for seed in cell.by_seed}):
            blocks.append({arm: cell.by_seed[seed] for arm, cell in row.items() if seed in cell.by_seed})
    ranks = average_ranks([block for block in blocks if len(block) == len(arms)]) if len(arms) > 1 else {}
    return Table(collection.name, arms, settings, cells, ranks, baseline, collection.remarks)


def _settings(collection: Collection) -> list[Setting]:
    """The settings of the runs with the most axes, in the order of each axis's values."""
    orders: dict[str, list[Scalar]] = {axis: [] for axis in collection.axes}
    for record in collection.records:
        for axis, value in record.axes.items():
            if value not in orders[axis]:
                orders[axis].append(value)
    for values in orders.values():
        if all(isinstance(value, (int, float)) for value in values):
            values.sort()
    places = {json.dumps(record.axes): record.axes for record in collection.records}
    whole = [axes for axes in places.values() if not any(axes.items() < other.items() for other in places.values())]
    settings = [Setting({axis: axes[axis] for axis in collection.axes if axis in axes}) for axes in whole]
    return sorted(settings, key=lambda setting: [orders[axis].index(value) for axis, value in setting.axes.items()])


def _cells(setting: Setting, arms: Sequence[str], records: Sequence[Record], baseline: str | None) -> dict[str, Cell]:
    place = setting.axes.items()
    found: dict[str, list[Record]] = {arm: [] for arm in arms}
    for record in records:
        if record.axes.items() <= place:
            found[record.arm].append(record)
    accuracies = {arm: by_seed(held) for arm, held in found.items() if held}
    highest = max(estimate(list(values.values())).mean for values in accuracies.values())
    reference = accuracies.get(baseline, {}) if baseline is not None else {}
    cells = {}
    for arm, values in accuracies.items():
        held = found[arm]
        accuracy = estimate(list(values.values()))
        cells[arm] = Cell(
            records=sorted(held, key=lambda record: record.result.seed),
            accuracy=accuracy,
            best_accuracy=estimate([100 * record.result.best for record in held]),
            difference=None if arm == baseline else paired_difference(values, reference),
            leads=len(accuracies) > 1 and round(accuracy.mean, 2) == round(highest, 2),
        )
    return cells
