"""The written report: whole, repeatable, self-contained and fast."""

from __future__ import annotations

import ast
import base64
import io
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import usb_rsmatch
from usb_rsmatch.compare.grid import Run
from usb_rsmatch.errors import UserError
from usb_rsmatch.report import table_sorting
from usb_rsmatch.report.accuracy_plots import accuracy_plot, learning_curves
from usb_rsmatch.report.collection import collect
from usb_rsmatch.report.command import report, runs_sheet
from usb_rsmatch.report.comparison import make_table
from usb_rsmatch.report.plot_style import DARK

MakeGrid = Callable[..., Path]
SCRIPT = "<script>alert(1)</script>"
ARMS = {"FixMatch, real only": {"synthetic_count": 0}, SCRIPT: {}, "RSMatch": {"algorithm": "rsmatch"}}


def accuracy(run: Run) -> float:
    return 0.8 + 0.05 * list(ARMS).index(run.arm) + 0.01 * run.config["seed"]


@pytest.fixture
def folder(finished_grid: MakeGrid) -> Path:
    return finished_grid(accuracy, curves=50, arms=ARMS, axes={"seed": [0, 1, 2]}, baseline=SCRIPT, name="quick")


@pytest.fixture
def pictured(folder: Path, leave_analysis: Callable[..., None]) -> Path:
    """The same, whose runs left their analyses."""
    for path in folder.glob("*__seed-*"):
        leave_analysis(path, detector=path.name.startswith("rsmatch"), seed=int(path.name[-1]))
    return folder


