"""The configurations shipped with the package, by name: in a checkout's config/ or in the installed wheel."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from usb_rsmatch.errors import UserError

_PACKAGE = Path(__file__).resolve().parent.parent


def shipped_root() -> Path:
    """Return the folder of the shipped configurations: inside an installed package, or config/ of a checkout."""
    installed = _PACKAGE / "config_data"
    return installed if installed.is_dir() else _PACKAGE.parent / "config"


def shipped_names() -> list[str]:
    """Return the names of all shipped configurations, such as `quickstart/rsmatch`, sorted."""
    root = shipped_root()
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))


def find_config(name_or_path: str | os.PathLike[str]) -> Path:
    """Return the file that a user means: a path with or without .yaml, else a shipped configuration's name.

    A user's file has priority over a shipped one. Shipped names may also be written as paths of a checkout,
    `config/quickstart/rsmatch.yaml`, so that a documented command works from an installed wheel as well.

    Raises UserError with the nearest names.
    """
    given = os.fspath(name_or_path)
    for path in (given, f"{given}.yaml"):
        if os.path.isfile(path):  # False also for text that cannot be a path
            return Path(path)
    name = given.replace("\\", "/").removesuffix(".yaml").removeprefix("./").removeprefix("config/")
    names = shipped_names()
    if name in names:
        return shipped_root() / f"{name}.yaml"
    raise UserError(f"no configuration {given!r}: neither a file nor a shipped one{_nearest(name, names)}")


def _nearest(name: str, names: list[str]) -> str:
    """Name the shipped configurations most like `name`, or those there are to choose from."""
    by_last_part = {shipped.rsplit("/", 1)[-1]: shipped for shipped in names}
    close = difflib.get_close_matches(name, names, n=3)
    close += [by_last_part[part] for part in difflib.get_close_matches(name, by_last_part, n=3)]
    if close:
        return f"; did you mean {', '.join(dict.fromkeys(close))}?"
    return f"; shipped are {', '.join(sorted({shipped.split('/')[0] + '/...' for shipped in names}))}"
