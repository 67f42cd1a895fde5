"""The common style of a report's plots: colours for light and dark mode, fonts, panels in rows, PNG output.

Matplotlib is imported late, and its Agg canvas is used directly, without a window system or global state.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLES = ("-", "--", ":", "-.")
COLUMNS = 3
WIDTH = 9.2  # inches, of a whole plot
DPI = 150

Draw = Callable[["Axes"], None]


@dataclass(frozen=True)
class Theme:
    """Colours of text, lines and background, of arms, of provenance (real first, then generators), and of a heat
    map.
    """

    ink: str
    soft: str
    faint: str
    ground: str
    arms: tuple[str, ...]
    provenance: tuple[str, ...]
    heat: tuple[str, ...]  # from none to most

    def of_provenance(self, index: int) -> str:
        """The colour of real images (0) or of a generator; grey is never a generator's."""
        return colour_of(index - 1, self.provenance[1:]) if index else self.provenance[0]


# The arms' colours are Okabe and Ito's for colour-blind readers, without yellow and black; lighter in dark mode.
# Provenance has other colours (Paul Tol's "muted"), so that generators and arms cannot be confused; real is grey.
LIGHT = Theme(
    ink="#1f2328",
    soft="#59636e",
    faint="#d8dee4",
    ground="#ffffff",
    arms=("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"),
    provenance=("#8c959f", "#882255", "#2f9e8f", "#b8860b", "#332288", "#cc6677"),
    heat=("#ffffff", "#cfe1f2", "#6aaed6", "#2070b4", "#08306b"),
)
DARK = Theme(
    ink="#d7dde3",
    soft="#8d96a0",
    faint="#30363d",
    ground="#16191d",
    arms=("#4ba3e3", "#f0803c", "#2fbf95", "#e39ac8", "#93d0f5", "#f2bb45"),
    provenance=("#7d8690", "#e0689c", "#4fc7b6", "#ddb54a", "#9d92e8", "#f09aa6"),
    heat=("#16191d", "#163a5c", "#1f6fa8", "#5aaee6", "#d6ecff"),
)


def draw_blocks(blocks: Sequence[Sequence[Draw]], height: float, theme: Theme) -> bytes:
    """A PNG of blocks of panels, each block wrapped into rows of `height` inches and of equal scale."""
    columns = min(max(map(len, blocks)), COLUMNS)
    rows = [list(block[at : at + columns]) for block in blocks for at in range(0, len(block), columns)]
    return draw_rows(rows, [height] * len(rows), theme, share_y=True)


def draw_rows(
    rows: Sequence[Sequence[Draw | None]],
    heights: Sequence[float],
    theme: Theme,
    share_y: bool = False,
    widths: Sequence[float] | None = None,
) -> bytes:
    """A PNG of rows of panels (None leaves a place empty), `heights` in inches; one legend below them all.

    With `share_y` the panels of a row have one scale, written at the first. `widths` are shares of the columns.
    """
    columns = max(map(len, rows))
    with house_style(theme):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(WIDTH, sum(heights) + 0.35), layout="constrained")
        FigureCanvasAgg(figure)
        figure.get_layout_engine().set(hspace=0.06)  # type: ignore[union-attr, call-arg]
        places = figure.add_gridspec(len(rows), columns, height_ratios=list(heights), width_ratios=widths)
        for at, row in enumerate(rows):
            first: Axes | None = None
            for column, draw in enumerate(row):
                if draw is None:
                    continue
                axes = figure.add_subplot(places[at, column], sharey=first if share_y else None)
                draw(axes)
                if share_y and first is not None:
                    axes.tick_params(axis="y", labelleft=False)
                    axes.set_ylabel("")
                first = first or axes
        _legend(figure)
        return _png(figure)


@contextmanager
def house_style(theme: Theme) -> Iterator[None]:
    """A context with Matplotlib's settings for the figures made in it."""
    import matplotlib

    style: Any = {
        "font.size": 9.5,
        "axes.titlesize": 9.5,
        "axes.axisbelow": True,
        "axes.grid": True,
        "grid.linewidth": 0.7,
        "lines.linewidth": 1.7,
        "text.parse_math": False,  # a dollar sign in a name is not math mode
        **{f"axes.spines.{side}": False for side in ("top", "right", "left")},
        **{key: theme.ground for key in ("figure.facecolor", "axes.facecolor", "savefig.facecolor")},
        **{key: theme.ink for key in ("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor")},
        **{key: theme.faint for key in ("grid.color", "axes.edgecolor", "xtick.color", "ytick.color")},
    }
    with matplotlib.rc_context(style):
        yield


def colour_of(index: int, colours: Sequence[str]) -> str:
    """The colour at an index, cyclically."""
    return colours[index % len(colours)]


def style_of(index: int) -> str:
    """The line style of an arm, a different one for each cycle through the colours."""
    return STYLES[index // len(LIGHT.arms) % len(STYLES)]


def label(text: str, longest: int = 44) -> str:
    """A shortened name, without a leading underscore, which would hide it from Matplotlib's legends."""
    text = " ".join(text.split())
    text = text if len(text) <= longest else f"{text[: longest - 1]}…"
    return f"\u200a{text}" if text.startswith("_") else text


def _legend(figure: Figure) -> None:
    entries: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(name, handle)
    if entries:
        columns = min(len(entries), 4)
        figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=columns, frameon=False)


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})  # equal input gives equal bytes
    return file.getvalue()
