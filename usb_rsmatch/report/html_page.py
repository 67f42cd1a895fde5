"""The report as one self-contained HTML page: inline style, images as data, light and dark mode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from usb_rsmatch.report.comparison import Table
from usb_rsmatch.report.image_gallery import data_uri, gallery
from usb_rsmatch.report.image_gallery import style as gallery_style
from usb_rsmatch.report.plotted_runs import MOST_SEEDS, PlottedRuns
from usb_rsmatch.report.table_sorting import POLICY, SCRIPT
from usb_rsmatch.report.table_sorting import STYLE as SORTING_STYLE
from usb_rsmatch.report.text_table import Sheet, details, explanations, headline, overview

# By plot: title, text in place of the image, caption.
CAPTIONS = {
    "accuracy": (
        "Test accuracy",
        "Test accuracy of every arm",
        "Dots are seeds, diamonds means, bars and bands their 95 % intervals; dashed: a pool of its own.",
    ),
    "curves": (
        "While training",
        "Accuracy and detection while training",
        "Thick lines are means over seeds; thin lines, with few arms, the seeds.",
    ),
    "detector": (
        "Detectors by generator",
        "ROC and scores of every detector by generator",
        "Curves: the ROC of each detector against one generator, the mean over seeds. Steps: how each detector scores "
        "real images and that generator's, first seed.",
    ),
    "confusion": (
        "Confusion matrices",
        "Confusion matrix of every arm",
        "Percent of the test images of a true class (row) that are predicted as each class (column), over the seeds "
        f"(the first {MOST_SEEDS} of more). "
        "The colour grows with the square root, so that small confusions show.",
    ),
    "features": (
        "Features",
        "t-SNE of features by class and by provenance",
        "t-SNE of the averaged network's features of images of the pool, first seed: by class (above; the names "
        "stand at their medians) and by provenance (below). Distances between groups mean little.",
    ),
}
GALLERY_NOTE = "The bar under an image is its true provenance (or unknown), the figure its score; first seed."

STYLE = """
:root {
  color-scheme: light dark;
  --ink: #1f2328; --soft: #59636e; --line: #d8dee4; --ground: #fff; --best: #0a5ca8;
}
@media (prefers-color-scheme: dark) {
  :root { --ink: #d7dde3; --soft: #8d96a0; --line: #30363d; --ground: #16191d; --best: #79b8f0; }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif;
}
main { max-width: 66rem; margin: 0 auto; padding: 3.5rem 1.5rem 5rem; }
h1 { font-size: 1.9rem; font-weight: 650; line-height: 1.2; margin: 0 0 .35rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; font-weight: 620; margin: 3rem 0 .9rem; }
p { margin: 0 0 2rem; }
.soft, .notes, figcaption { color: var(--soft); }
.notes, figcaption { font-size: .84rem; }
.notes { margin: 1rem 0 0; padding: 0; list-style: none; }
.notes li + li { margin-top: .2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 550; font-size: .8rem; color: var(--soft); vertical-align: bottom; }
th, td { padding: .5rem 1.2rem .5rem 0; border-bottom: 1px solid var(--line); }
th.n, td.n { text-align: right; }
td.n { white-space: nowrap; }
th:last-child, td:last-child { padding-right: 0; }
td:first-child { font-weight: 550; min-width: 7rem; overflow-wrap: anywhere; }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--ground); }
td.best { color: var(--best); font-weight: 650; }
figure { margin: 0; }
figure img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
figcaption { margin-top: .6rem; }
details { margin-top: 3rem; border-top: 1px solid var(--line); padding-top: 1rem; }
summary { cursor: pointer; font-weight: 620; }
.dense { font-size: .83rem; }
.dense th, .dense td { padding-right: .9rem; }
details table { font-size: .78rem; margin-top: 1rem; }
details td { white-space: nowrap; }
code { font: .92em ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
@media (max-width: 40rem) {
  main { padding: 2rem 1rem 3rem; }
  picture { display: block; overflow-x: auto; }
  figure > picture > img { max-width: none; width: 46rem; }
}
@media print { main { padding: 0; } }
"""


def page(
    table: Table, plots: Mapping[str, Sequence[bytes]], runs: Sheet, software: str, plotted: PlottedRuns | None = None
) -> str:
    """The whole page; `plots` are {name: (PNG for light, PNG for dark)}, `runs` the sheet of every run.

    `plotted` are the runs' analyses for plots; the image gallery is only on this page.
    """
    tiles = gallery(plotted) if plotted else ""
    lines = explanations(table) + (plotted.explain() if plotted else [])
    notes = "".join(f"<li>{escape(line)}</li>" for line in lines)
    parts = [
        f"<h1>{escape(table.name)}</h1>",
        f'<p class="soft">{escape(headline(table))}</p>',
        *map(_section, overview(table)),
        f'<ul class="notes">{notes}</ul>',
        *(_figure(images, *CAPTIONS[name]) for name, images in plots.items()),
        *([f'<h2>Gallery</h2><p class="notes">{GALLERY_NOTE}</p>{tiles}'] if tiles else []),
        *map(_section, details(table)),
        f"<details><summary>Every run, and the command that repeats it</summary>{_table(runs)}"
        f'<p class="notes">Best is chosen on the test set, as USB quotes it. '
        f"Made with {escape(software)}.</p></details>",
    ]
    body = "\n".join(parts)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {POLICY}">
<title>{escape(table.name)}</title>
<style>{STYLE}{SORTING_STYLE}{gallery_style(plotted) if plotted and tiles else ""}</style>
</head>
<body>
<main>
{body}
</main>
<script>{SCRIPT}</script>
</body>
</html>
"""


def _section(sheet: Sheet) -> str:
    return (f"<h2>{escape(sheet.title)}</h2>" if sheet.title else "") + _table(sheet)


def _table(sheet: Sheet) -> str:
    def attribute(column: int, best: bool = False) -> str:
        names = " ".join([*(["n"] if not sheet.is_words(column) else []), *(["best"] if best else [])])
        return f' class="{names}"' if names else ""

    head = "".join(
        f'<th scope="col"{attribute(column)}>{escape(name)}</th>' for column, name in enumerate(sheet.columns)
    )
    rows = []
    for row in sheet.rows:
        entries = []
        for column, entry in enumerate(row):
            text = f"<code>{escape(entry.text)}</code>" if entry.code else escape(entry.text)
            entries.append(f"<td{attribute(column, entry.bold)}>{text}</td>")
        rows.append(f"<tr>{''.join(entries)}</tr>")
    content = f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    dense = ' class="dense"' if len(sheet.columns) > 7 else ""
    return f'<div class="wide"><table{dense}>{content}</table></div>'


def _figure(images: Sequence[bytes], title: str, alternative: str, caption: str) -> str:
    light, dark = map(data_uri, images)
    return (
        f"<h2>{escape(title)}</h2><figure><picture>"
        f'<source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{escape(alternative)}">'
        f"</picture><figcaption>{escape(caption)}</figcaption></figure>"
    )
