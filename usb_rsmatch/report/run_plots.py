"""Plots of single runs, from their analyses: detector scores and ROC, confusion matrices, features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from usb_rsmatch.report.analysis_file import Analysis
from usb_rsmatch.report.plot_style import COLUMNS, WIDTH, Draw, Theme, colour_of, draw_rows, label, style_of
from usb_rsmatch.report.plotted_runs import PlottedRuns, real_and_made

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes

MOST_GENERATORS = 6  # rows of the detector's plot
BINS = 32
NAMED_CLASSES = 20  # with more, class names and counts are too small to read
PERPLEXITY = 30.0


def detector_plot(plotted: PlottedRuns, theme: Theme) -> bytes | None:
    """A PNG of every detector against each generator: ROC curves, and its scores of real and synthetic images.

    With few detectors each row is a generator; with more each column is one, with the ROC above and one row of scores
    for each detector.
    """
    arms, generators = list(plotted.detecting), plotted.generators[:MOST_GENERATORS]
    if not arms or not generators:
        return None
    if len(arms) <= COLUMNS:
        by_generator = [
            [_roc_panel(plotted, name, theme), *(_histogram_panel(plotted, arm, name, theme) for arm in arms)]
            for name in generators
        ]
        return draw_rows(by_generator, [2.5] * len(by_generator), theme, widths=[1.0, *[1.25] * len(arms)])
    rows: list[list[Draw | None]] = []
    heights: list[float] = []
    for at in range(0, len(generators), COLUMNS):
        part = generators[at : at + COLUMNS]
        rows.append(_padded([_roc_panel(plotted, name, theme) for name in part], COLUMNS))
        rows += [_padded([_histogram_panel(plotted, arm, name, theme) for name in part], COLUMNS) for arm in arms]
        heights += [3.0, *[1.7] * len(arms)]
    return draw_rows(rows, heights, theme)


def _roc_panel(plotted: PlottedRuns, generator: str, theme: Theme) -> Draw:
    def draw(axes: Axes) -> None:
        import numpy as np

        axes.plot([0, 1], [0, 1], color=theme.faint, lw=1)
        drawn = 0
        for arm, runs in plotted.detecting.items():
            parts = [real_and_made(run, generator) for run in runs]
            curves = [roc(real, made) for real, made in parts if len(made)]
            if not curves:
                continue
            index = plotted.indices[arm]
            colour = colour_of(index, theme.arms)
            rates, mean = np.linspace(0, 1, 201), np.mean([curve for curve, _ in curves], axis=0)
            axes.plot(rates, mean, style_of(index), color=colour, label=label(arm))
            if len(plotted.detecting) > COLUMNS:  # more figures would lie on the curves
                continue
            auroc = float(np.mean([area for _, area in curves]))
            axes.text(0.98, 0.05 + 0.1 * drawn, f"{auroc:.3f}", color=colour, ha="right", fontsize=9, fontweight="bold")
            drawn += 1
        if drawn:
            axes.text(0.98, 0.05 + 0.1 * drawn, "AUROC", color=theme.soft, ha="right", fontsize=8)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
        axes.set(title=label(generator, 26), xlabel="Real called synthetic", ylabel="Synthetic found")
        axes.set_box_aspect(1)

    return draw


def roc(real: np.ndarray, made: np.ndarray) -> tuple[np.ndarray, float]:
    """True positive rate float [201] at even false positive rates from 0 to 1, and the area under the whole curve."""
    import numpy as np
    from sklearn.metrics import roc_auc_score, roc_curve

    truth = np.concatenate([np.zeros(len(real)), np.ones(len(made))])
    score = np.concatenate([real, made])
    false, true, _ = roc_curve(truth, score)
    return np.interp(np.linspace(0, 1, 201), false, true), float(roc_auc_score(truth, score))


def _histogram_panel(plotted: PlottedRuns, arm: str, generator: str, theme: Theme) -> Draw:
    def draw(axes: Axes) -> None:
        import numpy as np

        run = plotted.detecting[arm][0]
        assert run.scores is not None
        real, made = real_and_made(run, generator)
        low, high = (float(run.scores.min()), float(run.scores.max()))
        edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
        for values, name in ((real, "real"), (made, generator)):
            if len(values):
                colour = theme.of_provenance(plotted.provenance.index(name))
                counts, _ = np.histogram(values, edges)
                share = 100 * counts / len(values)
                axes.stairs(share, edges, fill=True, color=colour, alpha=0.28, lw=0)
                axes.stairs(share, edges, color=colour, lw=1.4, label=label(name, 26))
        if len(plotted.detecting) > COLUMNS:  # a row is a detector
            first, last = plotted.generators.index(generator) % COLUMNS == 0, arm == list(plotted.detecting)[-1]
            axes.set(xlabel="Score" if last else "", ylabel=f"{label(arm, 22)}\nImages (%)" if first else "")
        else:
            first = arm == next(iter(plotted.detecting))
            axes.set(xlabel="Score", ylabel="Images (%)" if first else "")
            if generator == plotted.generators[0]:
                axes.set_title(label(arm, 26))
        axes.set_ylim(bottom=0)
        axes.locator_params(nbins=4)

    return draw


def confusion_plot(plotted: PlottedRuns, theme: Theme) -> bytes:
    """A PNG with one panel per arm: the predictions for each class, in percent of the class, over the seeds."""
    columns = _columns(len(plotted.runs))
    arms = enumerate(plotted.runs.items())
    panels = [_confusion_panel(arm, runs, theme, first=at % columns == 0) for at, (arm, runs) in arms]
    rows = [_padded(panels[at : at + columns], columns) for at in range(0, len(panels), columns)]
    return draw_rows(rows, [WIDTH / columns * 1.06] * len(rows), theme)


def _confusion_panel(arm: str, runs: Sequence[Analysis], theme: Theme, first: bool) -> Draw:
    def draw(axes: Axes) -> None:
        import numpy as np
        from matplotlib.colors import LinearSegmentedColormap, PowerNorm

        total = np.sum([run.confusion for run in runs], axis=0)
        percent = 100 * total / np.maximum(total.sum(1, keepdims=True), 1)
        heat = LinearSegmentedColormap.from_list("heat", theme.heat)
        norm = PowerNorm(0.5, 0, 100)  # makes confusions of a few percent visible
        axes.imshow(percent, cmap=heat, norm=norm, interpolation="nearest")
        count, names = len(percent), runs[0].classes
        if count <= NAMED_CLASSES:
            upright = max(map(len, names)) <= 2
            size = 8 if count <= 10 else 6
            shown = [label(name, 12) for name in names]
            axes.set_xticks(range(count), shown, rotation=0 if upright else 90, fontsize=size)
            axes.set_yticks(range(count), shown, fontsize=size)
            for true in range(count):
                for predicted in range(count):
                    value = percent[true, predicted]
                    if round(value):
                        dark = norm(value) > 0.62
                        colour = theme.ground if dark else theme.ink
                        axes.text(
                            predicted, true, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=size - 1.2
                        )
        axes.grid(visible=False)
        axes.tick_params(length=0)
        accuracy = 100 * np.trace(total) / max(total.sum(), 1)
        axes.set(title=f"{label(arm, 30)}: {accuracy:.1f} %", xlabel="Predicted", ylabel="True" if first else "")
        for side in axes.spines.values():
            side.set(visible=True, color=theme.faint)

    return draw


def features_plot(plotted: PlottedRuns, themes: Sequence[Theme]) -> list[bytes]:
    """One PNG per theme: t-SNE of each arm's features, by class above, by provenance below; none without features.

    Source: van der Maaten and Hinton, "Visualizing Data using t-SNE" (JMLR 2008), by scikit-learn, initialised
    with principal components, so that equal features give equal plots.
    """
    shown = {arm: runs[0] for arm, runs in plotted.runs.items() if _has_map(runs[0])}
    if not shown:
        return []
    maps = {arm: embed(run) for arm, run in shown.items()}
    arms, columns = list(shown), _columns(len(shown))
    plots = []
    for theme in themes:
        rows: list[list[Draw | None]] = []
        for at in range(0, len(arms), columns):
            part = arms[at : at + columns]
            rows.append(_padded([_class_panel(arm, shown[arm], maps[arm], theme) for arm in part], columns))
            rows.append(_padded([_provenance_panel(plotted, shown[arm], maps[arm], theme) for arm in part], columns))
        plots.append(draw_rows(rows, [WIDTH / columns] * len(rows), theme))
    return plots


def embed(run: Analysis) -> np.ndarray:
    """The t-SNE of a run's features, float [m, 2]."""
    import numpy as np
    from sklearn.manifold import TSNE

    assert run.features is not None
    features = run.features.astype(np.float32)
    perplexity = min(PERPLEXITY, (len(features) - 1) / 3)
    found: np.ndarray = TSNE(perplexity=perplexity, init="pca", random_state=0, max_iter=500).fit_transform(features)
    return found


