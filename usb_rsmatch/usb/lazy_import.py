"""Experiment trackers that semilearn imports with itself: they are imported when a run uses them."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from typing import Any

NAMES = ("aim", "wandb")


class _Late(types.ModuleType):
    """Stands for a package until something of it is asked for; as a package it is asked for its `__path__`."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__path__":
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


def put_off_trackers() -> bool:
    """`core/hooks/aim.py:5` and `core/hooks/wandb.py:5` import Aim and W&B for every run, 54 MiB and a second.

    Applies to those that are installed and not imported yet, until semilearn is imported: its hooks then hold what
    imports the package on first use.
    """
    if "semilearn.core.hooks" in sys.modules:
        return False
    late = False
    for name in NAMES:
        if name not in sys.modules and (spec := importlib.util.find_spec(name)) is not None:
            sys.modules[name] = _Late(name)
            sys.modules[name].__spec__ = spec  # accelerate, where installed, asks whether the package can be found
            late = True
    return late


def let_go_of_trackers() -> bool:
    """After semilearn's import others find the packages themselves again."""
    for name in NAMES:
        if isinstance(sys.modules.get(name), _Late):
            del sys.modules[name]
    return False
