"""The option `difficulty` of a source: images by the difficulty in the metadata, from folders and packed arrays."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from usb_rsmatch.compare.grid import parse_grid, plan
from usb_rsmatch.data.images.decode import read_image
from usb_rsmatch.data.pool.pool import HybridPool
from usb_rsmatch.errors import UserError
from usb_rsmatch.synthesis.engine import GeneratedImage
from usb_rsmatch.synthesis.npz_output import NpzOutput
from usb_rsmatch.synthesis.output import Output
from usb_rsmatch.synthesis.plan import Plan

COUNT = 40


def made(folder: Path, packed: bool, with_difficulty: bool = True) -> dict[float, bytes]:
    """A finished output of 40 digits with the difficulties 0.00, 0.02, ...; {difficulty: pixels}."""
    plan = Plan(tuple("0123456789"), tuple(range(10)), COUNT, 8, 2)
    run = {"generator": "flow", "label_names": list(plan.classes), "versions": {}, "settings": {}}
    output = (NpzOutput if packed else Output)(folder, plan, run, "flow")
    digits = np.roll(np.round(load_digits().images * 255 / 16), 1, axis=2).astype(np.uint8)[..., None]
    pixels: dict[float, bytes] = {}
    number = 0
    for group in range(plan.groups):
        for batch in plan.batches_of(group):
            images = []
            for _ in plan.items(batch):
                asked = round(0.02 * number, 2)
                pixels[asked] = digits[number].tobytes()
                images.append(GeneratedImage(digits[number], {"difficulty": asked} if with_difficulty else {}))
                number += 1
            output.save(batch, plan.items(batch), images, {})
        output.close_group(group)
    output.refresh()
    output.finish()
    return pixels


def taken(**entry: Any) -> set[bytes]:
    pool = HybridPool.from_config(SimpleNamespace(dataset="digits", num_labels=20, synthetic=[entry], seed=0))
    synthetic = pool.unlabeled.take(pool.unlabeled.is_synthetic)
    return {image.tobytes() for image in synthetic.images}


@pytest.mark.parametrize("kind", ["folder", "npz"])
def test_a_range_or_a_number_selects_images(kind: str, tmp_path: Path) -> None:
    pixels = made(tmp_path / "set", kind == "npz")
    source = f"{kind}:{tmp_path / 'set'}"
    wanted = {image for asked, image in pixels.items() if 0.3 <= asked <= 0.7}
    assert taken(source=source, difficulty=[0.3, 0.7]) == wanted and 15 < len(wanted) < COUNT
    assert taken(source=source, difficulty=0.5) == {pixels[0.5]}
    assert taken(source=source) == set(pixels.values())


@pytest.mark.parametrize("kind", ["folder", "npz"])
def test_sets_without_difficulty_and_empty_ranges_are_refused(kind: str, tmp_path: Path) -> None:
    made(tmp_path / "without", kind == "npz", with_difficulty=False)
    made(tmp_path / "with", kind == "npz")
    with pytest.raises(UserError, match="its metadata has none"):
        taken(source=f"{kind}:{tmp_path / 'without'}", difficulty=0.5)
    with pytest.raises(UserError, match=r"no image has a difficulty from 0\.9 to 1, only 0 to 0\.78"):
        taken(source=f"{kind}:{tmp_path / 'with'}", difficulty=[0.9, 1])
    for value in ("hard", [0.7, 0.3], [0.1, 0.2, 0.3], 1.5, True, [], "0.3:0.7"):
        with pytest.raises(UserError, match="difficulty takes a number from 0 to 1 or a range"):
            taken(source=f"{kind}:{tmp_path / 'with'}", difficulty=value)


def test_images_without_metadata_have_no_difficulty(tmp_path: Path) -> None:
    made(tmp_path / "set", False)
    images = np.stack([read_image(path) for path in sorted((tmp_path / "set").rglob("?.png"))])
    np.savez(tmp_path / "plain.npz", images=images, labels=np.arange(len(images)) % 10)
    (tmp_path / "set" / "metadata.jsonl").unlink()
    for source in (f"folder:{tmp_path / 'set'}", f"npz:{tmp_path / 'plain.npz'}"):
        with pytest.raises(UserError, match="its metadata has none"):
            taken(source=source, difficulty=0.5)


def test_damaged_metadata_of_packed_images_are_named(tmp_path: Path) -> None:
    made(tmp_path / "set", True)
    file = tmp_path / "set" / "metadata.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps({**row, "index": 999}) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"needs its metadata\.jsonl, which is not usable"):
        taken(source=f"npz:{tmp_path / 'set'}", difficulty=0.5)


def test_a_grid_has_difficulty_as_an_axis(tmp_path: Path) -> None:
    entry = {"source": "folder:./set"}
    levels = {name: [{**entry, "difficulty": ends}] for name, ends in (("easy", [0, 0.3]), ("hard", [0.7, 1]))}
    content = {"config": {"dataset": "digits"}, "axes": {"synthetic": levels, "seed": [0]}, "arms": {"FixMatch": {}}}
    grid = parse_grid(content, "grid", "levels", ("synthetic", "seed", "dataset"), lambda name: {})
    assert [(run.axes["synthetic"], run.config["synthetic"]) for run in plan(grid)] == list(levels.items())