class Page(HTMLParser):
    """Collects what a page refers to, its tags and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for key, value in attributes if key in ("src", "href", "srcset", "action")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_all_files_are_written_and_repeat_byte_for_byte(pictured: Path, tmp_path: Path) -> None:
    written = report(pictured)
    names = {"report.md", "index.html", "results.csv", "usb.csv", "results.tex"}
    names |= {f"{name}.png" for name in ("accuracy", "curves", "detector", "confusion", "features")}
    assert {path.name for path in written.files} == names == {path.name for path in written.folder.iterdir()}
    assert written.folder == pictured / "report" and len(written.table.records) == 9
    before = {path.name: path.read_bytes() for path in written.files}
    again = report(pictured, tmp_path / "elsewhere")
    assert {path.name: path.read_bytes() for path in again.files} == before


def test_markdown_tells_figures_commands_and_versions(folder: Path) -> None:
    text = (report(folder).folder / "report.md").read_text()
    assert text.startswith("# quick\n")
    assert "**91.00 ± 1.00**" in text and "+5.00 [+5.00, +5.00]" in text
    assert SCRIPT not in text and r"\<script\>" in text
    assert f"`usb-rsmatch train --c {folder}/configs/rsmatch__seed-1.yaml`" in text
    assert "usb\\_rsmatch 0.1.0, semilearn 0.3.2, torch 2.14.1, on cpu, 2 threads; 2026-01-02" in text
    assert "![Test accuracy of every arm](accuracy.png)" in text and "(curves.png)" in text


def test_a_data_sets_name_is_escaped_in_markdown(write_result: Callable[..., Path]) -> None:
    folder = write_result("run", dataset=SCRIPT).parent.parent
    assert SCRIPT not in (report(folder).folder / "report.md").read_text()


def test_without_a_grids_file_the_command_names_the_runs_own(folder: Path) -> None:
    shutil.rmtree(folder / "configs")
    text = (report(folder).folder / "report.md").read_text()
    assert f"`usb-rsmatch train --c {folder}/rsmatch__seed-1/config.yaml`" in text


def test_memory_that_no_one_told_is_a_dash(write_result: Callable[..., Path]) -> None:
    sheet = runs_sheet(make_table(collect(write_result("run", peak_memory_mib=None).parent.parent)))
    assert sheet.rows[0][sheet.columns.index("Memory (MiB)")].text == "–"


def test_the_page_needs_nothing_else_and_escapes_names(pictured: Path) -> None:
    text = (report(pictured).folder / "index.html").read_text()
    page = Page(text)
    assert page.links and all(link.startswith("data:image/png;base64,") for link in page.links)
    assert not {"link", "iframe", "object"} & set(page.tags)
    assert (
        page.tags.count("script") == text.count("<script") == 1 and f"<script>{table_sorting.SCRIPT}</script>" in text
    )
    assert "http:" not in text and "https:" not in text and "@import" not in text and "url(" not in text
    assert SCRIPT in page.text and SCRIPT not in text
    for title in (
        "Detection of synthetic images",
        "Detectors by generator",
        "Confusion matrices",
        "Features",
        "Gallery",
        "Highest scores",
    ):
        assert title in page.text
    assert page.tags.count("figure") == 5 + 5 + 5 + 7, "plots, and the images of the gallery"
    for link in page.links:
        assert Image.open(io.BytesIO(base64.b64decode(link.partition(",")[2]))).format == "PNG"


def test_an_error_leaves_the_old_report_alone(folder: Path) -> None:
    written = report(folder)
    before = {path: path.read_bytes() for path in written.files}
    result = folder / "rsmatch__seed-1" / "result.json"
    result.write_text(result.read_text()[:80])
    with pytest.raises(UserError, match="incomplete"):
        report(folder)
    assert {path: path.read_bytes() for path in written.files} == before


def test_a_damaged_analysis_is_named_and_nothing_is_written(pictured: Path) -> None:
    path = pictured / "rsmatch__seed-1" / "analysis.npz"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"rsmatch__seed-1/analysis\.npz is damaged"):
        report(pictured)
    assert not (pictured / "report").exists()


def test_no_curves_no_plot_of_them(finished_grid: MakeGrid) -> None:
    written = report(finished_grid(accuracy, arms=ARMS, axes={"seed": [0]}))
    assert "curves.png" not in {path.name for path in written.files}
    assert "curves.png" not in (written.folder / "report.md").read_text()


def colours(png: bytes) -> set[tuple[int, ...]]:
    image = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(np.int32)
    values, counts = np.unique(image @ [65536, 256, 1], return_counts=True)
    return {(value >> 16, value >> 8 & 255, value & 255) for value in values[counts > 40].tolist()}


def rgb(code: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(code[1:]))


def test_plots_show_each_arm_in_its_colour_on_the_themes_ground(finished_grid: MakeGrid) -> None:
    arms = {"real": {"synthetic_ratio": 0}, "mixed": {}, "RSMatch": {"algorithm": "rsmatch"}}

    def rising(run: Run) -> float:
        return 0.7 + 0.1 * run.config["synthetic_ratio"] + 0.01 * run.config["seed"]

    axes = {"synthetic_ratio": [0.2, 0.5, 0.8], "seed": [0, 1]}
    by_pool = make_table(collect(finished_grid(rising, curves=20, arms=arms, axes=axes, name="pool")))
    by_arm = make_table(collect(finished_grid(rising, arms=arms, axes={"seed": [0, 1]}, config={
        "algorithm": "fixmatch", "num_labels": 20, "synthetic_ratio": 0.5}, name="arm")))  # fmt: skip
    for png in (accuracy_plot(by_pool, DARK), accuracy_plot(by_arm, DARK), *learning_curves(by_pool, [DARK])):
        assert {rgb(DARK.ground), *map(rgb, DARK.arms[:3])} <= colours(png)


def test_odd_names_are_drawn(finished_grid: MakeGrid) -> None:
    names = ["$x_1", "_hidden", "a\nb", "{b}^\\frac", "ß" * 200]
    arms = {name: {"lr": index} for index, name in enumerate(names)}
    table = make_table(collect(finished_grid(lambda run: 0.5, curves=20, arms=arms, axes={"seed": [0, 1]})))
    assert accuracy_plot(table) and learning_curves(table)


def test_heavy_imports_are_late() -> None:
    package = Path(usb_rsmatch.__file__).parent
    compare = package / "compare"
    files = [*sorted((package / "report").glob("*.py")), compare / "grid.py", compare / "runner.py"]
    assert len(files) > 15
    for path in files:
        tree = ast.parse(path.read_text())
        for node in tree.body:
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            else:
                modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {module.partition(".")[0] for module in modules} & {
                "torch",
                "semilearn",
                "matplotlib",
                "scipy",
            }
