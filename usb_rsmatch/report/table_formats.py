"""Renders tables as plain text, Markdown, LaTeX and CSV; every name is escaped."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from typing import Any

from usb_rsmatch.csv_files import FORMULA
from usb_rsmatch.report.comparison import Table
from usb_rsmatch.report.statistics import Estimate
from usb_rsmatch.report.text_table import Sheet, Text, sheets

_MARKDOWN = {character: f"\\{character}" for character in "\\`*_{}<>#|~$"}
_MARKDOWN |= {"\n": " ", "\r": " ", "&": "&amp;"}
_LATEX = {character: f"\\{character}" for character in "&%$#_{}"}
_LATEX |= {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
}
_LATEX |= {
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "−": "$-$",
    "–": "--",
    "\n": " ",
    "\r": " ",
}
_LATEX |= {"[": "{[}", "]": "{]}"}  # after \\ LaTeX would read a bracket as an option


def plain(table: Table) -> str:
    """Plain text for a terminal: aligned columns, an asterisk marks the best."""
    return "\n\n".join(_plain(sheet) for sheet in sheets(table))


def _plain(sheet: Sheet) -> str:
    heads = [column.split(", ") for column in sheet.columns]  # a line for each axis
    tallest = max(map(len, heads))
    rows = [[([""] * tallest + head)[line - tallest] for head in heads] for line in range(tallest)]
    rows += [[f"{entry.text}{' *' if entry.bold else ''}" for entry in row] for row in sheet.rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    rule = "-" * max(map(len, lines))
    return "\n".join([*([sheet.title] if sheet.title else []), *lines[:tallest], rule, *lines[tallest:]])


def markdown(sheet: Sheet) -> str:
    """A Markdown pipe table, numbers right-aligned."""

    def entry(text: Text) -> str:
        if text.code:
            return "`" + text.text.replace("`", "'").replace("|", "\\|") + "`"
        escaped = escape_markdown(text.text)
        return f"**{escaped}**" if text.bold else escaped

    heads = [escape_markdown(column) for column in sheet.columns]
    rules = [":--" if sheet.is_words(column) else "--:" for column in range(len(heads))]
    rows = [heads, rules, *([entry(text) for text in row] for row in sheet.rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def latex(table: Table) -> str:
    """LaTeX tables for `booktabs`, one per sheet."""
    return "% needs \\usepackage{booktabs}\n" + "\n".join(_latex(sheet, table.name) for sheet in sheets(table))


def _latex(sheet: Sheet, name: str) -> str:
    def entry(text: Text) -> str:
        escaped = escape_latex(text.text)
        return f"\\textbf{{{escaped}}}" if text.bold else escaped

    rows = [" & ".join(entry(text) for text in row) + r" \\" for row in sheet.rows]
    columns = "".join("l" if sheet.is_words(column) else "r" for column in range(len(sheet.columns)))
    caption = ": ".join(escape_latex(part) for part in (name, sheet.title) if part)
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            f"\\caption{{{caption}}}",
            f"\\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            " & ".join(escape_latex(column) for column in sheet.columns) + r" \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def figures_csv(table: Table) -> str:
    """A row for each arm in each setting, plain numbers, empty if there is none."""
    axes = list(dict.fromkeys(axis for setting in table.settings for axis in setting.axes))
    header = ["arm", *axes, "dataset", "labels", "iterations", "real", "synthetic", "unknown", "seeds"]
    generators = list(dict.fromkeys(name for record in table.records for name in record.result.detection_by_generator))
    detection: list[tuple[str, str | None]] = [("auroc", None), ("ap", None), ("fpr95", None)]
    detection += [("auroc", name) for name in generators]
    names = [f"{figure}_of_{generator}" if generator else figure for figure, generator in detection]
    for figure in ("accuracy", "best_accuracy_chosen_on_test", "difference", *names):
        header += [f"{figure}_{part}" for part in ("mean", "std", "low", "high")]
    rows: list[list[Any]] = [[*header, "average_rank", "is_best"]]
    for setting, cells in zip(table.settings, table.cells, strict=True):
        for arm in table.arms:
            if arm not in cells:
                continue
            cell = cells[arm]
            results = [record.result for record in cell.records]
            facts = [
                "; ".join(dict.fromkeys(str(getattr(result, name)) for result in results))
                for name in ("dataset", "num_labels", "iterations", "real", "synthetic", "unknown")
            ]
            row: list[Any] = [arm, *(setting.axes.get(axis) for axis in axes), *facts, cell.accuracy.n]
            detected = [cell.detection(figure, generator) for figure, generator in detection]
            for shown in (cell.accuracy, cell.best_accuracy, cell.difference, *detected):
                row += _parts(shown)
            rows.append([*row, table.ranks.get(arm), int(cell.leads)])
    return _csv(rows)


def usb_csv(table: Table) -> str:
    """USB's own layout: one row per arm, one column per setting, error rate in percent as `mean±std` (several
    seeds).
    """
    columns = []
    for setting, cells in zip(table.settings, table.cells, strict=True):
        result = next(iter(cells.values())).records[0].result
        further = [f"{key}={value}" for key, value in setting.axes.items() if key not in ("dataset", "num_labels")]
        columns.append("_".join([result.dataset, str(result.num_labels), *further]))
    rows: list[list[Any]] = [["", *columns]]
    for arm in table.arms:
        shown = [cells[arm].accuracy if arm in cells else None for cells in table.cells]
        rows.append([arm, *map(_error_rate, shown)])
    return _csv(rows)


def _error_rate(accuracy: Estimate | None) -> str:
    if accuracy is None:
        return "None"
    mean = f"{100 - accuracy.mean:.2f}"
    return mean if accuracy.std is None else f"{mean}±{accuracy.std:.2f}"


def _parts(shown: Estimate | None) -> list[float | None]:
    return [None] * 4 if shown is None else [_round(shown.mean), *map(_round, (shown.std, shown.low, shown.high))]


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def _csv(rows: Iterable[list[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in rows:
        writer.writerow([escape_csv(entry) if isinstance(entry, str) else entry for entry in row])
    return text.getvalue()


def escape_markdown(text: str) -> str:
    """Escape text for a Markdown table."""
    escaped = "".join(_MARKDOWN.get(character, character) for character in text)
    return escaped.replace("](", "]\\(").replace("][", "]\\[")  # brackets alone do not make a link


def escape_latex(text: str) -> str:
    """Escape text for LaTeX."""
    return "".join(_LATEX.get(character, character) for character in text)


def escape_csv(text: str) -> str:
    """Escape text that a spreadsheet would execute as a formula by a leading apostrophe."""
    return f"'{text}" if text.startswith(FORMULA) else text
