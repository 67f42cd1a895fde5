"""Converts saved configurations of other versions to this version's keys, with a note on each change."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from usb_rsmatch.errors import UserError
from usb_rsmatch.keys import convert, short_repr
from usb_rsmatch.usb import config

# Former names of keys, ours and USB's, that a saved configuration may contain.
RENAMED = {"use_amp": "amp"}


def refuse_untrusted_plugins(saved: Mapping[str, Any], where: object, trusted: bool, named: Collection[str]) -> None:
    """Refuse a saved configuration that names modules whose code the user has not allowed.

    Modules of this package are always allowed, also under former names; others if `trusted`, or if they are in `named`.
    Raises UserError, before anything is imported, with the option that allows them.
    """
    for module in convert(config.KEYS["plugins"], saved.get("plugins") or [], str(where)):
        ours = isinstance(module, str) and (module == "usb_rsmatch" or module.startswith("usb_rsmatch."))
        if not (ours or trusted or module in named):
            raise UserError(
                f"{where} names the plugin {short_repr(module)}, whose code would be run: allow it by --plugin, "
                "or all of this file by --trust-plugins, if you trust where it comes from"
            )


def migrate(saved: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A run's saved configuration for this version, and notes.

    A former name becomes the present one, an unknown key is dropped, and a key that is newer than the run takes this
    version's default when the configuration is resolved. Plugins are imported, since they may add keys: call
    `refuse_untrusted_plugins` first.
    """
    for module in saved.get("plugins") or []:
        config.import_plugin(config.FORMER_PLUGINS.get(str(module), str(module)))
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
