"""Pictures of what runs learnt: figures against scikit-learn's, colours by provenance, which runs are shown."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import auc, roc_curve
from sklearn.neighbors import KNeighborsClassifier

from usb_rsmatch.errors import UserError
from usb_rsmatch.report.collection import collect
from usb_rsmatch.report.comparison import Table, make_table
from usb_rsmatch.report.image_gallery import gallery, png, style
from usb_rsmatch.report.plot_style import DARK, LIGHT
from usb_rsmatch.report.plotted_runs import PlottedRuns, gather, real_and_made
from usb_rsmatch.report.run_plots import confusion_plot, detector_plot, embed, features_plot, roc

MakeGrid = Callable[..., Path]
ARMS = {"FixMatch": {}, "<RSMatch>": {"algorithm": "rsmatch"}}


@pytest.fixture
def table(finished_grid: MakeGrid, leave_analysis: Callable[..., None]) -> Table:
    """Two settings; the second alone has an analysis of each arm."""
    axes = {"num_labels": [20, 40], "seed": [0, 1]}
    folder = finished_grid(lambda run: 0.9, arms=ARMS, axes=axes, baseline="FixMatch")
    for path in folder.glob("*__num_labels-40__*"):
        leave_analysis(path, detector="rsmatch" in path.name, seed=int(path.name[-1]))
    leave_analysis(next(folder.glob("fixmatch__num_labels-20__*")), detector=False)
    return make_table(collect(folder))


@pytest.fixture
def plotted(table: Table) -> PlottedRuns:
    found = gather(table)
    assert found is not None
    return found


def colours(image: bytes) -> set[str]:
    pixels = np.asarray(Image.open(io.BytesIO(image)).convert("RGB")).reshape(-1, 3)
    values, counts = np.unique(pixels, axis=0, return_counts=True)
    return {f"#{bytes(value.tolist()).hex()}" for value, count in zip(values, counts, strict=True) if count > 20}


def test_the_setting_with_most_analyses_is_shown(plotted: PlottedRuns) -> None:
    assert plotted.setting.axes == {"num_labels": 40}
    assert plotted.seeds == {"FixMatch": [0, 1], "<RSMatch>": [0, 1]} and plotted.indices["<RSMatch>"] == 1
    assert list(plotted.detecting) == ["<RSMatch>"] and plotted.generators == ["flow", "blur"]
    assert plotted.provenance == ["real", "flow", "blur"]
    assert plotted.explain() == ["Plots of single runs show num_labels=40."]


def test_of_many_arms_the_baseline_and_those_with_a_detector_are_shown(
    finished_grid: MakeGrid, leave_analysis: Callable[..., None]
) -> None:
    """Nine arms with the detectors last, and the only queue last of all; what is left out is said."""
    arms: dict[str, dict[str, object]] = {f"Plain {at}": {"lr": at} for at in range(4)}
    arms |= {f"Detects {at}": {"algorithm": "rsmatch", "lr": at} for at in range(5)}
    folder = finished_grid(lambda run: 0.9, arms=arms, axes={"seed": [0]}, baseline="Plain 2")
    for path in folder.glob("*__seed-0"):
        leave_analysis(path, detector=path.name.startswith("detects"))
        if path.name.startswith("detects") and not path.name.startswith("detects-4"):
            with np.load(path / "analysis.npz") as file:
                kept = {name: file[name] for name in file.files if not name.startswith("queue")}
            np.savez_compressed(path / "analysis.npz", **kept)
    found = gather(make_table(collect(folder)))
    assert found is not None
    assert list(found.runs) == ["Plain 2", *(f"Detects {at}" for at in range(5))] and found.indices["Detects 4"] == 8
    (line,) = found.explain()
    assert "leave out Plain 0, Plain 1, Plain 3:" in line
    wide = detector_plot(found, LIGHT)
    assert wide is not None and {*LIGHT.arms[:3], *LIGHT.arms[4:], *LIGHT.provenance[:3]} <= colours(wide)
    assert LIGHT.arms[3] not in colours(wide), "an arm without a detector"
    assert 1500 < Image.open(io.BytesIO(wide)).height < 2000, "curves and five rows of scores, whatever the generators"
    html = gallery(found)
    assert [name for name in arms if f"<h3>{name}</h3>" in html] == ["Detects 0", "Detects 1", "Detects 4"]
    assert "In the queue" in html


def test_of_equal_settings_the_one_with_detection_and_most_synthetic_images_is_shown(
    finished_grid: MakeGrid, leave_analysis: Callable[..., None]
) -> None:
    folder = finished_grid(
        lambda run: 0.9, arms=ARMS, axes={"synthetic_ratio": [0.0, 0.8, 0.5], "seed": [0]}, baseline="FixMatch"
    )
    for path in folder.glob("*__seed-0"):
        leave_analysis(path, detector="rsmatch" in path.name and "ratio-0.0" not in path.name)
    found = gather(make_table(collect(folder)))
    assert found is not None and found.setting.axes == {"synthetic_ratio": 0.8}
    assert list(found.detecting) == ["<RSMatch>"]


def test_no_analysis_no_pictures_and_a_damaged_one_is_an_error(table: Table) -> None:
    for record in table.records:
        path = record.result.path.with_name("analysis.npz")
        if path.is_file():
            path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="damaged"):
        gather(table)
    for record in table.records:
        record.result.path.with_name("analysis.npz").unlink(missing_ok=True)
    assert gather(table) is None


def test_roc_is_scikit_learns(plotted: PlottedRuns) -> None:
    run = plotted.detecting["<RSMatch>"][0]
    areas = []
    for generator in ("flow", "blur"):
        real, made = real_and_made(run, generator)
        assert len(real) + len(made) == (run.scores_generator != 3 - run.generators.index(generator)).sum()
        rates, area = roc(real, made)
        false, true, _ = roc_curve(np.r_[np.zeros(len(real)), np.ones(len(made))], np.r_[real, made])
        assert area == pytest.approx(auc(false, true))
        assert np.trapezoid(rates, np.linspace(0, 1, 201)) == pytest.approx(area, abs=0.01)
        areas.append(area)
    assert areas[0] > areas[1] > 0.5, "the first generator is the easier one"


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_plots_show_arms_and_provenance_in_their_colours(plotted: PlottedRuns, theme: object) -> None:
    assert theme in (LIGHT, DARK)
    theme = LIGHT if theme is LIGHT else DARK
    detector = detector_plot(plotted, theme)
    assert detector is not None and {theme.ground, theme.arms[1], *theme.provenance[:3]} <= colours(detector)
    assert theme.arms[0] not in colours(detector), "an arm without a detector"
    assert {theme.ground, theme.heat[0]} <= colours(confusion_plot(plotted, theme))
    (features,) = features_plot(plotted, [theme])
    assert {theme.ground, *theme.provenance[:3]} <= colours(features)


def test_the_map_keeps_classes_together_and_repeats(plotted: PlottedRuns) -> None:
    run = plotted.runs["FixMatch"][0]
    points = embed(run)
    assert points.shape == (90, 2) and (points == embed(run)).all()
    near = KNeighborsClassifier(3).fit(points, run.features_class)
    assert near.score(points, run.features_class) > 0.8, "digits lie beside their like"


def test_the_gallery_holds_the_images_under_their_provenance(plotted: PlottedRuns) -> None:
    html, run = gallery(plotted), plotted.detecting["<RSMatch>"][0]
    assert "&lt;RSMatch&gt;" in html and "<RSMatch>" not in html
    assert html.count("<figure") == 5 + 5 + 7
    assert run.highest is not None and run.queue_generator is not None
    first = html.split("Highest")[1].split("<figure")[1]
    name = run.generators[run.highest.generators[0]]
    assert f'title="{name}"' in first and f"--of: var(--of-{plotted.provenance.index(name)})" in first
    assert f"<span>{run.highest.scores[0]:.2f}</span>" in first
    shown = Image.open(io.BytesIO(base64.b64decode(first.split("base64,")[1].split('"')[0])))
    assert (np.asarray(shown) == run.highest.images[0, ..., 0]).all()
    share = 100 * (run.queue_generator > 0).mean()
    assert f"7 entries, {share:.0f} % of them truly synthetic" in html
    assert all(f"--of-{at}: {LIGHT.provenance[at]}" in style(plotted) for at in range(3))


def test_colour_images_keep_their_colours() -> None:
    image = np.zeros((4, 6, 3), np.uint8)
    image[..., 0] = 200
    assert (np.asarray(Image.open(io.BytesIO(png(image)))) == image).all()
