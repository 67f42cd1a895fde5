"""Converts saved configurations of other versions to this version's keys, with a note on each change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from usb_rsmatch.usb import config

# Former names of keys, ours and USB's, that a saved configuration may contain.
RENAMED = {"use_amp": "amp"}


def migrate(saved: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A run's saved configuration for this version, and notes.

    A former name becomes the present one, an unknown key is dropped, and a key that is newer than the run takes this
    version's default when the configuration is resolved. Plugins are imported, since they may add keys.
    """
    for module in saved.get("plugins") or []:
        config.import_plugin(str(module))
    known = config.all_keys()
    kept: dict[str, Any] = {}
    notes = []
    for key, value in saved.items():
        name = RENAMED.get(key, key)
        if name != key and name in saved:
            notes.append(f"{key} is ignored: {name} is given too")
        elif name != key:
            notes.append(f"{key} is called {name} now")
            kept[name] = value
        elif key in known or key in config.DEAD:
            kept[key] = value
        else:
            notes.append(f"{key} is ignored: this version does not know it")
    return kept, notes
