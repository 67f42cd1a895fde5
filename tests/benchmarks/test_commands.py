"""Tests that all commands `python -m benchmarks.NAME` parse and are listed in benchmarks/README.md."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WITH_RESULT = (
    "audit",
    "data",
    "detection",
    "difficulty",
    "faults",
    "gpu",
    "method",
    "photos",
    "reporting",
    "same_result",
    "speed",
    "synthesis",
)
COMMANDS = (*WITH_RESULT, "photos_picture", "photos_subset", "readme_tables")


def test_the_list_of_commands_is_complete() -> None:
    found = set()
    for path in (ROOT / "benchmarks").rglob("*.py"):
        if '__name__ == "__main__"' in path.read_text(encoding="utf-8"):
            found.add(path.parent.name if path.name == "__main__.py" else path.stem)
    assert found == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    package = (ROOT / "benchmarks" / name).is_dir()
    module = importlib.import_module(f"benchmarks.{name}.__main__" if package else f"benchmarks.{name}")
    with pytest.raises(SystemExit) as exit_:
        module.main(["--help"])
    text = capsys.readouterr().out
    assert exit_.value.code == 0
    assert text.startswith(f"usage: python -m benchmarks.{name} ") and "--out FILE" in text


def test_the_readme_lists_every_command_and_its_result_file() -> None:
    text = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    rows = [re.split(r" *\| *", line.strip("| ")) for line in text.splitlines() if line.startswith("| `")][1:]
    assert sorted(row[0].strip("`").split()[0] for row in rows) == sorted(COMMANDS)
    for command, _, result, *_ in rows:
        name = command.strip("`").split()[0]
        if name in WITH_RESULT:
            assert result == f"`{name}.json`" and f"--out results/{name}.json" in command
            assert (ROOT / "results" / f"{name}.json").exists() or name in (
                "gpu",
                "detection",
                "photos",
            )  # not measured yet
    assert len(text.splitlines()) <= 27