def _class_panel(arm: str, run: Analysis, points: np.ndarray, theme: Theme) -> Draw:
    def draw(axes: Axes) -> None:
        import matplotlib
        import numpy as np
        from matplotlib.patheffects import withStroke

        count = len(run.classes)
        colours = (
            matplotlib.color_sequences["petroff10"]
            if count <= 10
            else matplotlib.colormaps["turbo"](np.linspace(0.05, 0.95, count))
        )
        assert run.features_class is not None
        for index, name in enumerate(run.classes):
            own = points[run.features_class == index]
            axes.scatter(own[:, 0], own[:, 1], s=8, color=colours[index], linewidths=0, alpha=0.85)
            if count <= NAMED_CLASSES and len(own):
                x, y = np.median(own, axis=0)
                edge = [withStroke(linewidth=2.6, foreground=theme.ground)]
                axes.text(
                    x, y, label(name, 12), ha="center", va="center", fontsize=9, fontweight="bold", path_effects=edge
                )
        axes.set_title(label(arm, 30))
        _bare(axes, theme)

    return draw


def _provenance_panel(plotted: PlottedRuns, run: Analysis, points: np.ndarray, theme: Theme) -> Draw:
    def draw(axes: Axes) -> None:
        for index, name in enumerate(run.generators):
            own = points[run.features_generator == index]
            if len(own):
                colour = theme.of_provenance(plotted.provenance.index(name))
                axes.scatter(own[:, 0], own[:, 1], s=8, color=colour, linewidths=0, alpha=0.8)
                axes.scatter([], [], s=36, color=colour, linewidths=0, label=label(name, 26))  # for the legend
        _bare(axes, theme)

    return draw


def _bare(axes: Axes, theme: Theme) -> None:
    """Distances along the axes of a t-SNE mean nothing: no ticks, no grid, a thin frame."""
    axes.set(xticks=(), yticks=())
    axes.grid(visible=False)
    axes.margins(0.06)
    axes.set_box_aspect(1)
    for side in axes.spines.values():
        side.set(visible=True, color=theme.faint)


def _has_map(run: Analysis) -> bool:
    import numpy as np

    return run.features is not None and len(run.features) >= 10 and bool(np.isfinite(run.features).all())


def _columns(panels: int) -> int:
    """Panels per row: three, or four if three would leave a row with one panel; never so few that one fills the
    page.
    """
    return 4 if panels == 4 else COLUMNS


def _padded(panels: Sequence[Draw], columns: int) -> list[Draw | None]:
    return [*panels, *[None] * (columns - len(panels))]
