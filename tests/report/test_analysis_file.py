"""The file that a run leaves for pictures is read whole or refused in one line; what it says is what was written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from usb_rsmatch.errors import UserError
from usb_rsmatch.report import analysis_file as reading
from usb_rsmatch.report.analysis_file import read_analysis
from usb_rsmatch.usb import run_analysis as writing
from usb_rsmatch.usb.training import train

Leave = Callable[..., None]


def test_reader_and_writer_agree(tiny: dict[str, Any]) -> None:
    assert (reading.NAME, reading.FORMAT) == (writing.NAME, writing.FORMAT)
    train({**tiny, "algorithm": "rsmatch", "rs_warmup": 0.0}, note=lambda line: None)
    found = read_analysis(Path(tiny["save_dir"]) / tiny["save_name"])
    assert found is not None and found.queued is not None and found.queued.classes is not None
    assert found.generators == ("real", "blend") and len(found.classes) == len(found.confusion) == 10
    assert found.scores is not None and found.features is not None and found.highest is not None
    assert found.highest.scores[0] == found.scores.max()


def test_what_a_run_had_not_is_none(tmp_path: Path, leave_analysis: Leave) -> None:
    assert read_analysis(tmp_path) is None
    leave_analysis(tmp_path, detector=False)
    found = read_analysis(tmp_path)
    assert found is not None and found.features is not None
    assert found.scores is None and found.highest is None and found.queued is None and found.queue_class is None


def cut_off(content: dict[str, Any]) -> None:
    """The file itself is cut, not its content."""


DAMAGE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "another version": lambda content: content.update(format=2),
    "no version": lambda content: content.pop("format"),
    "no matrix": lambda content: content.pop("confusion"),
    "a matrix of another shape": lambda content: content.update(confusion=np.ones((10, 9), np.int64)),
    "negative counts": lambda content: content.update(confusion=-content["confusion"]),
    "a class too few": lambda content: content.update(classes=content["classes"][:9]),
    "scores of another length": lambda content: content.update(scores=content["scores"][:-1]),
    "a generator without a name": lambda content: content.update(generators=content["generators"][:2]),
    "images without scores": lambda content: content.pop("highest_scores"),
    "images of floats": lambda content: content.update(lowest_images=content["lowest_images"] / 255),
    "code to run": lambda content: content.update(classes=np.array([{}] * 10, dtype=object)),
    "incomplete": cut_off,
}


@pytest.mark.parametrize("damage", DAMAGE, ids=str)
def test_damage_is_told_in_one_line(damage: str, tmp_path: Path, leave_analysis: Leave) -> None:
    leave_analysis(tmp_path, detector=True)
    path = tmp_path / "analysis.npz"
    with np.load(path) as file:
        content = dict(file)
    DAMAGE[damage](content)
    np.savez(path, **content)
    if damage == "incomplete":
        path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"analysis.npz is damaged or of another version: remove it") as error:
        read_analysis(tmp_path)
    assert "\n" not in str(error.value)
