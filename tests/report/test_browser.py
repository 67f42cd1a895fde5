"""The report, the audit's gallery and the contact sheets in headless Chromium."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import CHROMIUM, Browser, browser
from PIL import Image
from sklearn.datasets import load_digits

from usb_rsmatch.cli import main
from usb_rsmatch.compare.grid import Run
from usb_rsmatch.report.command import report
from usb_rsmatch.report.plot_style import DARK, LIGHT

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")

MakeGrid = Callable[..., Path]
ARMS = {"FixMatch, real only": {"synthetic_count": 0}, "FixMatch": {}, "RSMatch": {"algorithm": "rsmatch"}}
WIDE, PHONE, SMALL_PHONE = 1200, 390, 320  # CSS pixels
TABLE = "Array.from(document.querySelectorAll('table')[{}].tBodies[0].rows, row => row.cells[{}].textContent)"
BROKEN = """Promise.all(Array.from(document.images, image => {
  image.loading = "eager";
  return image.decode().then(() => 0, () => 1);
})).then(broken => broken.reduce((a, b) => a + b, 0))"""
CLICK = "document.querySelectorAll('table')[{}].tHead.rows[0].cells[{}].querySelector('button').click()"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


def accuracy(run: Run) -> float:
    return 0.8 + 0.05 * list(ARMS).index(run.arm) + 0.01 * run.config["seed"]


@pytest.fixture
def page(finished_grid: MakeGrid, leave_analysis: Callable[..., None]) -> Path:
    """The report of nine runs with all plots and the gallery."""
    folder = finished_grid(accuracy, curves=50, arms=ARMS, axes={"seed": [0, 1, 2]}, baseline="FixMatch", name="quick")
    for path in folder.glob("*__seed-*"):
        leave_analysis(path, detector=path.name.startswith("rsmatch"), seed=int(path.name[-1]))
    return report(folder).folder / "index.html"


def check(chromium: Browser, page: Path, width: int, dark: bool = False) -> None:
    """Open a page: no error in its console, no request to a host, no wider than the window, readable aloud."""
    chromium.open(page, width=width, dark=dark)
    assert chromium.problems == []
    assert [address for address in chromium.requests if not address.startswith(("data:", page.as_uri()))] == []
    assert chromium.run("document.documentElement.scrollWidth") <= width
    assert chromium.run(BROKEN) == 0
    assert chromium.run("Array.from(document.images).filter(image => !image.alt.trim()).length") == 0
    levels = chromium.run(
        "Array.from(document.querySelectorAll('h1, h2, h3, h4, h5'), head => Number(head.tagName[1]))"
    )
    assert levels.count(1) == 1 and levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels)), "no level is left out"
    assert chromium.run("document.documentElement.lang") == "en" and chromium.run("document.title")


def colours(png: Path) -> set[str]:
    """The colours of more than 40 pixels, as #rrggbb."""
    pixels = np.asarray(Image.open(png).convert("RGB")).astype(np.int32) @ [65536, 256, 1]
    values, counts = np.unique(pixels, return_counts=True)
    return {f"#{value:06x}" for value in values[counts > 40].tolist()}


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [WIDE, PHONE, SMALL_PHONE])
def test_the_report_in_both_colour_schemes_and_at_phone_width(
    chromium: Browser, page: Path, tmp_path: Path, width: int, dark: bool
) -> None:
    check(chromium, page, width, dark)
    assert chromium.run("document.images.length") > 5 and chromium.run("document.querySelectorAll('h2').length") > 5
    chromium.screenshot(tmp_path / "page.png")
    shown, (mine, other) = colours(tmp_path / "page.png"), (DARK, LIGHT) if dark else (LIGHT, DARK)
    assert {mine.ground.lower(), *map(str.lower, mine.arms[:3])} <= shown
    assert other.arms[0].lower() not in shown, "the plots are those of this colour scheme"


