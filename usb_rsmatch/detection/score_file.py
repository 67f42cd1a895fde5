"""Scores of any external detector, by index into the pool or by file name: `rs_detector: scores:FILE.csv`."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

import numpy as np

from usb_rsmatch.errors import UserError


def read_scores(path: str, names: Sequence[str]) -> np.ndarray:
    """Probabilities of being synthetic, float32 [N], of a pool's images, from a CSV with a column `score`.

    A column `index` identifies the image in the pool, or a column `file` by its path or a unique end of its path;
    `names` [N] are the pool's. Files outside of the pool are ignored; each image of the pool needs exactly one score.
    Raises UserError for a missing file or column, a score outside [0, 1], an image without a score or
    with two.
    """
    called = Path(path).name
    if Path(path).exists() and not Path(path).is_file():  # reading a pipe or a device might never end
        raise UserError(f"rs_detector: {path} is not a file of scores")
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"rs_detector: cannot read the scores {path}: {error}") from None
    columns = set(rows[0]) if rows else set()
    if "score" not in columns or not columns & {"index", "file"}:
        raise UserError(f"rs_detector: {called} needs the columns score, and index or file")
    places = None if "index" in columns else _places(names)
    scores = np.full(len(names), np.nan, dtype=np.float32)
    for line, row in enumerate(rows, start=2):
        where = f"rs_detector: {called}:{line}"
        try:
            score = float(row["score"])
            index = int(row["index"]) if places is None else _find(places, row["file"], where)
        except (TypeError, ValueError):
            raise UserError(f"{where}: has no {'index' if places is None else 'file'} and score") from None
        if index is None:
            continue
        if not 0 <= index < len(names) or not 0.0 <= score <= 1.0:
            raise UserError(f"{where}: index {index} is to be under {len(names)}, score {score} in 0..1")
        if not np.isnan(scores[index]):
            raise UserError(f"{where}: {names[index]} has a score already")
        scores[index] = score
    missing = np.flatnonzero(np.isnan(scores))
    if len(missing):
        raise UserError(
            f"rs_detector: {called} has no score for {len(missing)} of the pool's {len(names)} images; "
            f"the first: {names[int(missing[0])]}"
        )
    return scores


def _places(names: Sequence[str]) -> dict[str, list[tuple[PurePath, int]]]:
    """{file name without its folders: path and number of the pool's images that have it}."""
    places: dict[str, list[tuple[PurePath, int]]] = {}
    for index, name in enumerate(names):
        places.setdefault(PurePath(name).name, []).append((PurePath(name), index))
    return places


def _find(places: Mapping[str, list[tuple[PurePath, int]]], file: str, where: str) -> int | None:
    """The pool image whose path ends with `file`; None if it is not in the pool."""
    wanted = PurePath(file)
    ends = [
        (path, index) for path, index in places.get(wanted.name, []) if path.parts[-len(wanted.parts) :] == wanted.parts
    ]
    if len(ends) > 1:
        raise UserError(f"{where}: {file} matches {ends[0][0]} and {ends[1][0]}; give more of the path")
    return ends[0][1] if ends else None
