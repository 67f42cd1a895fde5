"""`usb-rsmatch report`: from the result files of a folder to Markdown, CSV, LaTeX, plots and one HTML page."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from usb_rsmatch.io import atomic_write, write_text
from usb_rsmatch.progress import duration
from usb_rsmatch.report import table_formats
from usb_rsmatch.report.accuracy_plots import accuracy_plot, learning_curves
from usb_rsmatch.report.collection import Record, collect
from usb_rsmatch.report.comparison import Table, make_table
from usb_rsmatch.report.html_page import CAPTIONS, page
from usb_rsmatch.report.plot_style import DARK, LIGHT
from usb_rsmatch.report.plotted_runs import PlottedRuns, gather
from usb_rsmatch.report.run_plots import confusion_plot, detector_plot, features_plot
from usb_rsmatch.report.text_table import Sheet, Text, explanations, headline, sheets


@dataclass(frozen=True)
class Report:
    """A written report: its table, its folder and its files."""

    table: Table
    folder: Path
    files: list[Path]


def report(
    results: str | Path, out: str | Path | None = None, baseline: str | None = None, mixed: bool = False
) -> Report:
    """Write report.md, index.html, results.csv, usb.csv, results.tex and plots to `out` (`<results>/report`).

    The same results give the same bytes. Nothing is written before everything is made.
    Raises UserError as `collect` and `make_table` do.
    """
    table = make_table(collect(results, mixed), baseline)
    folder = Path(results) / "report" if out is None else Path(out)
    plotted = gather(table)
    plots = _plots(table, plotted)
    texts = {
        "report.md": markdown_report(table, list(plots), plotted),
        "index.html": page(table, plots, runs_sheet(table), software(table), plotted),
        "results.csv": table_formats.figures_csv(table),
        "usb.csv": table_formats.usb_csv(table),
        "results.tex": table_formats.latex(table),
    }
    files = [folder / name for name in texts]
    for name, text in texts.items():
        write_text(folder / name, text)
    for name, (image, _dark) in plots.items():
        files.append(folder / f"{name}.png")
        with atomic_write(files[-1]) as temporary:
            temporary.write_bytes(image)
    return Report(table, folder, files)


def _plots(table: Table, plotted: PlottedRuns | None) -> dict[str, list[bytes]]:
    """{name: [PNG for light, PNG for dark]} of every plot for which the results contain data."""
    themes = (LIGHT, DARK)
    plots = {
        "accuracy": [accuracy_plot(table, theme) for theme in themes],
        "curves": learning_curves(table, themes),
    }
    if plotted is not None:
        plots["detector"] = [png for theme in themes if (png := detector_plot(plotted, theme))]
        plots["confusion"] = [confusion_plot(plotted, theme) for theme in themes]
        plots["features"] = features_plot(plotted, themes)
    return {name: images for name, images in plots.items() if images}


def markdown_report(table: Table, plots: list[str], plotted: PlottedRuns | None = None) -> str:
    """The report as Markdown; the plots are in the same folder."""
    escape = table_formats.escape_markdown
    parts = [f"# {escape(table.name)}", escape(headline(table))]
    for sheet in sheets(table):
        parts += [f"## {escape(sheet.title)}"] if sheet.title else []
        parts.append(table_formats.markdown(sheet))
    lines = explanations(table) + (plotted.explain() if plotted else [])
    parts.append("\n".join(f"- {escape(line)}" for line in lines))
    parts += [f"![{CAPTIONS[name][1]}]({name}.png)" for name in plots]
    parts += ["## Every run", table_formats.markdown(runs_sheet(table))]
    parts.append(f"{escape(BEST_NOTE)} Made with {escape(software(table))}.")
    return "\n\n".join(parts) + "\n"


BEST_NOTE = "Best is the highest accuracy of any evaluation: it is chosen on the test set, as USB quotes it."


def runs_sheet(table: Table) -> Sheet:
    """Every run with its figures and the command to repeat it."""
    columns = [
        "Run",
        "Seed",
        "Final (%)",
        "Best (%)",
        "AUROC",
        "Training",
        "Memory (MiB)",
        "Configuration",
        "Command",
    ]
    rows = []
    for record in table.records:
        result = record.result
        words = [
            _place(record),
            str(result.seed),
            f"{100 * result.last:.2f}",
            f"{100 * result.best:.2f}",
            "–" if result.auroc is None else f"{result.auroc:.3f}",
            duration(result.train_seconds),
            "–" if result.peak_memory_mib is None else f"{result.peak_memory_mib:.0f}",
        ]
        codes = [result.config_sha256[:12], command(record)]
        rows.append([*map(Text, words), *(Text(code, code=True) for code in codes)])
    return Sheet("Every run", columns, rows)


def command(record: Record) -> str:
    """The command to repeat a run: with the configuration that its grid wrote, else the one in its folder."""
    folder = record.result.path.parent
    written = folder.parent / "configs" / f"{folder.name}.yaml"
    path = written if written.is_file() else folder / "config.yaml"
    return f"usb-rsmatch train --c {shlex.quote(path.as_posix())}"


def software(table: Table) -> str:
    """The versions, devices and thread counts of the results, each combination once, and the dates."""
    results = [record.result for record in table.records]
    sets = dict.fromkeys(
        ", ".join(
            [
                *(f"{name} {version}" for name, version in result.versions.items()),
                *([f"on {result.device}"] if result.device else []),
                *([f"{result.threads} thread{'s' * (result.threads != '1')}"] if result.threads else []),
            ]
        )
        for result in results
    )
    days = sorted({result.finished[:10] for result in results} - {""})
    return "; ".join([*sets, *([" to ".join(dict.fromkeys((days[0], days[-1])))] if days else [])])


def _place(record: Record) -> str:
    return ", ".join([record.arm, *(f"{axis}={value}" for axis, value in record.axes.items())])
