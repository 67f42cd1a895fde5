"""Runs of other versions: their configurations in this version's keys, and a note on each that was changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from usb_rsmatch.usb import config

# Former names of keys, ours and USB's, that a saved configuration may hold.
RENAMED = {"use_amp": "amp"}


def migrate(saved: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A run's saved configuration for this version, and notes.

    A former name becomes the present one, a key that no algorithm here knows is left out, and one that the run did not
    know yet takes this version's default when the configuration is resolved. Plugins are imported: they bring keys.
    """
    for module in saved.get("plugins") or []:
        config.import_plugin(str(module))
    known = config.all_keys()
    kept: dict[str, Any] = {}
    notes = []
    for key, value in saved.items():
        name = RENAMED.get(key, key)
        if name != key and name in saved:
            notes.append(f"{key} is left out: {name} is there too")
        elif name != key:
            notes.append(f"{key} is called {name} now")
            kept[name] = value
        elif key in known or key in config.DEAD:
            kept[key] = value
        else:
            notes.append(f"{key} is left out: this version does not know it")
    return kept, notes