def test_tables_sort_by_click(chromium: Browser, page: Path) -> None:
    chromium.open(page)
    heads = chromium.run("Array.from(document.querySelector('table').tHead.rows[0].cells, head => head.textContent)")
    names, shown = TABLE.format(0, 0), TABLE.format(0, heads.index("Accuracy (%)"))
    assert chromium.run(names) == list(ARMS)
    chromium.run(CLICK.format(0, heads.index("Accuracy (%)")))
    assert chromium.run(shown) == ["91.00 ± 1.00", "86.00 ± 1.00", "81.00 ± 1.00"], "the best is first"
    assert chromium.run("document.querySelector('th[aria-sort]').ariaSort") == "descending"
    chromium.run(CLICK.format(0, heads.index("Accuracy (%)")))
    assert chromium.run(names) == list(ARMS)
    chromium.run(CLICK.format(0, 0))
    assert chromium.run(names) == ["FixMatch", "FixMatch, real only", "RSMatch"]
    against = next(column for column, head in enumerate(heads) if head.startswith("Against"))
    chromium.run(CLICK.format(0, against))
    assert chromium.run(names) == ["RSMatch", "FixMatch, real only", "FixMatch"], "+5, -5, and nothing at last"
    assert chromium.run("document.querySelectorAll('th[aria-sort]').length") == 1
    assert chromium.problems == []


def test_no_other_script_runs(chromium: Browser, page: Path) -> None:
    """A name cannot bring in a script: it would be escaped, and the page's policy refuses it besides."""
    text = page.read_text(encoding="utf-8")
    page.write_text(text.replace("<h1>", "<script>document.title = 'changed'</script><h1>"), encoding="utf-8")
    chromium.open(page)
    assert chromium.run("document.title") == "quick"
    assert any("Content Security Policy" in line for line in chromium.problems)


def test_a_report_of_a_thousand_runs(chromium: Browser, finished_grid: MakeGrid) -> None:
    arms = {f"lr {number}": {"lr": number} for number in range(100)}
    folder = finished_grid(lambda run: run.config["lr"] / 100, arms=arms, axes={"seed": list(range(10))}, name="many")
    page = report(folder).folder / "index.html"
    for width in (WIDE, PHONE):
        check(chromium, page, width)
    runs = chromium.run("document.querySelectorAll('table').length") - 1
    chromium.run("document.querySelector('details').open = true")
    seconds = chromium.run(f"(() => {{ const start = performance.now(); {CLICK.format(runs, 2)}; "
                           "return (performance.now() - start) / 1000; })()")  # fmt: skip
    rows = chromium.run(TABLE.format(runs, 2))
    assert len(rows) == 1000 and rows == sorted(rows, key=float, reverse=True) and rows[0] == "99.00"
    assert seconds < 5 and chromium.run("document.documentElement.scrollWidth") <= PHONE


@pytest.fixture(scope="module")
def digits_in_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 trusted digits, and 60 others with 30 blurred ones, one of them with an odd name."""
    root = tmp_path_factory.mktemp("digits")
    images = np.rint(load_digits().images * (255 / 16))
    blurred = (images[200:230] + np.roll(images[200:230], 1, axis=2)) / 2
    for folder, parts in (("real", images[:100]), ("mixed", np.concatenate([images[100:160], blurred]))):
        (root / folder).mkdir()
        for number, pixels in enumerate(parts):
            name = "<script>alert(1)<|script>" if number == 0 else str(number)
            Image.fromarray(pixels.astype(np.uint8)).save(root / folder / f"{name}.png")
    return root


def test_the_gallery_of_an_audit(chromium: Browser, digits_in_folders: Path, tmp_path: Path) -> None:
    root = digits_in_folders
    assert main(["audit", str(root / "mixed"), "--real", str(root / "real"), "--out", str(tmp_path / "audit.csv")]) == 0
    for dark in (False, True):
        for width in (WIDE, PHONE, SMALL_PHONE):
            check(chromium, tmp_path / "audit.html", width, dark)
    assert chromium.run("document.images.length") == 90
    ground = chromium.run("getComputedStyle(document.body).backgroundColor")
    assert ground == "rgb({}, {}, {})".format(*bytes.fromhex(DARK.ground[1:]))


def test_the_contact_sheet_of_a_pool(chromium: Browser, small_pool: dict[str, Any], tmp_path: Path) -> None:
    import yaml

    (tmp_path / "pool.yaml").write_text(yaml.safe_dump(small_pool))
    assert main(["pool", "--c", str(tmp_path / "pool.yaml"), "--out", str(tmp_path / "pool.json")]) == 0
    chromium.open(tmp_path / "pool.png")
    assert chromium.problems == []
    width, height = Image.open(tmp_path / "pool.png").size
    assert chromium.run("[document.images[0].naturalWidth, document.images[0].naturalHeight]") == [width, height]
