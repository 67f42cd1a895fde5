"""`usb-rsmatch pool`: the contents of a configuration's pool, as a table, a manifest and a contact sheet."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from usb_rsmatch.csv_files import refuse_existing
from usb_rsmatch.data.pool.pool import HybridPool
from usb_rsmatch.data.pool.shortcuts import shortcut_cues, shortcut_warnings, unknown_cues, unknown_warnings
from usb_rsmatch.data.pool.summary import contact_sheet, pool_table
from usb_rsmatch.errors import UserError
from usb_rsmatch.io import write_json
from usb_rsmatch.usb import config


def pool_report(
    source: str, overrides: Mapping[str, Any], out: Path | None = None, shortcuts: bool = False, pack: bool = False
) -> str:
    """The table of a configuration's pool; its manifest is written to `out`, the contact sheet next to it.

    `shortcuts` adds a check whether trivial cues reveal provenance, `pack` decodes image files once into the cache.
    """
    if out is not None:
        if out.suffix.lower() == ".png":
            raise UserError(f"--out {out}: the manifest is JSON; the contact sheet gets the same name with .png")
        refuse_existing(out, out.with_suffix(".png"))
    config.import_semilearn()
    resolved, _ = config.resolve(source, overrides)
    pool = HybridPool.from_config(resolved, pack)
    lines = [pool_table(pool)]
    if out is not None:
        write_json(out, pool.manifest())
        contact_sheet(pool, out.with_suffix(".png"))
        lines.append(f"manifest: {out}\ncontact sheet: {out.with_suffix('.png')}")
    if shortcuts:
        cues, unknown = shortcut_cues(pool), unknown_cues(pool)
        if not cues and not unknown:
            lines.append("shortcuts: nothing to compare, the pool has images of one provenance only")
        for title, found in (("real against synthetic", cues), ("known to be real against unknown", unknown)):
            lines += [f"shortcuts, {title}:"] if found else []
            lines += [f"{name:24s} {'-' if value is None else f'{value:.3f}'}" for name, value in found.items()]
        real = len(pool.labeled) + int((pool.unlabeled.is_real & ~pool.unlabeled.is_labeled).sum())
        lines += [f"warning: {line}" for line in shortcut_warnings(cues) + unknown_warnings(unknown, real)]
    return "\n".join(lines)
