"""Experiment trackers are imported only when they are used, and other code gets the real packages."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("wandb", reason="semilearn depends on it; installed without dependencies here")

PROGRAM = """
import sys
import usb_rsmatch
import semilearn
from semilearn.core.hooks import wandb as hook
assert type(hook.wandb).__name__ == "_DeferredModule" and "wandb" not in sys.modules, type(hook.wandb)
import wandb
assert wandb.__file__ and hook.wandb.init is wandb.init
import wandb.sdk
from usb_rsmatch.usb import compat
assert compat.apply_fixes() == [] and sys.modules["wandb"] is wandb
"""


def test_wandb_is_imported_on_first_use_and_is_the_package_itself() -> None:
    found = subprocess.run([sys.executable, "-W", "ignore", "-c", PROGRAM], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


FIND_SPEC = """
import importlib.util
import usb_rsmatch
from usb_rsmatch.usb.lazy_import import defer_trackers
assert defer_trackers()
assert importlib.util.find_spec("wandb").origin.endswith("wandb/__init__.py")
"""


def test_find_spec_finds_wandb_without_importing_it() -> None:
    """accelerate, if the extra `synthesis` is installed, calls it during semilearn's import."""
    found = subprocess.run([sys.executable, "-W", "ignore", "-c", FIND_SPEC], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
