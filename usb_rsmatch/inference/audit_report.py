"""The output of an audit: a CSV, an HTML gallery, and a few lines for the terminal."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from usb_rsmatch.csv_files import csv_rows
from usb_rsmatch.errors import UserError
from usb_rsmatch.inference.audit import ASSUMPTIONS, Audit
from usb_rsmatch.inference.audit_gallery import gallery
from usb_rsmatch.io import write_text


def output_paths(out: Path) -> tuple[Path, Path, Path]:
    """The paths of the CSV, the gallery and the saved detector for `--out`; UserError for an .html name."""
    if out.suffix.lower() == ".html":
        raise UserError(f"--out {out} names the CSV: give another extension; the gallery gets the same name with .html")
    return out, out.with_suffix(".html"), out.with_suffix(".detector.pt")


def write_report(audit: Audit, out: Path) -> None:
    """Write the CSV (one row per image: file, probability, score, error) and the gallery next to it."""
    with csv_rows(out, ("file", "probability", "score", "error")) as write:
        for row, name in enumerate(audit.images.names):
            if np.isfinite(audit.score[row]):
                write([name, float(audit.probability[row]), float(audit.score[row]), ""])
            else:
                write([name, "", "", audit.unreadable.get(name, "not read")])
    write_text(output_paths(out)[1], gallery(audit))


def summary_text(audit: Audit) -> str:
    """The share, its interval and its assumptions, for the terminal."""
    share = audit.share
    count = int(np.isfinite(audit.score).sum())
    return (
        f"{100 * share.estimate:.1f} % of {count} images look synthetic "
        f"(95 %: {100 * share.low:.1f} to {100 * share.high:.1f} %), by {audit.reference}\n{ASSUMPTIONS}"
    )
