"""Reads YAML files and command-line values as plain Python values of limited size and depth."""

from __future__ import annotations

import datetime
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from usb_rsmatch.errors import UserError

MOST_VALUES = 100_000  # values in a configuration; nested aliases could expand to billions
LONGEST = 2_000_000  # bytes of a configuration file
DEEPEST = 50  # nesting of lists; a recursive alias would never end


class _DepthLimitedLoader(yaml.SafeLoader):
    """PyYAML's safe loader with a depth limit, as its time grows with the square of the depth."""

    def fetch_flow_collection_start(self, token: Any) -> None:
        self._refuse_if(self.flow_level)
        super().fetch_flow_collection_start(token)

    def add_indent(self, column: int) -> bool:
        self._refuse_if(len(self.indents))
        return super().add_indent(column)

    def _refuse_if(self, depth: int) -> None:
        if depth > DEEPEST:
            raise yaml.scanner.ScannerError(None, None, f"lists or mappings more than {DEEPEST} deep", self.get_mark())


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a configuration file as a mapping; UserError for anything but a YAML mapping of plain values."""
    try:
        if path.stat().st_size > LONGEST:
            raise UserError(f"{path} has more than {LONGEST:,} bytes: it is not a configuration")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    content = parse(text, str(path))
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise UserError(f"{path} contains no mapping of keys to values")
    return content


def parse(text: str, where: str) -> Any:
    """The plain value of a YAML text; UserError that names `where` and the line."""
    try:
        return plain(yaml.load(text, _DepthLimitedLoader), where)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise UserError(f"{where}{line} is not valid YAML: {problem}") from None
    except (ValueError, RecursionError) as error:  # such as the date 2024-13-45, or a thousand brackets
        raise UserError(f"{where} is not valid YAML: {' '.join(str(error).split())[:120]}") from None


def plain(value: Any, where: str) -> Any:
    """A copy of `value` made of mappings with text keys, lists, text, numbers, booleans and None.

    Dates become text, as they were written. Raises UserError for other types, and for values too deep or too large.
    """
    left = MOST_VALUES

    def copy(node: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or depth > DEEPEST:
            raise UserError(f"{where} holds more than {MOST_VALUES:,} values, or lists more than {DEEPEST} deep")
        if isinstance(node, np.generic):
            node = node.item()
        if isinstance(node, int) and node.bit_length() > 1024:  # Python cannot print it
            raise UserError(f"{where} holds a number of {node.bit_length()} bits")
        if node is None or isinstance(node, (bool, int, float, str)):
            return node
        if isinstance(node, (datetime.date, os.PathLike)):
            return str(node)
        if isinstance(node, Mapping):
            return {str(key): copy(item, depth + 1) for key, item in node.items()}
        if isinstance(node, (list, tuple)):
            return [copy(item, depth + 1) for item in node]
        kind = type(node).__name__
        raise UserError(f"{where} holds a {kind}: values are text, numbers, true, false, lists or mappings")

    return copy(value, 0)
