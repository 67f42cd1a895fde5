"""The dataset card of a generated data set: counts, settings, quality figures and a contact sheet."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image, ImageDraw

from usb_rsmatch.io import atomic_write
from usb_rsmatch.synthesis.output import Output
from usb_rsmatch.synthesis.plan import PlannedImage

SHEET = ".card/contact_sheet.png"  # in a hidden folder, so that readers do not treat it as an image of the data set
SHEET_CLASSES, SHEET_COLUMNS, SHEET_TILE = 20, 8, 64
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def write_card(output: Output, quality: Mapping[str, Any] | None, source: str) -> None:
    """Write `README.md` and the contact sheet of a complete output; equal outputs give equal files.

    `source` is the kind of source that reads the folder, "folder" or "npz".
    """
    kept = output.kept()
    output.write_once("README.md", card(output, kept, quality, source))
    sheet = output.folder / SHEET
    if not sheet.is_file():
        picture = io.BytesIO()
        contact_sheet(output, kept).save(picture, format="PNG")
        with atomic_write(sheet) as temporary:
            temporary.write_bytes(picture.getvalue())


def card(output: Output, kept: Sequence[PlannedImage], quality: Mapping[str, Any] | None, source: str) -> str:
    """The card as Markdown with Hugging Face's metadata header."""
    run, plan = output.run, output.plan
    head = {
        "pretty_name": f"{output.generator}, {run.get('dataset') or 'own classes'}",
        "task_categories": ["image-classification"],
        "tags": ["synthetic", output.generator],
        "size_categories": [next((name for bound, name in SIZES if len(kept) < bound), "n>1M")],
    }
    counts = {plan.classes[c]: 0 for c in plan.chosen}
    for item in kept:
        counts[item.name] += 1
    flagged = plan.count - len(kept)
    colour = "grey" if run["channels"] == 1 else "colour"
    size = f"{run['size']} x {run['size']} px" if run["size"] else "not resized"
    plain = {key: value for key, value in run.items() if not isinstance(value, (dict, list))}
    settings = {**plain, **run["settings"]}
    lines = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# {len(kept):,} generated images of {len(counts)} classes",
        f"Made by `usb-rsmatch synthesize --engine {run['engine']}`, {size}, {colour}. "
        "All are synthetic: none was taken by a camera. `synthesis.json` and `metadata.jsonl` say how each was made.",
        f"![Some images of each class]({SHEET})",
        f'To use them in a pool of usb_rsmatch:\n\n    synthetic:\n      - {{source: "{source}:PATH/TO/THIS/FOLDER"}}',
    ]
    if flagged:
        lines.append(f"The pipeline's safety checker hit {flagged:,} more images. `flagged.jsonl` lists them.")
    elif run["engine"] == "diffusers" and not run["settings"]["safety_checker"]:
        lines.append("This pipeline has no safety checker: nothing was filtered.")
    if quality:
        lines += ["## Quality", quality_table(quality)]
    lines += [
        "## Settings",
        _table(("setting", "value"), [(key, _code(value)) for key, value in settings.items() if value is not None]),
        "Versions: " + ", ".join(f"{name} {version}" for name, version in run["versions"].items()) + ".",
        "## Images of each class",
        _table(("class", "images"), [(name, f"{n:,}") for name, n in counts.items()]),
    ]
    return "\n\n".join(lines) + "\n"


def quality_table(quality: Mapping[str, Any]) -> str:
    """The figures of `Quality` and those of real images, as a Markdown table with explanations."""
    pairs = (
        ("Frechet distance of this classifier's features", "classifier_frechet", "real_classifier_frechet"),
        ("kernel distance of them", "classifier_kernel", "real_classifier_kernel"),
        ("precision", "precision", "real_precision"),
        ("recall", "recall", "real_recall"),
        ("accuracy of the classifier on the intended class", "class_accuracy", "real_class_accuracy"),
        ("diversity within classes", "diversity", None),
    )
    known = [pair for pair in pairs if pair[1] in quality]  # older files have fewer figures
    rows = [(name, figure(quality[ours]), figure(quality[real]) if real else "1") for name, ours, real in known]
    return (
        _table(("", "these images", "held-out real ones"), rows)
        + "\n\nBy a small classifier trained on three quarters of the real images. Its Frechet distance, a share of "
        "the real features' variance, compares generators of one data set; it is not an Inception FID, and the kernel "
        "distance is not an Inception KID."
    )


def contact_sheet(output: Output, kept: Sequence[PlannedImage]) -> Image.Image:
    """An image with one row per class (at most `SHEET_CLASSES`), of the first images of each."""
    rows: dict[str, list[PlannedImage]] = {}
    for item in kept:
        if item.name in rows or len(rows) < SHEET_CLASSES:
            rows.setdefault(item.name, []).append(item)
    shown = {name: items[:SHEET_COLUMNS] for name, items in rows.items()}
    tile, margin = SHEET_TILE + 2, 120
    sheet = Image.new("RGB", (margin + SHEET_COLUMNS * tile, max(1, len(shown)) * tile), "white")
    draw = ImageDraw.Draw(sheet)
    for line, (name, items) in enumerate(shown.items()):
        draw.text((4, line * tile + tile // 3), name[:18].encode("ascii", "replace").decode(), fill="black")
        for column, pixels in enumerate(output.load(items)):
            sheet.paste(_tile(pixels), (margin + column * tile, line * tile))
    return sheet


def read_quality(folder: Path) -> Any:
    """The figures that `--report` wrote to a folder, None if there are none."""
    import json

    path = folder / "quality.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def figure(value: float | None) -> str:
    """A figure with three decimals, or a dash for None."""
    return "–" if value is None else f"{value:.3f}"


def _tile(pixels: np.ndarray) -> Image.Image:
    """A tile of the contact sheet: small images are enlarged without smoothing, so that single pixels stay visible."""
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).convert("RGB")
    small = max(picture.size) <= SHEET_TILE
    return picture.resize((SHEET_TILE, SHEET_TILE), Image.Resampling.NEAREST if small else Image.Resampling.BILINEAR)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows])


def _code(value: Any) -> str:
    return f"`{value}`"
