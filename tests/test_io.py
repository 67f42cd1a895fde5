"""Atomic writes: a file is complete or absent, and a failed write leaves the previous file unchanged."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from usb_rsmatch.io import atomic_write, parse_json, remove_leftovers, write_json, write_text


def test_a_write_creates_the_folder_and_leaves_no_other_file(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "note.txt"
    write_text(path, "Größe\n")
    assert path.read_text(encoding="utf-8") == "Größe\n"
    write_text(path, "again")
    assert path.read_text() == "again"
    assert os.listdir(path.parent) == ["note.txt"]


def test_a_failed_write_leaves_the_previous_file(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    write_text(path, "before")
    with pytest.raises(RuntimeError, match="half"), atomic_write(path) as temporary:
        temporary.write_text("half")
        assert temporary.parent == path.parent  # else the rename would not be atomic
        raise RuntimeError("half-way")
    assert path.read_text() == "before" and os.listdir(tmp_path) == ["note.txt"]


def test_a_process_killed_while_writing_leaves_the_previous_file(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    write_text(path, "before")
    code = f"""
import os, signal
from usb_rsmatch.io import atomic_write
with atomic_write({str(path)!r}) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == -9
    assert path.read_text() == "before"
    (tmp_path / ".hidden.tmp").touch()
    remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".hidden.tmp", "note.txt"]


def test_the_previous_file_is_kept_under_another_name(tmp_path: Path) -> None:
    path, kept = tmp_path / "note.txt", tmp_path / "before.txt"
    for text in ("1", "2", "3"):
        with atomic_write(path, keep=kept) as temporary:
            temporary.write_text(text)
    assert (path.read_text(), kept.read_text()) == ("3", "2")
    assert sorted(os.listdir(tmp_path)) == ["before.txt", "note.txt"]


@pytest.mark.parametrize("call", ["link", "replace", "fsync", "chmod"])
@pytest.mark.parametrize("kill", [False, True])
def test_a_write_that_stops_at_any_system_call_leaves_a_complete_file(
    call: str, kill: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each system call of a write fails or ends the process, one after another; the next write then succeeds."""
    path, kept = tmp_path / "note.txt", tmp_path / "before.txt"
    for text in ("1", "2"):
        with atomic_write(path, keep=kept) as temporary:
            temporary.write_text(text)
    real = getattr(os, call)
    for number in range(1, 4):
        pid = os.fork()
        if pid == 0:
            calls = iter(range(1, 9))

            def stop(*given: object, calls: Iterator[int] = calls, number: int = number) -> None:
                if next(calls) == number:
                    if kill:
                        os._exit(9)
                    raise OSError(5, "Input/output error")
                real(*given)

            setattr(os, call, stop)
            try:
                with atomic_write(path, keep=kept) as temporary:
                    temporary.write_text("3")
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        assert path.read_text() in ("2", "3") and kept.read_text() in ("1", "2")
        remove_leftovers(tmp_path)
        assert sorted(os.listdir(tmp_path)) == ["before.txt", "note.txt"]
        with atomic_write(path, keep=kept) as temporary:
            temporary.write_text("2")
        assert path.read_text() == "2"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [{"a": float("-inf")}]])
def test_json_with_nan_or_infinity_is_refused(value: object, tmp_path: Path) -> None:
    path = tmp_path / "numbers.json"
    write_json(path, {"a": [1, 2.5, None, "x"]})
    with pytest.raises(ValueError):
        write_json(path, value)
    assert json.loads(path.read_text()) == {"a": [1, 2.5, None, "x"]}


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "", "1 2", r'["\ud800"]', r'{"\uDFFF": 1}'])
def test_invalid_json_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        parse_json(text)


def test_integers_too_large_for_a_float_become_infinite() -> None:
    assert parse_json(f"[7, -{'9' * 5000}, {'9' * 400}]") == [7, float("-inf"), float("inf")]
    assert parse_json(r'"\ud83d\ude00 \\ud800"') == "😀 \\ud800"
    assert type(parse_json("7")) is int and parse_json("9" * 200) == int("9" * 200)


@pytest.mark.skipif(os.name != "posix", reason="file modes exist only on POSIX systems")
def test_files_have_the_default_mode(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    write_text(tmp_path / "ours", "text")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "ours")]
    assert modes[0] == modes[1]
