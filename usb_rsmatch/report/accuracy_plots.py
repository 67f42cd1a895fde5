"""Plots of accuracy by arm or by pool, and of learning curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from usb_rsmatch.report.comparison import Cell, Setting, Table
from usb_rsmatch.report.learning_curves import Curve, mean_curve, read_curve
from usb_rsmatch.report.plot_style import LIGHT, Draw, Theme, draw_blocks, label, style_of
from usb_rsmatch.report.text_table import MOST_PANELS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_WITH_SEEDS = 6  # with more arms, single seeds are not drawn
POOL_AXES = ("synthetic_ratio", "synthetic_count", "real_count")


def accuracy_plot(table: Table, theme: Theme = LIGHT) -> bytes:
    """A PNG: curves over the synthetic share if the pool is an axis (and the share known), else one dot per seed."""
    varied = [axis for axis in POOL_AXES if len(_values(table, axis)) > 1]
    if varied != ["real_count"] and any(record.result.share_synthetic is None for record in table.records):
        varied = []
    return _by_pool(table, varied, theme) if varied else _by_arm(table, theme)


def learning_curves(table: Table, themes: Sequence[Theme] = (LIGHT,)) -> list[bytes]:
    """One PNG per theme: test accuracy and the detector's AUROC by step; none if no run has a curve."""
    measures = (("eval/top-1-acc", "Test accuracy (%)", 100.0), ("detection/auroc", "Detector's AUROC", 1.0))
    shown = []
    for key, name, scale in measures:
        pairs = zip(table.settings[:MOST_PANELS], table.cells[:MOST_PANELS], strict=True)
        panels = [(setting, curves) for setting, cells in pairs if (curves := _curves(cells, key))]
        if panels:
            shown.append((name, scale, panels))
    if not shown:
        return []
    return [
        draw_blocks(
            [[_curve_panel(table, *panel, name, scale, theme) for panel in panels] for name, scale, panels in shown],
            3.4 if len(table.settings) == 1 else 2.7,
            theme,
        )
        for theme in themes
    ]


def _curves(cells: Mapping[str, Cell], key: str) -> dict[str, list[Curve]]:
    found = {}
    for arm, cell in cells.items():
        curves = [read_curve(record.result.path.with_name("metrics.jsonl"), key) for record in cell.records]
        if any(curves):
            found[arm] = [curve for curve in curves if curve]
    return found


def _curve_panel(
    table: Table, setting: Setting, curves: dict[str, list[Curve]], name: str, scale: float, theme: Theme
) -> Draw:
    def draw(axes: Axes) -> None:
        for index, arm in enumerate(table.arms):
            colour, lines = theme.arms[index % len(theme.arms)], curves.get(arm, [])
            for line in lines if len(lines) > 1 and len(table.arms) <= MOST_WITH_SEEDS else []:
                axes.plot(list(line), [scale * value for value in line.values()], color=colour, lw=0.7, alpha=0.35)
            if lines:
                mean = mean_curve(lines)
                values = [scale * value for value in mean.values()]
                axes.plot(list(mean), values, style_of(index), color=colour, label=label(arm))
        axes.set(title=label(setting.label), xlabel="Training step", ylabel=name)

    return draw


def _by_arm(table: Table, theme: Theme) -> bytes:
    def panel(setting: Setting, cells: dict[str, Cell]) -> Draw:
        def draw(axes: Axes) -> None:
            for index, arm in enumerate(table.arms):
                if arm in cells:
                    _seeds(
                        axes,
                        cells[arm],
                        len(table.arms) - 1 - index,
                        theme.arms[index % len(theme.arms)],
                        theme,
                    )
            names = [label(arm) for arm in reversed(table.arms)]
            axes.set_yticks(range(len(names)), names)
            axes.set_ylim(-0.55, len(names) - 0.45)
            axes.tick_params(axis="y", length=0)
            axes.grid(axis="y", visible=False)
            axes.set(title=label(setting.label), xlabel="Test accuracy (%)")

        return draw

    panels = list(zip(table.settings, table.cells, strict=True))[:MOST_PANELS]
    return draw_blocks([[panel(*each) for each in panels]], 0.8 + 0.42 * len(table.arms), theme)


def _seeds(axes: Axes, cell: Cell, height: int, colour: str, theme: Theme) -> None:
    """One row: seeds above, mean and interval below."""
    values, shown = list(cell.by_seed.values()), cell.accuracy
    axes.scatter(values, [height + 0.16] * len(values), s=18, color=colour, alpha=0.6, linewidths=0)
    if shown.low is not None and shown.high is not None:
        axes.hlines(height - 0.12, max(shown.low, 0), min(shown.high, 100), color=colour, linewidth=2)
    axes.plot([shown.mean], [height - 0.12], "D", color=colour, markersize=6.5, markeredgecolor=theme.ground)


def _by_pool(table: Table, varied: list[str], theme: Theme) -> bytes:
    """Mean accuracy and interval by the pool's synthetic share, or by its real images if only they vary."""
    real_only = varied == ["real_count"]
    groups: dict[str, list[int]] = {}
    for index, setting in enumerate(table.settings):
        others = Setting({key: value for key, value in setting.axes.items() if key not in POOL_AXES})
        groups.setdefault(others.label, []).append(index)

    def place(cell: Cell) -> float:
        result = cell.records[0].result
        return result.real if real_only else 100 * (result.share_synthetic or 0.0)

    def panel(title: str, indices: list[int]) -> Draw:
        def draw(axes: Axes) -> None:
            for index, arm in enumerate(table.arms):
                colour = theme.arms[index % len(theme.arms)]
                cells = [table.cells[at][arm] for at in indices if arm in table.cells[at]]
                points = sorted({place(cell): cell.accuracy for cell in cells}.items())
                if len(points) == 1 and len(cells) > 1:  # an arm with a single pool: a horizontal line
                    axes.axhline(points[0][1].mean, color=colour, ls="--", lw=1.2, label=label(arm))
                    continue
                at = [x for x, _ in points]
                style = style_of(index)
                axes.plot(
                    at,
                    [y.mean for _, y in points],
                    style,
                    marker="o",
                    ms=4.5,
                    color=colour,
                    label=label(arm),
                )
                low = [max(y.mean if y.low is None else y.low, 0) for _, y in points]
                high = [min(y.mean if y.high is None else y.high, 100) for _, y in points]
                axes.fill_between(at, low, high, color=colour, alpha=0.13, linewidth=0)
            name = "Real images in the pool" if real_only else "Synthetic share of the pool (%)"
            axes.set(title=label(title), xlabel=name, ylabel="Test accuracy (%)")

        return draw

    panels = list(groups.items())[:MOST_PANELS]
    return draw_blocks([[panel(*each) for each in panels]], 3.2, theme)


def _values(table: Table, axis: str) -> set[Any]:
    return {setting.axes[axis] for setting in table.settings if axis in setting.axes}
