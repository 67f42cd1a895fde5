"""The report's image gallery: the pool images that look most and least synthetic to each detector, and its queue."""

from __future__ import annotations

import base64
import io
import math
from html import escape
from typing import TYPE_CHECKING

from usb_rsmatch.data.pool.provenance import Provenance
from usb_rsmatch.report.analysis_file import Analysis, Pictures
from usb_rsmatch.report.plot_style import DARK, LIGHT, Theme
from usb_rsmatch.report.plotted_runs import PlottedRuns

if TYPE_CHECKING:
    import numpy as np

MOST_GALLERIES = 3  # largest number of arms in the gallery

STYLE = """
.tiles { display: grid; grid-template-columns: repeat(auto-fill, 4rem); gap: .55rem .5rem; }
.tile { margin: 0; width: 4rem; }
.tile img {
  display: block; box-sizing: content-box; width: 4rem; height: 4rem; object-fit: contain; margin: 0;
  border-bottom: 5px solid var(--of);
}
.tile img { image-rendering: pixelated; }
.smooth .tile img { image-rendering: auto; }
.tile span { display: block; font-size: .7rem; color: var(--soft); text-align: center;
  font-variant-numeric: tabular-nums; }
.key { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; margin: 0 0 1rem; padding: 0; list-style: none;
  font-size: .84rem; }
.key li::before { content: ""; display: inline-block; width: 1.1rem; height: 5px; margin-right: .45rem;
  vertical-align: middle; background: var(--of); }
h3 { font-size: .95rem; font-weight: 620; margin: 1.8rem 0 .5rem; }
h4 { font-size: .84rem; font-weight: 550; color: var(--soft); margin: 1.1rem 0 .45rem; }
.classes { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(19rem, 100%), 1fr)); gap: .2rem 1.5rem; }
.classes h5 { font-size: .78rem; font-weight: 550; color: var(--soft); margin: .5rem 0 .3rem; }
.classes .tiles { grid-template-columns: repeat(auto-fill, 2.75rem); }
.classes .tile, .classes .tile img { width: 2.75rem; }
.classes .tile img { height: 2.75rem; }
"""


def style(plotted: PlottedRuns) -> str:
    """The gallery's CSS, with the colours of the provenance of these runs."""

    def colours(theme: Theme) -> str:
        return " ".join(f"--of-{at}: {theme.of_provenance(at)};" for at in range(len(plotted.provenance)))

    return f":root {{ {colours(LIGHT)} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {colours(DARK)} }} }}{STYLE}"


def gallery(plotted: PlottedRuns) -> str:
    """HTML of the gallery, arms with a queue first; empty if no arm scored its pool."""
    parts = []
    first = {arm: runs[0] for arm, runs in plotted.scoring.items()}
    queued = sorted(first, key=lambda arm: first[arm].queued is None)[:MOST_GALLERIES]  # those with a queue first
    for arm in (arm for arm in first if arm in queued):
        run = first[arm]
        blocks = [
            _block("Highest scores, most synthetic first", run.highest, plotted, run),
            _block("Lowest scores, most real first", run.lowest, plotted, run),
            _queue(plotted, run),
        ]
        parts.append(f"<h3>{escape(arm)}</h3>{''.join(blocks)}")
    if not parts:
        return ""
    key = "".join(f'<li style="--of: var(--of-{at})">{escape(name)}</li>' for at, name in enumerate(plotted.provenance))
    return f'<ul class="key">{key}</ul>{"".join(parts)}'


def _block(title: str, pictures: Pictures | None, plotted: PlottedRuns, run: Analysis) -> str:
    if pictures is None or not len(pictures.images):
        return ""
    return f"<h4>{title}</h4>{_tiles(pictures, range(len(pictures.images)), plotted, run)}"


def _queue(plotted: PlottedRuns, run: Analysis) -> str:
    """The queue's newest images under their pseudo-classes, and how many of the entries are truly synthetic."""
    if run.queued is None or run.queue_generator is None or not len(run.queue_generator):
        return ""
    assert run.queued.classes is not None
    known = run.queue_generator[~run.unknown(run.queue_generator)]
    title = f"In the queue: {len(run.queue_generator)} entries"
    if len(known) and (len(run.generators) > 2 or Provenance.UNKNOWN.word not in run.generators):
        of = "them" if len(known) == len(run.queue_generator) else f"the {len(known)} of known provenance"
        title += f", {100 * float(run.synthetic(known).mean()):.0f} % of {of} truly synthetic"
    groups = []
    for label in sorted(set(run.queued.classes.tolist())):
        name = run.classes[label] if 0 <= label < len(run.classes) else str(label)
        places = [at for at, other in enumerate(run.queued.classes.tolist()) if other == label]
        groups.append(f"<div><h5>{escape(name)}</h5>{_tiles(run.queued, places, plotted, run)}</div>")
    return f'<h4>{title}; the newest, by pseudo-class</h4><div class="classes">{"".join(groups)}</div>'


def _tiles(pictures: Pictures, places: range | list[int], plotted: PlottedRuns, run: Analysis) -> str:
    smooth = " smooth" if max(pictures.images.shape[1:3]) > 32 else ""
    return f'<div class="tiles{smooth}">{"".join(_tile(pictures, at, plotted, run) for at in places)}</div>'


def _tile(pictures: Pictures, at: int, plotted: PlottedRuns, run: Analysis) -> str:
    name, score = run.generators[int(pictures.generators[at])], float(pictures.scores[at])
    figure = f"{score:.2f}" if math.isfinite(score) else "&nbsp;"
    colour = f"--of: var(--of-{plotted.provenance.index(name)})"
    return (
        f'<figure class="tile" style="{colour}" title="{escape(name)}">'
        f'<img src="{data_uri(png(pictures.images[at]))}" alt="{escape(name)}"><span>{figure}</span></figure>'
    )


def png(image: np.ndarray) -> bytes:
    """An image uint8 [H, W, 1 or 3] as PNG."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "PNG")
    return file.getvalue()


def data_uri(image: bytes) -> str:
    """A PNG as a data URI."""
    return f"data:image/png;base64,{base64.b64encode(image).decode()}"
