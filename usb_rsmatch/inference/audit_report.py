"""The output of an audit: a CSV, an HTML gallery, and a few lines for the terminal."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from usb_rsmatch.csv_files import csv_rows
from usb_rsmatch.errors import UserError
from usb_rsmatch.inference.audit import RESTS_ON, Audit
from usb_rsmatch.inference.audit_gallery import gallery
from usb_rsmatch.io import write_text


def targets(out: Path) -> tuple[Path, Path, Path]:
    """The CSV, the gallery and the saved detector of an audit that writes to `out`."""
    if out.suffix.lower() == ".html":
        raise UserError(f"--out {out}: this is the CSV; the gallery gets the same name with .html")
    return out, out.with_suffix(".html"), out.with_suffix(".detector.pt")


def write_report(audit: Audit, out: Path) -> None:
    """Write the CSV (one row per image: file, probability, score, error) and the gallery next to it."""
    with csv_rows(out, ("file", "probability", "score", "error")) as write:
        for row, name in enumerate(audit.images.names):
            if np.isfinite(audit.score[row]):
                write([name, float(audit.probability[row]), float(audit.score[row]), ""])
            else:
                write([name, "", "", audit.unreadable.get(name, "not read")])
    write_text(targets(out)[1], gallery(audit))


def summary_text(audit: Audit) -> str:
    """The result in words."""
    share = audit.share
    count = int(np.isfinite(audit.score).sum())
    return (
        f"{100 * share.estimate:.1f} % of {count} images look synthetic "
        f"(95 %: {100 * share.low:.1f} to {100 * share.high:.1f} %), by {audit.reference}\n{RESTS_ON}"
    )
