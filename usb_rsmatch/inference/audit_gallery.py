"""An audit's result as one self-contained HTML page: thumbnails sorted by score, with escaped names."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator, Sequence
from html import escape

import numpy as np
from PIL import Image

from usb_rsmatch.inference.audit import ASSUMPTIONS, Audit
from usb_rsmatch.version import __version__

TOP_COUNT, BOTTOM_COUNT = 400, 100  # thumbnails of the most and of the least synthetic-looking images
THUMBNAIL = 96  # largest side in pixels

STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --soft: #59636e; --line: #d8dee4; --ground: #fff; --bar: #0a5ca8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #d7dde3; --soft: #8d96a0; --line: #30363d; --ground: #16191d; --bar: #79b8f0; }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif;
}
main { max-width: 76rem; margin: 0 auto; padding: 3.5rem 1.5rem 5rem; }
h1 { font-size: 1.9rem; font-weight: 650; line-height: 1.2; margin: 0 0 .35rem; }
h2 { font-size: 1.1rem; font-weight: 620; margin: 3rem 0 .9rem; }
p { max-width: 46rem; margin: 0 0 .9rem; }
.soft, figcaption { color: var(--soft); }
.soft { font-size: .88rem; }
.warn { border-left: 3px solid var(--bar); padding-left: .8rem; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(6.2rem, 1fr)); gap: 1.1rem .8rem; }
figure { margin: 0; min-width: 0; }
figure img {
  display: block; width: 100%; aspect-ratio: 1; object-fit: contain; image-rendering: pixelated;
  border: 1px solid var(--line); border-radius: 3px;
}
meter { width: 100%; height: .5rem; margin-top: .35rem; }
meter::-webkit-meter-optimum-value { background: var(--bar); }
meter::-moz-meter-bar { background: var(--bar); }
figcaption { font-size: .74rem; line-height: 1.35; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.nowrap { white-space: nowrap; }
@media (max-width: 40rem) { main { padding: 2rem 1rem 3rem; } }
figcaption b { color: var(--ink); font-weight: 620; }
"""


def gallery(audit: Audit, threshold: float | None = None) -> str:
    """The page as HTML; thumbnails are read again. `threshold` is the score from which images are flagged."""
    order = audit.order()
    cut = len(order) > TOP_COUNT + BOTTOM_COUNT
    sections = (
        [
            (f"The {TOP_COUNT} that look most synthetic", order[:TOP_COUNT]),
            (f"The {BOTTOM_COUNT} that look least synthetic", order[-BOTTOM_COUNT:]),
        ]
        if cut
        else [("All images, the most synthetic-looking first", order)]
    )
    body = "\n".join(
        f'<h2>{escape(title)}</h2>\n<div class="grid">\n{"".join(_figures(audit, rows))}</div>'
        for title, rows in sections
    )
    folder = _common_folder(audit.images.names)
    reference = escape(_encodable(audit.reference))
    place = f" from {escape(_encodable(folder))}" if folder else ""
    decision = "" if threshold is None else f" A score above {threshold:.1f} is flagged in the CSV."
    warnings = "".join(f'<p class="warn">Warning: {escape(_encodable(line))}</p>' for line in audit.warnings)
    failed = "".join(f"<li>{escape(_encodable(name))}: {escape(why)}</li>" for name, why in audit.unreadable.items())
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>Audit of {len(audit.images)} images</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>{escape(audit.headline())}</h1>
<p class="soft">{len(order)} images{place}, by {reference}; on patches of {audit.pipeline.size} px.{decision}</p>
{warnings}
<p>{escape(ASSUMPTIONS)}</p>
{body}
{f"<h2>Unreadable files</h2><ul>{failed}</ul>" if failed else ""}
<p class="soft">Made with usb_rsmatch {escape(__version__)}.</p>
</main>
</body>
</html>
"""


def _common_folder(names: Sequence[str]) -> str:
    """The folder that contains all images, empty if they have none in common."""
    try:
        folder = os.path.commonpath([os.path.dirname(name) for name in names])
    except ValueError:  # no names, or relative and absolute paths
        return ""
    return "" if folder == os.sep else folder


def _figures(audit: Audit, rows: np.ndarray) -> Iterator[str]:
    chosen, folder = audit.images.take(rows), _common_folder(audit.images.names)
    for batch in chosen.batches(audit.pipeline, 64):
        for place, pixels in zip(batch.rows, batch.images, strict=True):
            row = rows[place]
            p, path = audit.probability[row], audit.images.names[row]
            name = escape(_encodable(path), quote=True)
            short = escape(_encodable(os.path.relpath(path, folder) if folder else path))
            yield (
                f'<figure><img src="{_data_url(pixels)}" alt="{name}" loading="lazy">'
                f'<meter min="0" max="1" value="{p:.3f}" aria-hidden="true"></meter>'
                f"<figcaption><b>{p:.2f}</b> · score {audit.score[row]:.1f}<br>{short}</figcaption></figure>\n"
            )


def _encodable(text: str) -> str:
    """The text with whatever UTF-8 cannot encode escaped: file names may be any bytes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _data_url(pixels: np.ndarray) -> str:
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    if max(picture.size) > THUMBNAIL:
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
