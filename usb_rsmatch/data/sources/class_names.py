"""Matches the class names of a source with those of the real data set."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from usb_rsmatch.errors import UserError
from usb_rsmatch.io import parse_json

UNKNOWN = -1


def plain(name: str) -> str:
    """A class name without case, spaces and punctuation: "T-shirt/top" and "t_shirt_top" are equal."""
    folded = unicodedata.normalize("NFC", name).casefold()
    return "".join(letter for letter in folded if letter.isalnum()) or folded


class ClassIndex:
    """Finds a class by name: its own, an alias of the data set, or an entry of the user's mapping."""

    def __init__(
        self,
        classes: Sequence[str],
        aliases: Mapping[str, int] | None = None,
        mapping: Mapping[str, Any] | None = None,
    ) -> None:
        self.classes = tuple(classes)
        self._numbers: dict[str, int] = {plain(name): i for name, i in (aliases or {}).items()}
        self._numbers.update({plain(name): i for i, name in enumerate(self.classes)})
        self._mapped = {plain(str(name)): self._target(name, target) for name, target in (mapping or {}).items()}

    def number(self, name: str) -> int:
        """The class number, or -1 if the name is unknown. The user's mapping has priority."""
        key = plain(name)
        return self._mapped.get(key, self._numbers.get(key, UNKNOWN))

    def of_names(self, names: Sequence[str | None], origin: str, numeric: bool = False) -> np.ndarray:
        """Labels int64 [N] of class names; None means unknown.

        With `numeric`, a whole number that is neither a class name nor mapped is a class number.

        Raises UserError if no given name is a class (a wrong folder or a missing mapping), and for a number out of
        range.
        """
        known = {name: self.number(name) for name in set(names) if name is not None}
        if numeric:
            known.update({name: self._counted(name, origin) for name, n in known.items() if n == UNKNOWN})
        given = sorted(known)
        if given and not self._mapped and all(number == UNKNOWN for number in known.values()):
            raise UserError(
                f"{origin}: no class matches: it has {_some(given)}, the data set has {_some(self.classes)}; "
                "give the source a `mapping: FILE.json` from its names to these"
            )
        return np.fromiter(
            (UNKNOWN if name is None else known[name] for name in names), dtype=np.int64, count=len(names)
        )

    def of_numbers(self, labels: np.ndarray, origin: str) -> np.ndarray:
        """Labels int64 [N] of integers, which are the data set's own numbers unless they are mapped.

        Raises UserError for a label that is neither mapped, nor -1, nor a class.
        """
        labels = labels.astype(np.int64)
        values, places = np.unique(labels, return_inverse=True)
        numbers = np.array([self._mapped.get(plain(str(value)), value) for value in values], dtype=np.int64)
        wrong = values[(numbers < UNKNOWN) | (numbers >= len(self.classes))]
        if len(wrong):
            raise self._out_of_range(wrong[0], origin)
        return numbers[places.reshape(-1)] if len(labels) else labels

    def _counted(self, name: str, origin: str) -> int:
        """The class number that the text `name` contains, -1 if it is not a number, or is mapped to no class."""
        if not (name.isascii() and name.isdigit()) or plain(name) in self._mapped:
            return UNKNOWN
        if int(name) >= len(self.classes):
            raise self._out_of_range(name, origin)
        return int(name)

    def _out_of_range(self, label: Any, origin: str) -> UserError:
        return UserError(
            f"{origin}: label {label} is out of range, the classes are 0 to {len(self.classes) - 1}; "
            "give the source a `mapping: FILE.json`"
        )

    def _target(self, name: str, target: Any) -> int:
        """The class that a mapping's entry points to: a class name, its number, or null for unknown."""
        if target is None:
            return UNKNOWN
        if isinstance(target, int) and not isinstance(target, bool) and UNKNOWN <= target < len(self.classes):
            return target
        number = self._numbers.get(plain(str(target)), UNKNOWN) if isinstance(target, str) else UNKNOWN
        if number == UNKNOWN:
            raise UserError(
                f"mapping: {name!r} points to {target!r}, which is not a class; the classes are {_some(self.classes)}"
            )
        return number


def read_mapping(path: str | Path) -> dict[str, Any]:
    """A mapping file: a JSON object from a source's class names to those of the data set, or their numbers.

    null stands for an unknown class. Raises UserError for a missing or other file.
    """
    try:
        mapping = parse_json(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"mapping {path}: {error.strerror or error}; check the path") from None
    except ValueError as error:
        raise UserError(f"mapping {path}: not valid JSON ({error})") from None
    if not isinstance(mapping, dict):
        raise UserError(f'mapping {path}: must be an object such as {{"plane": "airplane"}}')
    return mapping


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:3])
    return shown if len(names) <= 3 else f"{shown}, ... ({len(names)})"
