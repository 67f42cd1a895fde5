"""Loaders: USB's batch keys for every algorithm, reproducible random numbers, and equality of `pil` and `batched`."""

from __future__ import annotations

import inspect
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from semilearn.core.utils import ALGORITHMS
from semilearn.datasets.cv_datasets.datasetbase import BasicDataset

from usb_rsmatch.counter_rng import seeded_globals
from usb_rsmatch.data.pool.pool import HybridPool, ImageSet
from usb_rsmatch.data.sources.dataset_registry import DataSpec
from usb_rsmatch.data.views import batched
from usb_rsmatch.data.views.hybrid_dataset import HybridDataset, PilViews, build_datasets
from usb_rsmatch.data.views.loaders import build_loaders
from usb_rsmatch.data.views.settings import LoaderSettings, describes_pool

NAMES = sorted(name for name in list(ALGORITHMS.keys()) if ALGORITHMS[name].__module__.startswith("semilearn."))
OURS = sorted(name for name in list(ALGORITHMS.keys()) if ALGORITHMS[name].__module__.startswith("usb_rsmatch."))
CPU = torch.device("cpu")
SPEC = DataSpec("toy", mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25), flip=True, img_size=16)


def image_set(n: int, seed: int, channels: int = 3, size: int = 16) -> ImageSet:
    rng = np.random.default_rng(seed)
    synthetic = np.arange(n) >= n // 2
    return ImageSet(
        images=rng.integers(0, 256, (n, size, size, channels), dtype=np.uint8),
        labels=rng.integers(0, 4, n),
        provenance=synthetic.astype(np.int8),
        generator=synthetic.astype(np.int16) * (1 + np.arange(n, dtype=np.int16) % 2),
        generators=("real", "a", "b"),
        is_labeled=np.zeros(n, bool),
    )


def toy_pool(channels: int = 3, spec: DataSpec = SPEC) -> HybridPool:
    sets = {name: image_set(n, n, channels) for name, n in (("labeled", 8), ("unlabeled", 30), ("test", 11))}
    return HybridPool(spec=spec, classes=tuple("abcd"), validation=image_set(5, 5, channels), **sets)


def arguments(**changes: Any) -> LoaderSettings:
    values = dict(algorithm="fixmatch", seed=3, crop_ratio=0.875, batch_size=4, uratio=2, eval_batch_size=4)
    values |= dict(num_train_iter=6, epoch=1, num_workers=0, rs_loader="pil")
    return LoaderSettings.read(Namespace(**{**values, **changes}))


def loaders(pool: HybridPool, steps: range = range(6), **changes: Any) -> dict[str, Any]:
    args = arguments(**changes)
    return build_loaders(build_datasets(pool, args), args, lambda: steps, CPU)


def assert_same(first: Any, second: Any) -> None:
    assert len(first) == len(second) > 0
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            assert torch.equal(one[key], other[key]), key


# keys ---------------------------------------------------------------------------------------------------------------


def usb_keys(name: str, is_ulb: bool, train: bool = True) -> set[str]:
    """The keys that semilearn's own data set returns for the algorithm `name`."""
    views = PilViews(SPEC, 16, 0.875)
    images = np.zeros((2, 16, 16, 3), np.uint8)
    options = {"strong_transform": views.strong} if train else {}
    data = BasicDataset(name, images, [0, 1], 4, transform=views.weak, is_ulb=is_ulb, **options)
    return set(data[0])


@pytest.mark.parametrize("rs_loader", ["pil", "batched"])
@pytest.mark.parametrize("name", NAMES)
def test_batches_have_usbs_keys_for_every_algorithm(name: str, rs_loader: str) -> None:
    made = loaders(toy_pool(), algorithm=name, rs_loader=rs_loader)
    labeled, unlabeled, evaluation = (next(iter(made[key])) for key in ("train_lb", "train_ulb", "eval"))
    extra = {"is_synthetic", "provenance", "generator"}
    assert labeled.keys() == usb_keys(name, is_ulb=False)
    assert unlabeled.keys() == usb_keys(name, is_ulb=True) | extra
    assert evaluation.keys() == usb_keys(name, is_ulb=False, train=False)
    assert not labeled.keys() & unlabeled.keys()
    for batch, size in ((labeled, 4), (unlabeled, 8), (evaluation, 4)):
        for key, value in batch.items():
            expected = (size, 3, 16, 16) if key.startswith("x_") else (size,)
            assert value.shape == expected, key
            assert value.dtype == (torch.float32 if key.startswith("x_") else value.dtype)


