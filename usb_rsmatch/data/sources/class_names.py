"""Matches the class names of a source with those of the real data set."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from usb_rsmatch.errors import UserError
from usb_rsmatch.io import parse_json

UNKNOWN = -1

_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
_WHOLE = re.compile(r"\d+(\.0+)?")


def plain(name: str) -> str:
    """A class name without case, spaces and punctuation: "T-shirt/top" and "t_shirt_top" are equal.

    A number is compared by its value: "5" and "05" are equal, "0.5" and "05" are not.
    """
    if _NUMBER.fullmatch(name) and name.isascii():
        return f"number {Decimal(name).normalize():f}"
    folded = unicodedata.normalize("NFC", name).casefold()
    return "".join(letter for letter in folded if letter.isalnum()) or folded


class ClassIndex:
    """Finds a class by name: its own, an alias of the data set, or an entry of the user's mapping.

    Names are compared exactly first; then without case, spaces and punctuation, if that finds one class only. `notes`
    names each class that was found in the second way, and the names that are no class.
    """

    def __init__(
        self,
        classes: Sequence[str],
        aliases: Mapping[str, int] | None = None,
        mapping: Mapping[str, Any] | None = None,
    ) -> None:
        self.classes = tuple(classes)
        self.notes: list[str] = []
        self._exact = {_composed(name): i for name, i in (aliases or {}).items()}
        forms = [_composed(name) for name in self.classes]
        if twins := [name for name, count in Counter(forms).items() if count > 1]:
            if len(set(self.classes)) < len(self.classes):
                raise UserError(f"the class {twins[0]!r} is given twice; remove one")
            raise UserError(f"two classes are both displayed as {twins[0]!r}, with different Unicode forms; merge them")
        self._exact.update({name: i for i, name in enumerate(forms)})
        self._similar = _by_plain_name(self._exact)
        self._mapped = {_composed(str(name)): self._target(name, target) for name, target in (mapping or {}).items()}
        self._mapped_similar = _by_plain_name(self._mapped)
        self._whole = {int(Decimal(name)): i for i, name in enumerate(self.classes) if _is_whole(name)}

    def number(self, name: str) -> int:
        """The class number, or -1 if the name is unknown. The user's mapping has priority.

        Raises UserError for a name that is no class, and is equal to several except for case and punctuation.
        """
        key = _composed(name)
        for exact in (self._mapped, self._exact):
            if key in exact:
                return exact[key]
        for similar in (self._mapped_similar, self._similar):
            near = similar.get(plain(name), {})
            if len(set(near.values())) > 1:
                first, second = sorted(near)[:2]
                raise UserError(
                    f"class name {name!r} could be {first!r} or {second!r}, which differ only in case or punctuation; "
                    "rename it, or give the source a `mapping: FILE.json`"
                )
            if near:
                return next(iter(near.values()))
        return UNKNOWN

    def of_names(self, names: Sequence[str | None], origin: str, numeric: bool = False) -> np.ndarray:
        """Labels int64 [N] of class names; None means unknown.

        With `numeric`, a whole number that is neither a class name nor mapped is a class number.

        Raises UserError if no given name is a class (a wrong folder or a missing mapping), if two names would become
        one class, and for a number that is out of range or has two readings.
        """
        given = sorted({name for name in names if name is not None})
        counted = {name: int(Decimal(name)) for name in given if numeric and _is_whole(name)}
        counted = {name: value for name, value in counted.items() if not self._is_mapped(name)}
        as_numbers = self._read_numbers(sorted(set(counted.values())), origin)
        known = {name: as_numbers[counted[name]] if name in counted else self.number(name) for name in given}
        if given and not self._mapped and all(number == UNKNOWN for number in known.values()):
            raise UserError(
                f"{origin}: no class matches: it has {_some(given)}, the data set has {_some(self.classes)}; "
                "give the source a `mapping: FILE.json` from its names to these"
            )
        self._check_similar([name for name in given if name not in counted], known, origin)
        if strange := [name for name in given if known[name] == UNKNOWN and not self._is_mapped(name)]:
            lost = set(strange)
            count = sum(name in lost for name in names)
            self.notes.append(
                f"{origin}: {count} images have no class, as the data set lacks {_some(strange)}; give the source a "
                "`mapping: FILE.json` if that is a class under another name"
            )
        return np.fromiter(
            (UNKNOWN if name is None else known[name] for name in names), dtype=np.int64, count=len(names)
        )

    def of_numbers(self, labels: np.ndarray, origin: str) -> np.ndarray:
        """Labels int64 [N] of integers: mapped ones, names of classes that are numbers, else the class's position.

        Raises UserError for a label that is neither mapped, nor -1, nor a class, or has two readings.
        """
        labels = labels.astype(np.int64)
        values, places = np.unique(labels, return_inverse=True)
        free = [int(value) for value in values if value != UNKNOWN and not self._is_mapped(str(value))]
        read = {value: self.number(str(value)) for value in values.tolist() if self._is_mapped(str(value))}
        read.update(self._read_numbers(free, origin))
        return (
            np.array([read.get(value, UNKNOWN) for value in values.tolist()], dtype=np.int64)[places.reshape(-1)]
            if len(labels)
            else labels
        )

    def _is_mapped(self, name: str) -> bool:
        return _composed(name) in self._mapped or plain(name) in self._mapped_similar

    def _read_numbers(self, values: Sequence[int], origin: str) -> dict[int, int]:
        """The class number of each whole number: as the name of a class where it is one, else as a position.

        Raises UserError for a number that is out of range, and where the two readings differ and both are possible.
        """
        n = len(self.classes)
        if values and all(value in self._whole for value in values):
            names = {value: self._whole[value] for value in values}
            if len(self._whole) == n or all(value == number for value, number in names.items()):
                return names
        twice = [value for value in values if self._whole.get(value, value) != value]
        if twice:
            value = twice[0]
            position = repr(self.classes[value]) if 0 <= value < n else "out of range"
            raise UserError(
                f"{origin}: label {value} has two readings: as a name it is the class "
                f"{self.classes[self._whole[value]]!r}, as a position (0 to {n - 1}) it is {position}; write class "
                "names, or give the source a `mapping: FILE.json`"
            )
        wrong = [value for value in values if not 0 <= value < n]
        if wrong:
            raise UserError(
                f"{origin}: label {wrong[0]} is out of range, the classes are 0 to {n - 1}"
                f"{_range_hint(values, n)}; give the source a `mapping: FILE.json`"
            )
        return {value: value for value in values}

    def _check_similar(self, names: Sequence[str], known: Mapping[str, int], origin: str) -> None:
        """Note the names that are equal to a class except for case and punctuation; refuse two names for one class."""
        similar = [
            name
            for name in names
            if known[name] != UNKNOWN and not {_composed(name)} & (self._exact.keys() | self._mapped.keys())
        ]
        for name in similar:
            same = [other for other in names if other != name and known[other] == known[name]]
            called = self.classes[known[name]]
            if same:
                raise UserError(
                    f"{origin}: {name!r} and {same[0]!r} would both become the class {called!r}; rename one, "
                    "or give the source a `mapping: FILE.json`"
                )
            if not self._is_mapped(name):
                self.notes.append(f"{origin}: {name!r} is read as the class {called!r}")

    def _target(self, name: str, target: Any) -> int:
        """The class that a mapping's entry points to: a class name, its number, or null for unknown."""
        if target is None:
            return UNKNOWN
        if isinstance(target, int) and not isinstance(target, bool) and UNKNOWN <= target < len(self.classes):
            return target
        number = self._named(target) if isinstance(target, str) else UNKNOWN
        if number == UNKNOWN:
            raise UserError(
                f"mapping: {name!r} points to {target!r}, which is not a class; the classes are {_some(self.classes)}"
            )
        return number

    def _named(self, name: str) -> int:
        """The class with exactly this name, or the only one that is equal except for case and punctuation."""
        near = set(self._similar.get(plain(name), {}).values())
        return self._exact.get(_composed(name), near.pop() if len(near) == 1 else UNKNOWN)


