"""Lazy import of the experiment trackers that semilearn imports; without them, all other parts of semilearn work."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from importlib.machinery import ModuleSpec
from typing import Any

from usb_rsmatch.errors import UserError

HOOKS = {"aim": "AimHook", "wandb": "WANDBHook"}  # package -> the class in semilearn/core/hooks/<package>.py


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
    for name in HOOKS:
        if sys.modules.get(name) is None and (spec := importlib.util.find_spec(name)) is not None:
            sys.modules[name] = _DeferredModule(name)
            sys.modules[name].__spec__ = spec  # accelerate, if installed, checks whether the package can be found
            late = True
    return late


def missing_trackers() -> list[str]:
    """The trackers that are neither imported nor installed."""
    return [name for name in HOOKS if sys.modules.get(name) is None and importlib.util.find_spec(name) is None]


def require_tracker(name: str) -> None:
    """UserError with the command that installs a tracker, if it is missing."""
    if name in missing_trackers():
        raise UserError(f"use_{name} needs the package {name}: pip install {name}")


def replace_hooks_of_missing_trackers() -> bool:
    """`core/hooks/aim.py:5` and `core/hooks/wandb.py:5` make semilearn's import fail if Aim or W&B is missing.

    Applies to trackers that are not installed: replaces semilearn's module by one whose hook asks for the package. No
    module named `aim` or `wandb` is created, so other packages still find that they are missing.
    """
    changed = False
    for name in missing_trackers():
        full = f"semilearn.core.hooks.{name}"
        if full not in sys.modules:
            sys.modules[full] = module = types.ModuleType(full)
            module.__spec__ = ModuleSpec(full, None)
            setattr(module, HOOKS[name], type(HOOKS[name], (_MissingHook,), {"package": name}))
            changed = True
    return changed


class _MissingHook:
    """In place of semilearn's hook of a tracker that is not installed; creating one raises UserError."""

    package = ""

    def __init__(self, *_: Any, **__: Any) -> None:
        require_tracker(self.package)


def restore_trackers() -> bool:
    """Remove the placeholders after semilearn's import, so that others import the real packages."""
    for name in HOOKS:
        if isinstance(sys.modules.get(name), _DeferredModule):
            del sys.modules[name]
    return False