@pytest.mark.parametrize("rs_loader", ["pil", "batched"])
@pytest.mark.parametrize("name", OURS)
def test_batches_contain_all_arguments_of_our_train_steps(name: str, rs_loader: str) -> None:
    made = loaders(toy_pool(), algorithm=name, rs_loader=rs_loader)
    available = next(iter(made["train_lb"])).keys() | next(iter(made["train_ulb"])).keys()
    required = inspect.signature(ALGORITHMS[name].train_step).parameters
    assert set(required) - {"self"} <= available


def test_rsmatch_uses_the_views_of_its_base_rule() -> None:
    assert LoaderSettings.read(Namespace(algorithm="rsmatch", rs_base="comatch")).algorithm == "comatch"
    assert LoaderSettings.read(Namespace(algorithm="rsmatch")).algorithm == "fixmatch"
    assert LoaderSettings.read(Namespace(algorithm="mixmatch", rs_base="comatch")).algorithm == "mixmatch"


@pytest.mark.parametrize("rs_loader", ["pil", "batched"])
def test_batches_contain_the_provenance_and_labels_of_their_images(rs_loader: str) -> None:
    pool = toy_pool()
    made = loaders(pool, rs_loader=rs_loader)
    for batch in made["train_ulb"]:
        index = batch["idx_ulb"].numpy()
        np.testing.assert_array_equal(batch["is_synthetic"].numpy(), pool.unlabeled.is_synthetic[index])
        np.testing.assert_array_equal(batch["generator"].numpy(), pool.unlabeled.generator[index])
    for key, images in (("train_lb", pool.labeled), ("eval", pool.test), ("validation", pool.validation)):
        for batch in made[key]:
            np.testing.assert_array_equal(batch["y_lb"].numpy(), images.labels[batch["idx_lb"].numpy()])


def test_a_config_describes_a_pool_by_its_sources_or_its_data_set() -> None:
    assert describes_pool(Namespace(synthetic=[{"source": "flow"}], dataset="stl10"))
    assert describes_pool(Namespace(dataset="digits"))
    assert not describes_pool(Namespace(dataset="yelp_review"))
    assert not describes_pool(Namespace())


# random numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fixmatch", "remixmatch"])
def test_worker_processes_do_not_change_the_batches(name: str) -> None:
    without, with_workers = (loaders(toy_pool(), algorithm=name, num_workers=workers) for workers in (0, 2))
    for key in ("train_lb", "train_ulb"):
        assert_same(list(without[key]), list(with_workers[key]))


@pytest.mark.parametrize("rs_loader", ["pil", "batched"])
def test_batches_depend_only_on_their_step(rs_loader: str) -> None:
    """A resumed run loads only the later steps."""
    whole = loaders(toy_pool(), rs_loader=rs_loader)
    late = loaders(toy_pool(), range(3, 6), rs_loader=rs_loader)
    for key in ("train_lb", "train_ulb"):
        assert_same(list(whole[key])[3:], list(late[key]))
        assert len(whole[key]) == len(late[key]) == 6  # USB reads the length as the steps of an epoch


@pytest.mark.parametrize("kind", ["lb", "ulb"])
def test_items_depend_only_on_their_position(kind: str) -> None:
    data = build_datasets(toy_pool(), arguments(algorithm="remixmatch"))[f"train_{kind}"]
    keys = [(40, 1), (7, 2), (7, 1), (40, 2)]
    forward = {key: data[key] for key in keys}
    torch.manual_seed(99)
    backward = {key: data[key] for key in reversed(keys)}
    for key in keys:
        assert_same(
            [{k: torch.as_tensor(v) for k, v in forward[key].items()}],
            [{k: torch.as_tensor(v) for k, v in backward[key].items()}],
        )
    views = [key for key in forward[(7, 1)] if key.startswith("x_")]
    assert any(not torch.equal(forward[(7, 1)][key], forward[(40, 1)][key]) for key in views)


def test_labelled_and_unlabelled_views_at_the_same_position_differ() -> None:
    pool = toy_pool()
    pool = replace(pool, labeled=pool.unlabeled)
    data = build_datasets(pool, arguments())
    pairs = [(data["train_lb"][(p, 0)]["x_lb"], data["train_ulb"][(p, 0)]["x_ulb_w"]) for p in range(8)]
    assert any(not torch.equal(*pair) for pair in pairs)


