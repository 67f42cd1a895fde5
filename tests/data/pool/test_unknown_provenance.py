"""Pools with images of unknown provenance: counts, order, names and refusals, for whatever hypothesis composes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from usb_rsmatch.data.pool.image_set import ImageSet
from usb_rsmatch.data.pool.pool import HybridPool
from usb_rsmatch.data.pool.provenance import Provenance
from usb_rsmatch.data.pool.shortcuts import shortcut_cues, unknown_cues, unknown_warnings
from usb_rsmatch.data.pool.summary import contact_sheet, pool_table
from usb_rsmatch.errors import UserError


def pool(**keys: Any) -> HybridPool:
    return HybridPool.from_config(SimpleNamespace(**{"dataset": "digits", "num_labels": 40, **keys}))


def rows(images: ImageSet) -> list[bytes]:
    return [image.tobytes() for image in images.images]


@pytest.fixture(scope="session")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """70 images, some in folders that look like classes, beside metadata with a class and a generator."""
    root, rng = tmp_path_factory.mktemp("collected") / "web", np.random.default_rng(7)
    lines = ["file_name,label,generator"]
    for number in range(70):
        place = (f"{number % 10}/{number}.png", f"zebra/{number}.png", f"{number}.png")[number % 3]
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(root / place)
        lines.append(f"{place},{number % 10},sd14")
    (root / "metadata.csv").write_text("\n".join(lines))
    return root


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_combination_adds_up(sources: list[dict[str, Any]], collected: Path, data: st.DataObject) -> None:
    """Real part, synthetic and unknown sources, each with or without counts, in any combination."""
    known = data.draw(st.sampled_from([[], sources[:1], sources]))
    edm = sources[1]["source"]  # an npz of 90 images, with labels
    unknown = data.draw(st.lists(st.sampled_from([f"folder:{collected}", f"flat:{collected}", edm]), max_size=3))
    counts = [data.draw(st.none() | st.integers(1, 70)) for _ in unknown]
    real_count = data.draw(st.sampled_from([None, 0, 40, 100]))
    keys: dict[str, Any] = {"seed": data.draw(st.integers(0, 9)), "real_count": real_count, "synthetic": known}
    entries = [{"source": text, "count": count} for text, count in zip(unknown, counts, strict=True)]
    p = pool(**keys, unlabeled=entries)
    images = p.unlabeled
    sizes = [(90 if text == edm else 70) if n is None else n for text, n in zip(unknown, counts, strict=True)]
    assert p.provenance == {
        "real": 1438 if real_count is None else real_count,
        "synthetic": sum(60 if source is sources[0] else 90 for source in known),
        "unknown": sum(sizes),
        "by_generator": {name: n for name, n in (("sd14", 60), ("edm", 90)) if name in images.by_generator()},
    }
    assert [int(side.sum()) for side in (images.is_real, images.is_synthetic, images.is_unknown)] == [
        p.provenance[name] for name in ("real", "synthetic", "unknown")
    ]
    assert (images.labels[images.is_unknown] == -1).all() and not images.is_labeled[images.is_unknown].any()
    assert {images.generators[g] for g in images.generator[images.is_unknown]} <= {"unknown"}
    assert (np.diff(images.provenance) >= 0).all()  # real, then synthetic, then unknown
    reported = [source for source in p.manifest()["sources"] if source["provenance"] == "unknown"]
    assert [source["taken"] for source in reported] == sizes
    bare = pool(**keys)
    assert rows(bare.unlabeled) == rows(p.unlabeled)[: len(bare)] and rows(bare.labeled) == rows(p.labeled)


def test_classes_generators_and_metadata_of_the_images_are_not_read(collected: Path) -> None:
    p = pool(real_count=0, unlabeled=[{"source": f"folder:{collected}"}])
    assert len(p) == 70 and p.unlabeled.generators == ("real", "unknown") and (p.unlabeled.labels == -1).all()
    assert p.manifest()["sources"][1]["name"] == "web" and len(p.labeled) == 40
    assert not any("zebra" in note or "metadata" in note for note in p.notes)


def test_the_order_is_that_of_the_same_images_without_classes_as_synthetic(collected: Path) -> None:
    """So a run that is told the provenance and one that is not train on the same batches."""
    as_unknown = pool(unlabeled=[{"source": f"folder:{collected}", "count": 50}])
    as_synthetic = pool(synthetic=[{"source": f"flat:{collected}", "count": 50}])
    assert rows(as_unknown.unlabeled) == rows(as_synthetic.unlabeled)
    fewer = pool(unlabeled=[{"source": f"folder:{collected}", "count": 20}])
    assert rows(fewer.unlabeled) == rows(as_unknown.unlabeled)[: len(fewer)]


def test_provenance_folders_mean_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number, side in enumerate(["REAL", "FAKE", "REAL", "other"]):
        path = tmp_path / "set" / "train" / side / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(path)
    p = pool(unlabeled=[{"source": f"cifake:{tmp_path / 'set'}"}])
    assert p.provenance["unknown"] == 4
    with pytest.raises(UserError, match="'other' is neither"):
        pool(synthetic=[{"source": f"cifake:{tmp_path / 'set'}"}])


def own_folders(root: Path) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    places = [f"{part}/{c}/{i}.png" for part in ("train", "test") for c in "ab" for i in range(6)]
    for place in [*places, *(f"unlabeled/{i}.png" for i in range(9)), "unlabeled/a/10.png"]:
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(root / place)
    return {"dataset": "folder", "data_dir": str(root), "num_labels": 4}


def test_the_folder_beside_the_labelled_images_equals_an_entry(tmp_path: Path) -> None:
    keys = own_folders(tmp_path / "mine")
    implicit = pool(**keys)
    (tmp_path / "mine" / "unlabeled").rename(tmp_path / "elsewhere")
    explicit = pool(**keys, unlabeled=[{"source": f"folder:{tmp_path / 'elsewhere'}"}])
    assert implicit.provenance == explicit.provenance == {"real": 12, "synthetic": 0, "unknown": 10, "by_generator": {}}
    assert rows(implicit.unlabeled) == rows(explicit.unlabeled)
    (tmp_path / "elsewhere").rename(tmp_path / "mine" / "unlabeled")
    counted = pool(**keys, unlabeled=[{"source": f"folder:{tmp_path / 'mine' / 'unlabeled'}", "count": 3}])
    assert counted.provenance["unknown"] == 3  # an entry that names the folder replaces it


def test_images_that_are_labelled_or_test_images_are_reported(tmp_path: Path) -> None:
    p, root = pool(validation_count=20), tmp_path / "web"
    assert p.validation is not None
    root.mkdir()
    copies = {"l": p.labeled.images[3], "v": p.validation.images[0], "t0": p.test.images[0], "t1": p.test.images[1]}
    for name, pixels in copies.items():
        Image.fromarray(pixels[..., 0]).save(root / f"{name}.png")
    Image.new("L", (8, 8), 77).save(root / "new.png")
    q = pool(validation_count=20, unlabeled=[{"source": f"folder:{root}"}])
    found = q.manifest()["duplicates"]
    assert [found[f"unknown_in_{part}"] for part in ("labeled", "validation", "test")] == [1, 1, 2]
    for part, name in (("labelled set: 1", "l.png"), ("validation set: 1", "v.png"), ("test set: 2", "t")):
        (note,) = [note for note in q.notes if f"unknown provenance that are also in the {part}" in note]
        assert name in note
    assert len(q) == len(p) + 5  # they are reported, not removed


def test_the_manifest_rebuilds_it_and_an_older_one_is_read(collected: Path, tmp_path: Path) -> None:
    p = pool(real_count=60, unlabeled=[{"source": f"folder:{collected}", "name": "spring"}])
    content = p.manifest()
    assert content["pool"]["unknown"] == content["parts"]["unlabeled"]["unknown"] == 70
    (tmp_path / "pool.json").write_text(json.dumps(content))
    assert rows(HybridPool.from_manifest(tmp_path / "pool.json").unlabeled) == rows(p.unlabeled)
    older = pool(real_count=60).manifest()
    del older["config"]["unlabeled"], older["pool"]["unknown"]
    (tmp_path / "older.json").write_text(json.dumps(older))
    assert len(HybridPool.from_manifest(tmp_path / "older.json")) == 60


def test_the_table_and_the_contact_sheet_show_them(
    sources: list[dict[str, Any]], collected: Path, tmp_path: Path
) -> None:
    p = pool(real_count=60, synthetic=sources[:1], unlabeled=[{"source": f"folder:{collected}"}])
    counts = {line.split()[0]: line.split()[1] for line in pool_table(p).splitlines()[2:]}
    assert [counts[name] for name in ("real", "sd14", "unknown", "web")] == ["60", "60", "70", "70"]
    contact_sheet(p, tmp_path / "three.png")
    contact_sheet(pool(real_count=60, synthetic=sources[:1]), tmp_path / "two.png")
    widths = [Image.open(tmp_path / f"{name}.png").width for name in ("two", "three")]
    assert widths[1] - widths[0] == 8 * 50 + 24  # a column of tiles and a gap


def test_unknown_images_are_in_no_comparison_of_known_ones(sources: list[dict[str, Any]], collected: Path) -> None:
    entry = [{"source": f"folder:{collected}"}]
    assert shortcut_cues(pool(real_count=60, unlabeled=entry)) == {}
    both = pool(real_count=200, synthetic=sources[:1], unlabeled=entry)
    assert shortcut_cues(both) == shortcut_cues(pool(real_count=200, synthetic=sources[:1]))
    cues = unknown_cues(both)
    assert cues["grey levels in use"] == 1.0  # noise uses more grey levels than a digit
    assert any("grey levels in use alone tells images known to be real" in line for line in unknown_warnings(cues, 240))
    assert unknown_warnings({"file size": 0.7}, 10) == []  # ten images differ so much by chance
    assert len(unknown_warnings({"file size": 0.7}, 1000)) == 1
    assert unknown_cues(pool(synthetic=sources)) == {}


def test_the_enumeration_names_all_three(collected: Path) -> None:
    images = pool(real_count=50, unlabeled=[{"source": f"folder:{collected}"}]).unlabeled
    counted = Counter(Provenance(value).word for value in images.provenance.tolist())
    assert counted == {"real": 50, "unknown": 70} and [kind.word for kind in Provenance][1] == "synthetic"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"unlabeled": "folder:x"}, "unlabeled takes a list"),
        ({"unlabeled": [{"name": "x"}]}, "unlabeled: an entry needs a `source`"),
        ({"unlabeled": [{"source": "folder:x", "generator": "sd"}]}, "unlabeled, folder:x: has no generator"),
        ({"unlabeled": [{"source": "folder:x", "mapping": {"a": "1"}}]}, "has no mapping"),
        ({"unlabeled": [{"source": "folder:x", "count": {"sd": 3}}]}, "count takes a number"),
        ({"unlabeled": [{"source": "folder:x", "count": 0}]}, "at least 1"),
        ({"unlabeled": [{"source": "folder:x", "colour": 1}]}, "no such folder|unknown key 'colour'"),
        ({"unlabeled": [{"source": "folder:gone"}]}, "gone: no such folder"),
        ({"unlabeled": [{"source": "nowhere:x"}]}, "unknown source 'nowhere:x'"),
        ({"synthetic": [{"source": "folder:x", "generator": "Unknown"}]}, "cannot name its generator 'unknown'"),
        ({"synthetic": [{"source": "npz:x"}], "synthetic_ratio": 0.5, "real_count": 0}, "needs real images"),
        ({"unlabeled": [{"source": "npz:x"}], "synthetic_count": 5}, "no `synthetic:` source"),
    ],
)
def test_impossible_entries_are_one_line(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        pool(**keys)
    assert "\n" not in str(caught.value)


def test_too_few_images_of_an_entry_say_how_many(collected: Path) -> None:
    with pytest.raises(UserError, match="count 71 is asked for, it has 70 images"):
        pool(unlabeled=[{"source": f"folder:{collected}", "count": 71}])


def test_a_synthetic_folder_called_unknown_needs_a_name(tmp_path: Path) -> None:
    (tmp_path / "unknown").mkdir()
    Image.new("L", (8, 8), 3).save(tmp_path / "unknown" / "0.png")
    with pytest.raises(UserError, match=r"calls a generator 'unknown'.* give it a `generator`"):
        pool(synthetic=[{"source": f"folder:{tmp_path / 'unknown'}"}])
