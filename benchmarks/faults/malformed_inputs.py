"""Malformed values and files for fuzzing, as hypothesis strategies."""

from __future__ import annotations

import io
import json
import os
from typing import Any

import numpy as np
from hypothesis import strategies as st

# Nested aliases: a few hundred bytes that expand to 9^13 items.
YAML_BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(12)
)
RESULT_JSON: dict[str, Any] = {  # a complete `result.json`
    **{"algorithm": "rsmatch", "dataset": "digits", "seed": 0, "num_labels": 20, "iterations": 8},
    "pool": {"real": 6, "synthetic": 4, "by_generator": {"flow": 4}},
    "accuracy": {"last": 0.5, "best": 0.6, "best_iteration": 4, "validation": None},
    "detection": {"auroc": 0.9, "ap": 0.8, "fpr95": 0.1, "by_generator": {"flow": {"auroc": 1, "ap": 1, "fpr95": 0}}},
    "time": {"train_seconds": 1.5, "images_per_second": 9.0},
    **{"peak_memory_mib": 4.0, "versions": {"usb_rsmatch": "0"}, "config_sha256": "0" * 64, "device": "cpu"},
}
GRID_JSON: dict[str, Any] = {  # a complete `grid.json`
    **{"name": "g", "baseline": "a", "varied": ["lr"]},
    "runs": [{"folder": "r", "arm": "a", "axes": {"lr": 1}, "config_sha256": "0" * 64}],
}

ODD_NAMES = st.sampled_from(
    [
        "../../evil",
        "/etc/passwd",
        "a/b",
        "..",
        ".",
        "",
        "con",
        "a\x00b",
        "=cmd|' /C calc'!A0",
        "<script>",
        "\udcff",
        "é" * 200,
        "a\nb",
        "\x1b[31m",
        "\ud800",
    ]
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
    ODD_NAMES,
    st.integers(-3, 30),
    st.binary(max_size=4),
    st.sampled_from([10**400, -(2**63), 1e308, "9" * 5000]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def damaged(draw: Any, whole: bytes) -> bytes:
    """Draw a damaged version of a file: bytes changed, removed or inserted, or the end cut off."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        where = draw(st.integers(0, max(len(content) - 1, 0)))
        kind = draw(st.sampled_from(["flip", "cut", "insert", "end"]))
        if kind == "flip" and content:
            content[where] ^= draw(st.integers(1, 255))
        elif kind == "cut":
            del content[where : where + draw(st.integers(1, 64))]
        elif kind == "insert":
            content[where:where] = draw(st.binary(max_size=16))
        elif kind == "end":
            del content[where:]
    return bytes(content)


@st.composite
def edited(draw: Any, whole: dict[str, Any]) -> bytes:
    """Draw a version of a JSON object in which one value, at any depth, is changed or removed."""
    content = place = json.loads(json.dumps(whole))
    while True:
        key = draw(st.sampled_from(sorted(place)))
        if not isinstance(place[key], dict) or not place[key] or draw(st.integers(0, 3)) == 0:
            break
        place = place[key]
    if draw(st.booleans()):
        place[key] = draw(VALUES)
    else:
        del place[key]
    return as_json(content)


def as_json(value: Any) -> bytes:
    """Return a value as JSON bytes; parts without a JSON form become strings."""
    return json.dumps(value, default=str).encode()


class UnpicklePayload:
    """An object that creates the folder `path` when it is unpickled: proof that a reader has executed foreign code."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


@st.composite
def arrays(draw: Any) -> bytes:
    """Draw an npz file of images and labels with any type and shape."""
    types = ["u1"] * 6 + ["i1", ">u2", "i8", "f4", "?", "c8", "S3", "U2", "M8[s]", [("a", "u1")]]
    shape = draw(st.sampled_from([(12, 8, 8), (12, 3, 8, 8), (3, 9, 2, 8), (0, 8, 8, 3), (1,), (), (4, 1, 1)]))
    labels = np.array(draw(st.lists(st.integers(-2, 11) | st.integers(-(2**63), 2**63 - 1), max_size=12)), np.int64)
    names = draw(st.sampled_from([("image", "label"), ("x", "y"), ("a", "b"), ("image", "../evil")]))
    kind = draw(st.sampled_from(["i8", "u8", ">i4", "i1", "f8", "?", "U9"]))
    file = io.BytesIO()
    held: dict[str, Any] = {names[0]: np.zeros(shape, draw(st.sampled_from(types))), names[1]: labels.astype(kind)}
    np.savez(file, **held)
    return file.getvalue()
