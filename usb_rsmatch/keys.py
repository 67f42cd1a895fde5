"""Describes configuration keys (name, type, bounds, default, meaning), converts values to them, and reads settings."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

from usb_rsmatch.errors import UserError


@dataclass(frozen=True)
class Key:
    """One configuration key: its type(s), default, meaning, and the origin of the default.

    `origin` is "usb" for USB's own keys, "paper" for what is known from RSMatch's paper, "ours" for the rest.
    """

    name: str
    kind: str  # int | float | bool | str | list | mapping | file (or a mapping), or alternatives separated by "|"
    default: Any
    help: str
    origin: str = "usb"
    low: float | None = None
    high: float | None = None
    optional: bool = False  # None is allowed
    word: str | None = None  # a word that is allowed in addition to `kind`
    parts: tuple[str, ...] = ()  # of a bool: a subset of these, as a list or comma-separated, instead of all or none


def setting(kind: str, default: Any, help: str, origin: str = "usb", **more: Any) -> Any:
    """A field of a settings dataclass that carries its `Key`; each instance gets its own list or mapping."""
    metadata = {"kind": kind, "help": help, "origin": origin, **more}
    if isinstance(default, (list, dict)):
        return field(default_factory=type(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def keys_of(settings: type) -> tuple[Key, ...]:
    """The keys of a settings dataclass, in its order."""
    defaults = settings()
    return tuple(Key(name=f.name, default=getattr(defaults, f.name), **f.metadata) for f in fields(settings))


def read_values(keys: Iterable[Key], args: Any, where: str) -> dict[str, Any]:
    """The values of `keys` that a namespace has, as their types; None (USB also writes "None") is no value.

    Raises UserError for an invalid value.
    """
    values = {}
    for key in keys:
        value = getattr(args, key.name, None)
        if value is not None and value != "None":
            values[key.name] = convert(key, list(value) if isinstance(value, tuple) else value, where)
    return values


def is_rsmatch_variant(algorithm: str) -> bool:
    """Whether an algorithm is RSMatch or a variant of it, which uses a base rule: `rsmatch` or `rsmatch_...`."""
    return algorithm == "rsmatch" or algorithm.startswith("rsmatch_")


def convert(key: Key, value: Any, where: str) -> Any:
    """`value` converted to the key's type; UserError that names the key and its allowed values."""

    def refuse(what: str) -> UserError:
        word = f" or {key.word}" if key.word else ""
        return UserError(f"{where}: {key.name} takes {what}{word}, not {short_repr(value)}")

    if key.word is not None and value == key.word:
        return value

    if value is None or value == "None":
        if key.optional:
            return None
        raise refuse(f"a value ({key.kind})")
    if "|" in key.kind:
        if value not in key.kind.split("|"):
            raise refuse(" or ".join(key.kind.split("|")))
        return value
    if key.kind == "bool":
        words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if isinstance(value, bool):
            return value
        if str(value).lower() in words:
            return words[str(value).lower()]
        chosen = value if isinstance(value, list) else str(value).replace(" ", "").split(",")
        if key.parts and chosen and all(part in key.parts for part in chosen):
            return ",".join(part for part in key.parts if part in chosen)
        raise refuse("true, false" + "".join(f", {part}" for part in key.parts) if key.parts else "true or false")
    if key.kind in ("int", "float"):
        if isinstance(value, bool):
            raise refuse("a number")
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            raise refuse("a number") from None
        if number != number or number in (float("inf"), float("-inf")):
            raise refuse("a finite number")
        if key.kind == "int" and number != int(number):
            raise refuse("a whole number")
        if (key.low is not None and number < key.low) or (key.high is not None and number > key.high):
            high = "" if key.high is None else f" and at most {key.high:g}"
            raise refuse(f"a number of at least {key.low:g}{high}")
        if key.kind == "int":
            return value if isinstance(value, int) else int(number)
        return number
    if key.kind == "list":
        if not isinstance(value, list):
            raise refuse("a list")
        return value
    if key.kind == "file" and isinstance(value, dict):
        return value
    if key.kind == "mapping":
        if not isinstance(value, dict):
            raise refuse("a mapping")
        return value
    if isinstance(value, (dict, list)):
        raise refuse("one word")
    text = str(value)
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise refuse("text without null characters and lone surrogates")
    return text


def nearest(name: str, known: Any) -> str:
    """The suffix `: did you mean ...?` with the most similar known name; an empty text if none is similar."""
    names = {str(item).casefold(): str(item) for item in known}
    close = difflib.get_close_matches(str(name).casefold(), names, n=1, cutoff=0.5)
    return f": did you mean {names[close[0]]!r}?" if close else ""


def short_repr(value: Any) -> str:
    """The representation of `value` for a one-line message, shortened to 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