class NoClasses(ClassIndex):
    """The classes of a data set for a source whose own class names and labels are not read: every label is unknown."""

    def number(self, name: str) -> int:
        return UNKNOWN

    def of_names(self, names: Sequence[str | None], origin: str, numeric: bool = False) -> np.ndarray:
        return np.full(len(names), UNKNOWN, dtype=np.int64)

    def of_numbers(self, labels: np.ndarray, origin: str) -> np.ndarray:
        return np.full(len(labels), UNKNOWN, dtype=np.int64)


def label_range_problem(labels: np.ndarray, origin: str) -> str | None:
    """What is unusual in the integer labels [N] of a data set whose classes are numbered from 0; None if nothing is.

    Labels that begin at 1, and 255 as the only label far above the others, which in uint8 often means "unlabelled".
    """
    values = np.unique(labels[labels >= 0])
    if not len(values):
        return None
    if len(values) > 1 and values[-1] == 255 and values[-2] < 254:
        return (
            f"{origin}: label 255 stands far above the others (up to {values[-2]}); if it means unlabelled, save -1 "
            "with a signed type instead"
        )
    if values[0] == 1 and len(values) == values[-1]:
        return f"{origin}: labels begin at 1 ({values[0]} to {values[-1]}), must begin at 0; save them less 1"
    return None


def _range_hint(values: Sequence[int], n: int) -> str:
    if values[-1] == 255 and n < 255:
        return " (255 often means unlabelled in uint8: map it to null, or save -1)"
    if values[0] == 1 and values[-1] == n:
        return f" (they seem to begin at 1: save them less 1, 0 to {n - 1})"
    return ""


def _is_whole(name: str) -> bool:
    return name.isascii() and _WHOLE.fullmatch(name) is not None


def _composed(name: str) -> str:
    """The name in Unicode's composed form, as some file systems store accents separately."""
    return unicodedata.normalize("NFC", name)


def _by_plain_name(numbers: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """The names and their numbers, grouped by plain name."""
    groups: dict[str, dict[str, int]] = {}
    for name, number in numbers.items():
        groups.setdefault(plain(name), {})[name] = number
    return groups


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
