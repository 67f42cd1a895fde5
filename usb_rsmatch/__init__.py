"""RSMatch for USB: importing this package registers `rsmatch` with semilearn and fixes its defects.

semilearn takes seconds to import, so it is not imported here: if it is loaded already, it is extended immediately,
otherwise when it is imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from usb_rsmatch.usb import registration
from usb_rsmatch.version import __version__

if TYPE_CHECKING:
    from usb_rsmatch.data.pool.pool import HybridPool
    from usb_rsmatch.inference.loaded_run import Run, load_run
    from usb_rsmatch.usb.training import train

__all__ = ["HybridPool", "Run", "__version__", "load_run", "train"]

registration.install()


def __getattr__(name: str) -> Any:
    """The public names, imported when they are first asked for."""
    if name == "HybridPool":
        from usb_rsmatch.data.pool.pool import HybridPool

        return HybridPool
    if name in ("Run", "load_run"):
        from usb_rsmatch.inference import loaded_run

        return getattr(loaded_run, name)
    if name == "train":
        from usb_rsmatch.usb.training import train

        return train
    raise AttributeError(f"module 'usb_rsmatch' has no attribute {name!r}")
