"""Registers RSMatch with semilearn once: immediately if semilearn is imported already, else right after its import."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

applied_fixes: list[str] = []  # what `compat` has fixed in this process, for `doctor`


def register() -> None:
    """Fix semilearn, add our networks and algorithms to its registries, extend its notebook functions to our data."""
    from usb_rsmatch.usb import compat

    applied_fixes.extend(compat.apply_fixes())
    from usb_rsmatch.algorithms import iomatch, networks, openmatch, refixmatch, rsmatch, scomatch, sequencematch, uasd
    from usb_rsmatch.usb import notebook

    networks.register_networks()
    for module in (rsmatch, openmatch, iomatch, scomatch, uasd, refixmatch, sequencematch):
        module.register()
    notebook.replace_usb_functions()


class _RegisteringLoader(Loader):
    """semilearn's own loader, followed by `register`."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        from usb_rsmatch.usb import compat

        sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _SemilearnFinder)]
        applied_fixes.extend(function.__name__ for function in compat.BEFORE_IMPORT if function())
        self.loader.exec_module(module)
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        register()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)


class _SemilearnFinder(MetaPathFinder):
    """Finds semilearn's spec with `_RegisteringLoader` as its loader; looking up the spec alone changes nothing."""

    searching = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "semilearn" or self.searching:
            return None
        self.searching = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self.searching = False
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader)
        return spec


def install() -> None:
    """Register now if semilearn is imported, else as soon as it is. Calling it again changes nothing."""
    if sys.modules.get("semilearn") is not None:
        register()
    elif not any(isinstance(finder, _SemilearnFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _SemilearnFinder())
