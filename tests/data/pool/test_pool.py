"""What a pool is made of: counts, ratio, seeds, order and nesting, for whatever hypothesis thinks of."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from usb_rsmatch.data.images.reencode import through_jpeg
from usb_rsmatch.data.pool.pool import HybridPool, ImageSet
from usb_rsmatch.data.pool.split import long_tailed, split_training
from usb_rsmatch.data.sources.dataset_registry import DataSpec
from usb_rsmatch.errors import UserError

RNG = np.random.default_rng(0)


def pool(**keys: Any) -> HybridPool:
    return HybridPool.from_config(SimpleNamespace(**{"dataset": "digits", "num_labels": 40, **keys}))


def rows(images: ImageSet) -> list[bytes]:
    return [image.tobytes() for image in images.images]


# --- the real share


def test_the_parts_of_a_real_pool() -> None:
    p = pool(num_classes=10)
    assert isinstance(p.spec, DataSpec) and p.classes == tuple("0123456789")
    assert np.bincount(p.labeled.labels).tolist() == [4] * 10 and p.labeled.is_labeled.all()
    assert (len(p), len(p.test), p.validation) == (1438, 359, None)
    assert rows(p.unlabeled)[:40] == rows(p.labeled)
    assert np.flatnonzero(p.unlabeled.is_labeled).tolist() == list(range(40))
    assert p.provenance == {"real": 1438, "synthetic": 0, "unknown": 0, "by_generator": {}}
    assert p.unlabeled.images.shape == (1438, 8, 8, 1) and p.unlabeled.images.dtype == np.uint8
    assert p.names[0].startswith("digits, image ")


def test_without_the_labelled_images_in_the_unlabelled_set() -> None:
    both, second = pool(), pool(include_lb_to_ulb=False)
    assert rows(second.labeled) == rows(both.labeled)
    assert rows(second.unlabeled) == rows(both.unlabeled)[40:]
    assert not second.unlabeled.is_labeled.any()


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(0, 300), st.data())
def test_splits_share_nothing_and_depend_on_the_seed(seed: int, each: int, held: int, data: st.DataObject) -> None:
    keys = {"seed": seed, "num_labels": 10 * each, "validation_count": held}
    p = pool(**keys)
    everything = Counter(rows(p.unlabeled)) + Counter(rows(p.validation) if p.validation else ())
    assert everything == Counter(rows(pool().unlabeled))
    assert p.validation is None or len(p.validation) == held
    more = data.draw(st.integers(len(p.labeled), len(p)))
    part = pool(**keys, real_count=more)
    assert rows(part.unlabeled) == rows(p.unlabeled)[:more]
    assert rows(part.labeled) == rows(p.labeled) and rows(part.test) == rows(p.test)
    other = pool(**{**keys, "seed": seed + 1})
    assert rows(other.labeled) != rows(p.labeled) and rows(other.test) == rows(p.test)


def test_validation_is_balanced_and_independent_of_the_labels() -> None:
    first, second = pool(validation_count=100), pool(validation_count=100, num_labels=400)
    assert first.validation is not None and second.validation is not None
    assert rows(first.validation) == rows(second.validation)
    assert np.abs(np.bincount(first.validation.labels) - 10).max() <= 1
    assert rows(first.labeled) == rows(pool().labeled)


def test_the_folds_of_the_labelled_images_partition_them() -> None:
    whole = pool(num_labels=80, real_count=300)
    folds = [pool(num_labels=80, real_count=300, validation_fold=f"{i}/4") for i in range(1, 5)]
    held: list[bytes] = []
    for fold in folds:
        assert fold.validation is not None
        assert np.bincount(fold.validation.labels).tolist() == [2] * 10
        assert Counter(rows(fold.labeled)) + Counter(rows(fold.validation)) == Counter(rows(whole.labeled))
        assert not Counter(rows(fold.validation)) & Counter(rows(fold.unlabeled)) and len(fold) == 300
        held += rows(fold.validation)
    assert Counter(held) == Counter(rows(whole.labeled))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"validation_fold": "5/4"}, "is not I/N"),
        ({"validation_fold": "1"}, "is not I/N"),
        ({"validation_fold": "1/5"}, "has 4 labelled images, 5 are needed"),
        ({"validation_fold": "1/4", "validation_count": 20}, "not both"),
    ],
)
def test_folds_that_cannot_be(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        pool(**keys)


def test_images_are_resized_on_demand() -> None:
    p = pool(img_size=16)
    assert p.unlabeled.images.shape[1:] == (16, 16, 1) and p.spec.img_size == 8
    native = Image.fromarray(pool().labeled.images[0, :, :, 0])
    expected = np.asarray(native.resize((16, 16), Image.Resampling.BILINEAR))
    assert np.array_equal(p.labeled.images[0, :, :, 0], expected)


@pytest.mark.parametrize("ratio", [1, 10, 100, -10, 2.5])
def test_long_tails_are_those_of_usb(ratio: float) -> None:
    utils = pytest.importorskip("semilearn.datasets.utils")
    assert long_tailed(500, 10, ratio) == utils.make_imbalance_data(500, 10, ratio)


def test_long_tailed_pools() -> None:
    p = pool(num_labels=50, lb_imb_ratio=5, ulb_num_labels=80, ulb_imb_ratio=-4, include_lb_to_ulb=False)
    assert np.bincount(p.labeled.labels).tolist() == long_tailed(50, 10, 5)
    assert np.bincount(p.unlabeled.labels).tolist() == long_tailed(80, 10, -4)
    balanced = pool(ulb_num_labels=200)
    assert np.bincount(balanced.unlabeled.labels).tolist() == [24] * 10


def test_images_without_labels_are_always_unlabelled() -> None:
    labels = np.array([0, 1] * 10 + [-1] * 7)
    split = split_training(labels, 2, "d", 0, [2, 2], None, 4)
    assert set(split.rest) >= set(range(20, 27))
    assert sorted([*split.labeled, *split.rest, *split.validation]) == list(range(27))


def test_proportional_labels(tmp_path: Path) -> None:
    for part, sizes in (("train", (20, 10)), ("val", (2, 2))):
        for c, n in enumerate(sizes):
            folder = tmp_path / "imagenet127" / part / f"n{c}"
            folder.mkdir(parents=True)
            for i in range(n):
                Image.fromarray(RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    p = pool(dataset="imagenet127", data_dir=tmp_path, num_labels=15, img_size=8, num_classes=2)
    assert np.bincount(p.labeled.labels).tolist() == [10, 5]


# --- the synthetic share


def test_everything_by_default(sources: list[dict[str, Any]]) -> None:
    p = pool(synthetic=sources)
    assert p.provenance == {"real": 1438, "synthetic": 150, "unknown": 0, "by_generator": {"sd14": 60, "edm": 90}}
    assert p.unlabeled.generators == ("real", "sd14", "edm")
    assert not p.unlabeled.is_synthetic[:1438].any() and p.unlabeled.is_synthetic[1438:].all()
    assert (p.unlabeled.generator[:1438] == 0).all() and not p.unlabeled.is_labeled[40:].any()
    assert len(p.names) == len(p)
    named = dict(zip(p.names, p.unlabeled.generator, strict=True))
    assert {Path(name).suffix: number for name, number in named.items() if number == 1} == {".png": 1}
    assert np.bincount(p.unlabeled.labels[1438:]).tolist() == [15] * 10


def test_synthetic_images_leave_the_real_share_as_it_is(sources: list[dict[str, Any]]) -> None:
    bare, mixed = pool(), pool(synthetic=sources)
    assert rows(mixed.unlabeled)[:1438] == rows(bare.unlabeled) and rows(mixed.labeled) == rows(bare.labeled)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**31), count=st.integers(0, 150), less=st.integers(0, 150))
def test_draws_are_counted_balanced_and_nested(sources: list[dict[str, Any]], seed: int, count: int, less: int) -> None:
    keys = {"seed": seed, "real_count": 60, "synthetic": sources}
    p = pool(**keys, synthetic_count=count)
    drawn = p.unlabeled.take(p.unlabeled.is_synthetic)
    assert len(drawn) == count and len(p) == 60 + count
    for name, size in (("sd14", 60), ("edm", 90)):
        number = p.unlabeled.generators.index(name) if name in p.unlabeled.generators else -1
        own = drawn.labels[drawn.generator == number]
        assert abs(len(own) - count * size / 150) <= 1.5
        assert np.ptp(np.bincount(own, minlength=10)) <= 1
    nested = pool(**keys, synthetic_count=min(count, less))
    assert rows(nested.unlabeled) == rows(p.unlabeled)[: len(nested)]


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ratio=st.floats(0, 0.7), real=st.integers(40, 60))
def test_the_ratio_is_the_share_of_the_unlabelled_pool(sources: list[dict[str, Any]], ratio: float, real: int) -> None:
    p = pool(synthetic=sources, synthetic_ratio=ratio, real_count=real)
    assert p.provenance["real"] == real
    assert abs(p.provenance["synthetic"] - ratio * len(p)) <= 0.51


def test_seeds_draw_others_and_the_order_on_disk_does_not_matter(sources: list[dict[str, Any]], tmp_path: Path) -> None:
    keys = {"synthetic_count": 50, "real_count": 40}
    p, again, other = (pool(**keys, seed=seed, synthetic=sources) for seed in (0, 0, 1))
    assert rows(p.unlabeled) == rows(again.unlabeled)
    assert set(rows(p.unlabeled)[40:]) != set(rows(other.unlabeled)[40:])
    with np.load(sources[1]["source"].removeprefix("npz:")) as stored:
        shuffled = RNG.permutation(90)
        np.savez(
            tmp_path / "edm.npz",
            x=stored["image"][shuffled].transpose(0, 3, 1, 2),
            y=stored["label"][shuffled],
        )
    copy = tmp_path / "sd14"
    for file in sorted(Path(sources[0]["source"].removeprefix("folder:")).rglob("*.png"), reverse=True):
        place = copy / file.parent.name / file.name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(file.read_bytes())
    moved = [{"source": f"folder:{copy}"}, {"source": f"npz:{tmp_path / 'edm.npz'}", "generator": "edm"}]
    elsewhere = pool(**keys, synthetic=moved)
    assert rows(elsewhere.unlabeled) == rows(p.unlabeled)
    assert np.array_equal(elsewhere.unlabeled.labels, p.unlabeled.labels)


def test_counts_of_sources_and_of_generators(sources: list[dict[str, Any]], tmp_path: Path) -> None:
    p = pool(synthetic=[sources[0], {**sources[1], "count": 20}])
    assert p.provenance["by_generator"] == {"sd14": 60, "edm": 20}
    for name in ("adm", "glide", "vqdm"):
        folder = tmp_path / name / "train" / "ai"
        folder.mkdir(parents=True)
        for i in range(10):
            Image.fromarray(RNG.integers(0, 256, (8, 8), dtype=np.uint8)).save(folder / f"{i}.png")
    source = {"source": f"genimage:{tmp_path}", "count": {"adm": 3, "vqdm": 7}}
    p = pool(synthetic=[source])
    assert p.provenance["by_generator"] == {"adm": 3, "vqdm": 7}
    assert (p.unlabeled.labels[p.unlabeled.is_synthetic] == -1).all()
    assert p.manifest()["sources"][1]["by_class"]["unknown"] == 10
    with pytest.raises(UserError, match="generator sdv5: count 1 is asked for, it has 0"):
        pool(synthetic=[{**source, "count": {"sdv5": 1}}])


def test_colour_and_grey_meet_the_data_set(sources: list[dict[str, Any]], tmp_path: Path) -> None:
    assert pool(synthetic=sources).unlabeled.images.shape[-1] == 1
    for part in ("train", "test"):
        for c in "01":
            (tmp_path / part / c).mkdir(parents=True)
            for i in range(4):
                Image.fromarray(RNG.integers(0, 256, (9, 8, 3), dtype=np.uint8)).save(tmp_path / part / c / f"{i}.png")
    mapping = {str(c): None for c in range(2, 10)}
    p = pool(
        dataset="folder",
        data_dir=tmp_path,
        num_labels=4,
        num_classes=2,
        synthetic=[{**sources[0], "mapping": mapping}],
    )
    grey = p.unlabeled.images[p.unlabeled.is_synthetic]
    assert grey.shape == (60, 8, 8, 3) and (grey[..., :1] == grey).all()
    assert Counter(p.unlabeled.labels[p.unlabeled.is_synthetic].tolist()) == {-1: 48, 0: 6, 1: 6}


def test_flow_images_are_made_for_the_pool(tmp_path: Path) -> None:
    source = {"source": "flow", "cache": str(tmp_path), "steps": 3, "sampler_steps": 1, "solver": "euler"}
    p = pool(synthetic=[source], synthetic_count=20, img_size=12)
    assert p.provenance["by_generator"] == {"flow": 20}
    drawn = p.unlabeled.take(p.unlabeled.is_synthetic)
    assert np.bincount(drawn.labels).tolist() == [2] * 10 and drawn.images.shape == (20, 12, 12, 1)
    less = pool(synthetic=[source], synthetic_count=7, seed=5, img_size=12)
    assert rows(less.unlabeled)[-7:] == rows(drawn)[:7]


def test_reencoding_reaches_both_sides(sources: list[dict[str, Any]]) -> None:
    plain, packed = pool(synthetic=sources), pool(synthetic=sources, reencode=30)
    for name in ("labeled", "unlabeled", "test"):
        before, after = getattr(plain, name).images, getattr(packed, name).images
        changed = (before != after).reshape(len(before), -1).any(axis=1)
        assert changed.mean() > 0.95


def test_small_values_are_cleared_on_both_sides(sources: list[dict[str, Any]]) -> None:
    plain, cleared = pool(synthetic=sources), pool(synthetic=sources, clear_below=40)
    for name in ("labeled", "unlabeled", "test"):
        before, after = getattr(plain, name).images, getattr(cleared, name).images
        assert ((before > 0) & (before < 40)).any()
        np.testing.assert_array_equal(after, before * (before >= 40))
    parts = plain.manifest()["parts"], cleared.manifest()["parts"]
    assert all(parts[0][name]["sha256"] != parts[1][name]["sha256"] for name in parts[0])


def test_the_negative_control_is_made_of_spare_real_images() -> None:
    control = {"dataset": "digits", "num_labels": 20, "real_count": 400, "validation_count": 100}
    p = pool(**control, synthetic=[{"source": "reencoded", "quality": 30}], synthetic_count=300)
    assert p.provenance["by_generator"] == {"reencoded": 300}
    real = {image.tobytes() for image in through_jpeg(pool(dataset="digits", num_labels=20).unlabeled.images, 30)}
    pooled = {image.tobytes() for image in through_jpeg(p.unlabeled.images[~p.unlabeled.is_synthetic], 30)}
    drawn = {image.tobytes() for image in p.unlabeled.images[p.unlabeled.is_synthetic]}
    assert drawn <= real and not drawn & pooled
    with pytest.raises(UserError, match="reencoded: all real images are in the pool"):
        pool(dataset="digits", num_labels=20, synthetic=[{"source": "reencoded"}])


# --- the manifest


def test_the_manifest_rebuilds_the_pool(sources: list[dict[str, Any]]) -> None:
    p = pool(synthetic=sources, synthetic_count=33, validation_count=50, seed=3)
    manifest = json.loads(json.dumps(p.manifest()))
    assert manifest["pool"] == p.provenance and manifest["seed"] == 3
    assert manifest["sources"][1]["taken"] + manifest["sources"][2]["taken"] == 33
    again = HybridPool.from_config(manifest["config"]).manifest()
    assert again["parts"] == manifest["parts"]
    other = HybridPool.from_config({**manifest["config"], "seed": 4}).manifest()
    assert other["parts"]["unlabeled"]["sha256"] != manifest["parts"]["unlabeled"]["sha256"]
    assert other["parts"]["test"] == manifest["parts"]["test"]


def test_the_manifest_keeps_names_of_any_script(tmp_path: Path) -> None:
    folder = tmp_path / "\N{CAT FACE}" / "3"
    folder.mkdir(parents=True)
    Image.fromarray(RNG.integers(0, 256, (8, 8), dtype=np.uint8)).save(folder / "a.png")
    p = pool(synthetic=[{"source": f"folder:{folder.parent}"}])
    (tmp_path / "m.json").write_text(json.dumps(p.manifest()))
    again = HybridPool.from_manifest(tmp_path / "m.json")
    assert again.provenance["by_generator"] == {"\N{CAT FACE}": 1}
    (tmp_path / "m.json").write_text("{")
    with pytest.raises(UserError, match=r"m\.json: not valid JSON"):
        HybridPool.from_manifest(tmp_path / "m.json")


def test_a_generator_is_called_after_its_folder_or_file(sources: list[dict[str, Any]], tmp_path: Path) -> None:
    for name in ("sd-1.4", "sd-1.5"):
        shutil.copytree(sources[0]["source"].removeprefix("folder:"), tmp_path / name)
    own = [{"source": f"folder:{tmp_path / name}"} for name in ("sd-1.4", "sd-1.5")]
    p = pool(synthetic=[*own, {"source": sources[1]["source"]}])
    assert p.provenance["by_generator"] == {"sd-1.4": 60, "sd-1.5": 60, "edm": 90}


def test_from_yaml(tmp_path: Path, sources: list[dict[str, Any]]) -> None:
    keys = {
        "dataset": "digits",
        "num_labels": 40,
        "ulb_num_labels": "None",
        "synthetic": sources,
        "algorithm": "rsmatch",
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(keys))
    assert len(HybridPool.from_config(tmp_path / "c.yaml")) == 1588
    for text, message in (("a: [", "not valid YAML"), ("- 1", "keys and values"), ("", "keys and values")):
        (tmp_path / "c.yaml").write_text(text)
        with pytest.raises(UserError, match=rf"c\.yaml: .*{message}"):
            HybridPool.from_config(str(tmp_path / "c.yaml"))
    with pytest.raises(UserError, match=r"gone.yaml: No such file"):
        HybridPool.from_config(tmp_path / "gone.yaml")


def test_fashionmnist_pool() -> None:
    if not Path("/usr/share/datasets/fashion-mnist").is_dir():
        pytest.skip("the Debian package dataset-fashion-mnist is not installed")
    p = pool(dataset="fashionmnist", data_dir="nowhere", real_count=2000, validation_count=500)
    assert p.unlabeled.images.shape == (2000, 28, 28, 1) and len(p.test) == 10000
    assert p.validation is not None and np.bincount(p.validation.labels).tolist() == [50] * 10


def test_image_sets_say_what_is_wrong_with_them() -> None:
    good = pool().labeled
    with pytest.raises(ValueError, match="images must be uint8"):
        ImageSet(
            good.images.astype(float),
            good.labels,
            good.provenance,
            good.generator,
            ("real",),
            good.is_labeled,
        )
    with pytest.raises(ValueError, match="labels must be int64"):
        ImageSet(good.images, good.labels[:3], good.provenance, good.generator, ("real",), good.is_labeled)
    with pytest.raises(ValueError, match="must start with"):
        ImageSet(good.images, good.labels, good.provenance, good.generator, ("sd",), good.is_labeled)
