"""The entries of a table as text, independent of the output format: columns, rows, and which entry is best."""

from __future__ import annotations

import math
from dataclasses import dataclass

from usb_rsmatch.detection.share_text import ASSUMPTIONS
from usb_rsmatch.report.choice import choice
from usb_rsmatch.report.comparison import Cell, Table
from usb_rsmatch.report.statistics import Estimate

WIDEST_SUMMARY = 5  # largest number of settings side by side on a page
MOST_PANELS = 9  # largest number of settings in a plot
NONE = "–"


@dataclass(frozen=True)
class Text:
    """A table entry; `bold` marks the best of its column, `code` marks commands."""

    text: str
    bold: bool = False
    code: bool = False


@dataclass(frozen=True)
class Sheet:
    """A table ready to be rendered. The first `words` columns contain words, the others numbers or code."""

    title: str
    columns: list[str]
    rows: list[list[Text]]
    words: int = 1

    def is_words(self, column: int) -> bool:
        """Whether a column is left-aligned."""
        return column < self.words or any(row[column].code for row in self.rows[:1])


def sheets(table: Table) -> list[Sheet]:
    """All tables: the overview first, then the details."""
    return overview(table) + details(table)


def overview(table: Table) -> list[Sheet]:
    """The single setting in full, or accuracy by arm and setting, split into sheets that fit a page's width."""
    if len(table.settings) == 1:
        return _details(table, table.settings[0].label, table.cells[0])
    count = len(table.settings)
    width = math.ceil(count / math.ceil(count / WIDEST_SUMMARY))  # sheets of equal size: 6 settings become 3 and 3
    return [_summary(table, start, start + width) for start in range(0, count, width)]


def details(table: Table) -> list[Sheet]:
    """Each setting in full, if there are several."""
    if len(table.settings) == 1:
        return []
    pairs = zip(table.settings, table.cells, strict=True)
    return [sheet for setting, cells in pairs for sheet in _details(table, setting.label, cells)]


def _summary(table: Table, start: int, stop: int) -> Sheet:
    rows = []
    for arm in table.arms:
        shown = [cells.get(arm) for cells in table.cells[start:stop]]
        entries = [Text(spread(cell.accuracy), cell.leads) if cell else Text(NONE) for cell in shown]
        rows.append([Text(arm), *entries, _rank(table, arm)])
    labels = [setting.label for setting in table.settings[start:stop]]
    return Sheet("Accuracy (%)", ["", *labels, "Rank"], rows)


def _details(table: Table, title: str, cells: dict[str, Cell]) -> list[Sheet]:
    further = (_detection(table, title, cells), _unknown_shares(table, title, cells))
    return [_detail(table, title, cells), *(sheet for sheet in further if sheet)]


def _detail(table: Table, title: str, cells: dict[str, Cell]) -> Sheet:
    pooled = table.pool is None  # a common pool is in the headline
    columns = ["", *(["Unlabelled pool"] if pooled else []), "Accuracy (%)"]
    if table.baseline is not None:
        columns.append(f"Against {table.baseline}")
    if table.detects:
        columns.append("AUROC")
    ranked = bool(table.ranks) and len(table.settings) == 1  # with several settings, ranks are in the summary
    columns += [*(["Rank"] if ranked else []), "Seeds"]
    rows = []
    for arm in table.arms:
        cell = cells.get(arm)
        if cell is None:
            continue
        row = [Text(arm), *([Text(cell.pool)] if pooled else []), Text(spread(cell.accuracy), cell.leads)]
        if table.baseline is not None:
            row.append(Text(interval(cell.difference)))
        if table.detects:
            row.append(Text(spread(cell.auroc, 3) if cell.auroc else NONE))
        row += [_rank(table, arm)] if ranked else []
        rows.append([*row, Text(str(cell.accuracy.n))])
    return Sheet(title, columns, rows, words=1 + pooled)


def _detection(table: Table, title: str, cells: dict[str, Cell]) -> Sheet | None:
    """The detection metrics of each detector, overall and by generator; None without a detector."""
    arms = [arm for arm in table.arms if arm in cells and cells[arm].auroc]
    if not arms:
        return None
    results = [record.result for arm in arms for record in cells[arm].records]
    generators = list(dict.fromkeys(name for result in results for name in result.detection_by_generator))
    asked: list[tuple[str, str | None]] = [("auroc", None), ("ap", None), ("fpr95", None)]
    asked += [("auroc", name) for name in generators if len(generators) > 1]
    columns = ["", "AUROC", "AP", "FPR95", *(f"AUROC of {name}" for _, name in asked if name)]
    rows = [[Text(arm)] for arm in arms]
    for figure, generator in asked:
        found = [cells[arm].detection(figure, generator) for arm in arms]
        means = [round(value.mean, 3) for value in found if value]
        best = (min if figure == "fpr95" else max)(means, default=None)
        for row, value in zip(rows, found, strict=True):
            leads = value is not None and len(arms) > 1 and round(value.mean, 3) == best
            row.append(Text(spread(value, 3) if value else NONE, leads))
    return Sheet(f"{title}: detection of synthetic images" if title else "Detection of synthetic images", columns, rows)


