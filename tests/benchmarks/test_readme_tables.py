"""Tests that README.md and docs match the code, and that all commands in them parse."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import readme_tables
from usb_rsmatch import cli
from usb_rsmatch.errors import UserError
from usb_rsmatch.usb.config import DEAD, KEYS
from usb_rsmatch.usb.shipped_configs import find_config

ROOT = readme_tables.ROOT
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"]

NAMES = ("train", "compare", "report", "pool", "eval", "predict", "audit", "export", "doctor")


def test_tables_are_up_to_date() -> None:
    stale = [
        path.name for path, text in readme_tables.generated_texts().items() if path.read_text(encoding="utf-8") != text
    ]
    assert not stale, "run python -m benchmarks.readme_tables"


def test_every_key_of_rsmatch_names_its_origin() -> None:
    table = readme_tables.own_key_table()
    for name, key in KEYS.items():
        if name.startswith("rs_"):
            assert f"`{name}`" in table and key.origin in ("paper", "ours")


def commands() -> list[str]:
    """Return the `usb-rsmatch` commands in the pages, each up to the end of its line or code span."""
    found = []
    for page in PAGES:
        for match in re.finditer(rf"usb-rsmatch ((?:{'|'.join(NAMES)})\b[^`\n|]*)", page.read_text("utf-8")):
            found.append(match[1].strip())
    return found


@pytest.mark.parametrize("command", sorted(set(commands())))
def test_shown_commands_parse_and_name_shipped_configurations(command: str) -> None:
    args, rest = cli._parser().parse_known_args(shlex.split(command))
    assert args.takes_keys or not rest
    name = getattr(args, "c", None)
    if name and name not in ("CONFIG", "GRID", "my_config.yaml", "tutorial.yaml", "backbones.yaml", "labels.yaml"):
        assert find_config(name).exists()
    for word in rest:
        assert not word.startswith("--") or word[2:] in KEYS or word == "--KEY"


def test_files_that_pages_link_to_exist() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_first_screen_has_two_commands_and_a_result() -> None:
    text = (readme_tables.ROOT / "README.md").read_text("utf-8")
    for marker in ("quickstart command", "test command"):
        block = text.split(f"<!-- {marker} -->\n```bash\n")[1].split("```")[0].strip()
        assert block.startswith("python3 -m venv .venv && .venv/bin/pip install") and "\n" not in block
    assert Path(readme_tables.PHOTOS).exists() and "<!-- photographs table -->\n| " in text


def test_the_page_of_keys_has_every_key_and_its_allowed_values() -> None:
    page = readme_tables.config_page()
    for name, key in KEYS.items():
        line = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        assert key.help.replace("|", "\\|") in line and readme_tables.allowed_values(key).replace("|", "\\|") in line
    for name, reason in DEAD.items():
        assert f"| `{name}` | {reason} |" in page
    assert readme_tables.allowed_values(KEYS["ema_m"]) == "number, 0 to 1"
    assert readme_tables.allowed_values(KEYS["optim"]) == "`SGD` or `AdamW`"
    assert readme_tables.allowed_values(KEYS["seed"]) == "whole number, 0 to 4294967295"


def test_a_comparison_is_summarised_from_its_results(write_result: Callable[..., Path], tmp_path: Path) -> None:
    for seed, last in enumerate((0.9, 0.8)):
        write_result(f"plain{seed}", seed=seed, accuracy__last=last)
        figures = {"auroc": 0.7, "ap": 0.7, "fpr95": 0.3, "by_generator": {}}
        write_result(f"ours{seed}", algorithm="rsmatch", seed=seed, detection=figures)
    summary = readme_tables.summarise(str(tmp_path / "results"))
    plain, ours = sorted(summary["rows"], key=lambda arm: arm["arm"])
    assert plain["arm"] == "fixmatch" and plain["auroc"] is None
    assert plain["accuracy"] == {"mean": pytest.approx(85), "std": pytest.approx(50**0.5), "n": 2}
    assert ours["auroc"] == {"mean": pytest.approx(0.7), "n": 2}
    assert (summary["seconds"], summary["threads"], summary["date"]) == (50.0, 2, "2026-01-02")
    table = readme_tables.quickstart_table(summary)
    assert "| fixmatch | 600 real + 600 synthetic (flow) | 85.0 ± 7.1 | – |" in table
    assert "| rsmatch | 600 real + 600 synthetic (flow) | 90.0 ± 0.0 | 0.70 |" in table
    write_result("plain2", seed=2, threads=1)
    with pytest.raises(UserError, match="different threads"):
        readme_tables.summarise(str(tmp_path / "results"))


def test_only_text_between_its_markers_is_replaced() -> None:
    text = "a\n<!-- one -->\nold\n<!-- end -->\nb\n<!-- two -->\nkept\n<!-- end -->\n"
    filled = readme_tables.replace_between_markers(text, "one", "new")
    assert (
        filled == text.replace("old", "new") and readme_tables.replace_between_markers(filled, "one", "new") == filled
    )


def test_check_reports_stale_files_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "docs").mkdir()
    for path, text in readme_tables.generated_texts().items():
        (tmp_path / path.relative_to(readme_tables.ROOT)).write_text(text, encoding="utf-8")
    monkeypatch.setattr(readme_tables, "ROOT", tmp_path)
    assert readme_tables.main(["--check"]) == 0
    page = tmp_path / "docs" / "method.md"
    stale = page.read_text("utf-8").replace("`32` | queue entries", "`64` | queue entries")
    page.write_text(stale, encoding="utf-8")
    assert readme_tables.main(["--check"]) == 1
    assert "docs/method.md is out of date: run python -m benchmarks.readme_tables" in capsys.readouterr().out
    assert page.read_text("utf-8") == stale
    assert readme_tables.main([]) == 0 and readme_tables.main(["--check"]) == 0


def test_a_folder_without_results_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert readme_tables.main(["--quickstart", str(tmp_path), "--out", str(tmp_path / "out.json")]) == 2
    assert "no run below it has finished" in capsys.readouterr().err and not (tmp_path / "out.json").exists()
