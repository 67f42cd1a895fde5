"""Lazy import of the experiment trackers that semilearn imports: they are only imported when a run uses them."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from typing import Any

NAMES = ("aim", "wandb")


class _DeferredModule(types.ModuleType):
    """A placeholder for a package that imports it at the first access to an attribute."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__path__":
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


def defer_trackers() -> bool:
    """`core/hooks/aim.py:5` and `core/hooks/wandb.py:5` import Aim and W&B for every run, 54 MiB and a second.

    Applies to trackers that are installed and not imported yet, during semilearn's import: its hooks then hold a
    placeholder that imports the package on first use.
    """
    if "semilearn.core.hooks" in sys.modules:
        return False
    late = False
    for name in NAMES:
        if name not in sys.modules and (spec := importlib.util.find_spec(name)) is not None:
            sys.modules[name] = _DeferredModule(name)
            sys.modules[name].__spec__ = spec  # accelerate, if installed, checks whether the package can be found
            late = True
    return late


def restore_trackers() -> bool:
    """Remove the placeholders after semilearn's import, so that others import the real packages."""
    for name in NAMES:
        if isinstance(sys.modules.get(name), _DeferredModule):
            del sys.modules[name]
    return False