def _unknown_shares(table: Table, title: str, cells: dict[str, Cell]) -> Sheet | None:
    """The estimated share of synthetic images among those of unknown provenance by each detector; None without any."""
    rows = []
    for arm in (arm for arm in table.arms if arm in cells):
        shares = [share for record in cells[arm].records if (share := record.result.unknown_share)]
        if not shares:
            continue
        found = [(s.estimate, s.low, s.high) for s in shares]
        known = [(e, a, b) for e, a, b in found if e is not None and a is not None and b is not None]
        entries = ["not estimated", NONE]
        if known:
            mean = sum(e for e, _, _ in known) / len(known)
            low, high = min(a for _, a, _ in known), max(b for _, _, b in known)
            entries = [f"{100 * mean:.1f}", f"{100 * low:.1f} to {100 * high:.1f}"]
        real = "; ".join(dict.fromkeys(f"{s.real_images:,} {s.real_part} images" for s in shares))
        images = "; ".join(dict.fromkeys(f"{s.images:,}" for s in shares))
        rows.append([Text(text) for text in (arm, *entries, images, real, f"{len(known)} of {len(shares)}")])
    if not rows:
        return None
    name = "Images of unknown provenance: estimated synthetic share"
    columns = ["", "Share (%)", "95 % interval", "Images", "Real side", "Runs with an estimate"]
    return Sheet(f"{title}: {name[0].lower()}{name[1:]}" if title else name, columns, rows)


def explanations(table: Table) -> list[str]:
    """Which arm validation favours, where there is validation, and explanations of the figures."""
    lines = [
        *choice(table),
        "Accuracy: final averaged (EMA) weights on the test set, mean ± sample deviation over seeds.",
    ]
    if table.baseline is not None:
        lines.append(
            f"Against {table.baseline}: difference in points, paired over the seeds that both have, "
            "with its 95 % t interval."
        )
    if table.detects:
        lines.append(
            "AUROC, AP, FPR95: the detector's score (an open-set method's outlier score) against true provenance, "
            "which training does not use; AUROC is 0.5 by chance. FPR95: share of the real images that are called "
            "synthetic where 95 % of the synthetic ones are found."
        )
    if any(record.result.unknown for record in table.records):
        lines.append(
            "Images of unknown provenance are trained on, and are in no figure that needs provenance: AUROC, AP, "
            "FPR95, purity, shares of the pool."
        )
    if any(record.result.unknown_share for record in table.records):
        lines.append(f"{ASSUMPTIONS} Of several runs: the mean share, and from the lowest to the highest interval end.")
    if table.ranks:
        lines.append("Rank: 1 is the most accurate; averaged over each seed of each setting that all arms have.")
    if len(table.settings) > MOST_PANELS:
        lines.append(f"The plots show the first {MOST_PANELS} of {len(table.settings)} settings.")
    return lines + [f"Note: {remark}." for remark in table.remarks]


def headline(table: Table) -> str:
    """One line about what is compared."""
    results = [record.result for record in table.records]
    seeds = sorted({result.seed for result in results})
    parts = [
        ", ".join(sorted({result.dataset for result in results})),
        f"{_values({result.num_labels for result in results})} labels",
        *([f"unlabelled: {table.pool}"] if table.pool else []),
        f"{_values({result.iterations for result in results})} iterations",
        f"seed {seeds[0]}" if len(seeds) == 1 else f"{len(seeds)} seeds",
        f"{len(results)} run{'s' * (len(results) > 1)}",
    ]
    return " · ".join(parts)


def spread(shown: Estimate, digits: int = 2) -> str:
    """`93.10 ± 0.52`, or the mean alone for a single value."""
    mean = f"{shown.mean:.{digits}f}"
    return mean if shown.std is None else f"{mean} ± {shown.std:.{digits}f}"


def interval(shown: Estimate | None) -> str:
    """`+1.20 [−0.35, +2.75]`, or the mean alone for a single value."""
    if shown is None:
        return NONE
    if shown.low is None or shown.high is None:
        return signed(shown.mean)
    return f"{signed(shown.mean)} [{signed(shown.low)}, {signed(shown.high)}]"


def signed(value: float) -> str:
    """A number with its sign, with a typographic minus."""
    return f"{value:+.2f}".replace("-", "−")


def _rank(table: Table, arm: str) -> Text:
    rank = table.ranks.get(arm)
    return Text(NONE if rank is None else f"{rank:.1f}", rank is not None and rank == min(table.ranks.values()))


def _values(values: set[int]) -> str:
    return ", ".join(f"{value:,}" for value in sorted(values))
