"""CSV cells that no spreadsheet executes, and output paths that are refused before the work starts."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usb_rsmatch.csv_files import FORMULA, csv_rows, escape_formula, refuse_existing
from usb_rsmatch.errors import UserError


@given(st.text(max_size=20))
def test_no_cell_starts_as_a_formula_and_no_text_is_lost(text: str) -> None:
    cell = escape_formula(text)
    assert not cell.startswith(FORMULA) and cell.removeprefix("'" if text.startswith(FORMULA) else "") == text


def test_names_are_read_back_unchanged(tmp_path: Path) -> None:
    names = ['=cmd|"/C calc"!A0', 'a,b"c', "two\nlines", "-1.png", "plain.png", "\udcff.png"]
    with csv_rows(tmp_path / "a.csv", ["file", "score"]) as write:
        for name in names:
            write([name, -0.5])
    with open(tmp_path / "a.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == ["'" + names[0], *names[1:3], "'-1.png", "plain.png", "\\udcff.png"]
    assert {row["score"] for row in rows} == {"-0.5"}


def test_an_incomplete_file_does_not_appear(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), csv_rows(tmp_path / "a.csv", ["file"]) as write:
        write(["one"])
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_existing_and_impossible_targets_are_refused(tmp_path: Path) -> None:
    (tmp_path / "there.csv").touch()
    with pytest.raises(UserError, match="nothing is overwritten"):
        refuse_existing(tmp_path / "there.csv")
    with pytest.raises(UserError, match="is not a folder"):
        refuse_existing(tmp_path / "there.csv" / "out.csv")
    refuse_existing(tmp_path / "new" / "folder" / "out.csv")
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_without_write_permission_is_refused(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(UserError, match="cannot be written"):
        refuse_existing(tmp_path / "closed" / "out.csv")
