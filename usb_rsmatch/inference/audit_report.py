"""The output of an audit: a CSV, a JSON summary, an HTML gallery, and a few lines for the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from usb_rsmatch.csv_files import csv_rows
from usb_rsmatch.detection.audit_verdict import SHARE
from usb_rsmatch.errors import UserError
from usb_rsmatch.inference.audit import ASSUMPTIONS, Audit
from usb_rsmatch.inference.audit_gallery import gallery
from usb_rsmatch.io import write_json, write_text
from usb_rsmatch.version import __version__

ABOVE, UNDECIDED = 3, 4  # exit codes of `--fail-above`


def output_paths(out: Path) -> tuple[Path, Path, Path, Path]:
    """The paths of the CSV, the gallery, the summary and the saved detector; UserError for an .html or .json name."""
    if out.suffix.lower() in (".html", ".json"):
        raise UserError(
            f"--out {out} names the CSV: give another extension; "
            "the gallery gets the same name with .html, the summary with .json"
        )
    return out, out.with_suffix(".html"), out.with_suffix(".json"), out.with_suffix(".detector.pt")


def write_report(audit: Audit, out: Path, false_positives: float | None = None) -> None:
    """Write the CSV (one row per image: file, probability, score, error), and the summary and the gallery next to it.

    With `false_positives` the CSV has a column `flagged`, 1 for scores above that rate's threshold.
    """
    threshold = None if false_positives is None else audit.threshold(false_positives)
    extra = () if threshold is None else ("flagged",)
    with csv_rows(out, ("file", "probability", "score", "error", *extra)) as write:
        for row, name in enumerate(audit.images.names):
            if np.isfinite(audit.score[row]):
                flag = [] if threshold is None else [int(audit.score[row] > threshold)]
                write([name, float(audit.probability[row]), float(audit.score[row]), "", *flag])
            else:
                write([name, "", "", audit.unreadable.get(name, "not read"), *("" for _ in extra)])
    _, page, summary, _ = output_paths(out)
    write_json(summary, as_dict(audit) | {"false_positive_rate": false_positives, "threshold": threshold})
    write_text(page, gallery(audit, threshold))


def as_dict(audit: Audit) -> dict[str, Any]:
    """The summary: what was said, the share and its interval (null if none is stated), and the conditions."""
    found, stated = audit.verdict, audit.verdict.said == SHARE
    return {
        "said": found.said,
        "share": found.share.estimate if stated else None,
        "low": found.share.low,
        "high": found.share.high,
        "reason": audit.reason,
        "separation": found.separation,
        "auroc_of_sides": found.apart,
        "images": int(np.isfinite(audit.score).sum()),
        "unreadable": len(audit.unreadable),
        "size": audit.pipeline.size,
        "reference": audit.reference,
        "warnings": audit.warnings,
        "version": __version__,
    }


def exit_code(audit: Audit, fail_above: float | None) -> int:
    """0, or with `--fail-above`: `ABOVE` if the lower end exceeds it, `UNDECIDED` if no share is stated."""
    if fail_above is None:
        return 0
    if audit.verdict.said != SHARE:
        return UNDECIDED
    return ABOVE if audit.share.low > fail_above else 0


def summary_text(audit: Audit) -> str:
    """What the audit says and its assumptions, for the terminal."""
    analysed = f"patches of {audit.pipeline.size} px"
    return f"{audit.headline()}, by {audit.reference}, on {analysed}\n{ASSUMPTIONS}"
