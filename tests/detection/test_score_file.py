"""Scores from a file: by index and by name, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from usb_rsmatch.detection.score_file import read_scores
from usb_rsmatch.errors import UserError

NAMES = ["/data/real/a/1.png", "/data/real/b/1.png", "/data/fake/2.png", "digits, image 7"]


def write(folder: Path, text: str) -> str:
    (folder / "s.csv").write_text(text)
    return str(folder / "s.csv")


def test_by_index(tmp_path: Path) -> None:
    path = write(tmp_path, "score,index\n0.5,2\n0,0\n1,1\n0.25,3\n")
    np.testing.assert_array_equal(read_scores(path, NAMES), np.array([0, 1, 0.5, 0.25], np.float32))


def test_by_file_name_or_as_much_of_the_path_as_tells(tmp_path: Path) -> None:
    path = write(
        tmp_path, 'file,score\nb/1.png,0.5\n/data/real/a/1.png,0.25\n2.png,1\n"digits, image 7",0\nelse.png,0.9\n'
    )
    np.testing.assert_array_equal(read_scores(path, NAMES), np.array([0.25, 0.5, 1, 0], np.float32))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "needs the columns"),
        ("file,probability\n2.png,1\n", "needs the columns"),
        ("index,score\n9,0.5\n", "index 9"),
        ("index,score\n0,1.5\n", "score 1.5"),
        ("index,score\n0,nan\n", "score nan"),
        ("index,score\nzero,1\n", "s.csv:2: has no index and score"),
        ("file,score\n2.png,\n", "s.csv:2: has no file and score"),
        ("file,score\n1.png,1\n", "1.png matches /data/real/a/1.png and /data/real/b/1.png"),
        ("index,score\n0,1\n0,1\n", "s.csv:3: /data/real/a/1.png has a score already"),
        ("index,score\n0,1\n", "no score for 3 of the pool's 4 images; the first: /data/real/b/1.png"),
    ],
)
def test_what_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read_scores(write(tmp_path, text), NAMES)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read the scores"):
        read_scores(str(tmp_path / "none.csv"), NAMES)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no devices that never end here")
def test_a_device_is_not_read() -> None:
    with pytest.raises(UserError, match="not a file of scores"):
        read_scores("/dev/zero", NAMES)


def test_a_field_without_end(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read the scores"):
        read_scores(write(tmp_path, "score,index\n" + "1" * 200_000 + ",0\n"), NAMES)