def test_the_two_labelled_views_of_defixmatch_are_independent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their crops differ, as in USB, where the two transforms use successive random numbers."""
    monkeypatch.setattr(batched, "STRONG", batched.WEAK)  # two weak views would be equal if they shared random numbers
    batch = next(iter(loaders(toy_pool(), algorithm="defixmatch", rs_loader="batched", batch_size=8)["train_lb"]))
    assert not torch.equal(batch["x_lb"], batch["x_lb_s"])


def test_an_index_without_position_uses_the_global_generators_as_in_usb() -> None:
    data = build_datasets(toy_pool(), arguments())["train_ulb"]
    reference = BasicDataset(
        "fixmatch",
        toy_pool().unlabeled.images,
        toy_pool().unlabeled.labels,
        4,
        transform=data.views.weak,
        is_ulb=True,
        strong_transform=data.views.strong,
    )
    for index in range(5):
        with seeded_globals(0, index, 0):
            ours = data[index]
        with seeded_globals(0, index, 0):
            theirs = reference[index]
        for key in theirs:
            assert torch.equal(torch.as_tensor(ours[key]), torch.as_tensor(theirs[key])), key


def test_grey_images_are_converted_to_rgb() -> None:
    """USB's RandAugment raises an error for mode L."""
    spec = replace(SPEC, mean=(0.5,), std=(0.25,))
    pool = toy_pool(channels=1, spec=spec)
    data = build_datasets(pool, arguments())["train_ulb"]
    grey = data.plain_views(np.array([3]))[0]
    expected = (torch.from_numpy(pool.unlabeled.images[3, ..., 0]) / 255 - 0.5) / 0.25
    for channel in grey:
        torch.testing.assert_close(channel, expected)
    assert data[(0, 3)]["x_ulb_s"].shape == (3, 16, 16)


# the batched loader -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_both_loaders_return_the_same_images_at_every_position(name: str) -> None:
    pil, batched = (loaders(toy_pool(), algorithm=name, rs_loader=kind) for kind in ("pil", "batched"))
    for key in ("train_lb", "train_ulb"):
        for one, other in zip(pil[key], batched[key], strict=True):
            for column in (c for c in one if not c.startswith(("x_", "rot_"))):
                assert torch.equal(one[column], other[column]), column
    assert_same(list(pil["eval"]), list(batched["eval"]))
    assert_same(list(pil["validation"]), list(batched["validation"]))


def test_weak_views_of_both_loaders_have_the_same_distribution() -> None:
    """Both loaders produce the same set of crops and flips, with uniform frequencies."""
    image = np.arange(64, dtype=np.uint8).reshape(8, 8, 1).repeat(3, -1) * 4
    images = image_set(1, 0, size=8)
    images = replace(images, images=image[None])
    pool = replace(toy_pool(), unlabeled=images)
    counts = []
    for kind in ("pil", "batched"):
        args = arguments(rs_loader=kind)
        data = build_datasets(pool, args)
        build_loaders(data, args, lambda: range(6), CPU)
        views = data["train_ulb"].weak_views(np.zeros(3000, np.int64), np.arange(3000), 0)
        found: dict[bytes, int] = {}
        for view in views:
            key = view.numpy().round(3).tobytes()
            found[key] = found.get(key, 0) + 1
        counts.append(found)
    assert counts[0].keys() == counts[1].keys()
    assert len(counts[0]) == 3 * 3 * 2  # one pixel of padding: nine positions, flipped or not
    for found in counts:
        spread = np.array(list(found.values())) - 3000 / 18
        assert (spread**2 / (3000 / 18)).sum() < 41  # 99.9 % of a chi-square with 17 degrees of freedom


def test_batches_of_a_pool_on_disk_equal_those_in_memory(tmp_path: Path) -> None:
    pool = toy_pool()
    parts = {}
    for name in ("labeled", "unlabeled", "test"):
        images = getattr(pool, name)
        np.save(tmp_path / f"{name}.npy", images.images)
        parts[name] = replace(images, images=np.load(tmp_path / f"{name}.npy", mmap_mode="r"))
    on_disk = replace(pool, **parts)
    for kind in ("pil", "batched"):
        first, second = (loaders(p, rs_loader=kind) for p in (pool, on_disk))
        for key in ("train_lb", "train_ulb", "eval"):
            assert_same(list(first[key]), list(second[key]))


def test_loaders_do_not_change_the_global_generators() -> None:
    for kind in ("pil", "batched"):
        made = loaders(toy_pool(), rs_loader=kind)
        torch.manual_seed(0), np.random.seed(0)
        for key in ("train_lb", "train_ulb", "eval"):
            list(made[key])
        drawn = torch.rand(1), np.random.rand()
        torch.manual_seed(0), np.random.seed(0)
        assert drawn == (torch.rand(1), np.random.rand())


def test_plain_views_equal_torchvisions(tmp_path: Path) -> None:
    from torchvision import transforms

    finish = transforms.Compose([transforms.ToTensor(), transforms.Normalize(SPEC.mean, SPEC.std)])
    for kind in ("pil", "batched"):
        args = arguments(rs_loader=kind)
        data = build_datasets(toy_pool(), args)
        build_loaders(data, args, lambda: range(6), CPU)
        assert isinstance(data["eval"], HybridDataset)
        for index, view in enumerate(data["eval"].plain_views(np.arange(5))):
            assert torch.equal(view, finish(Image.fromarray(data["eval"].data[index])))
