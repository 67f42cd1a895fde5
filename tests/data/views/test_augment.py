"""Weak, medium and strong views have the distributions of USB's transforms and depend on image, seed and position."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from semilearn.datasets.augmentation import RandAugment
from semilearn.datasets.augmentation.randaugment import Cutout
from sklearn.datasets import load_digits
from torch import Tensor
from torchvision import transforms

from usb_rsmatch.counter_rng import uniforms
from usb_rsmatch.data.views import randaugment
from usb_rsmatch.data.views.augment import CUTOUT_COLOUR, ViewSpec, medium, normalise, strong, weak
from usb_rsmatch.errors import UserError

VIEWS = (weak, medium, strong)
View = Callable[[Tensor, int, Tensor, int, ViewSpec], Tensor]


def digit_images(size: int = 32) -> Tensor:
    """Real digits as uint8 [1797, 1, size, size]."""
    small = map(Image.fromarray, np.round(load_digits().images * 255 / 16).astype(np.uint8))
    return torch.from_numpy(np.stack([np.asarray(image.resize((size, size))) for image in small]))[:, None]


def colour_images(n: int, height: int, width: int, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    return torch.randint(0, 256, (n, channels, height, width), dtype=torch.uint8, generator=generator)


def coordinates(n: int, size: int) -> Tensor:
    """Images [n, 3, size, size] whose red is the column and green the row, so a view shows where it was cropped."""
    line = torch.arange(size, dtype=torch.uint8)
    picture = torch.stack([line.expand(size, size), line[:, None].expand(size, size), torch.zeros(size, size)])
    return picture.to(torch.uint8).expand(n, -1, -1, -1)


def usb_transform(size: int, padding: int, flip: bool, steps: int) -> transforms.Compose:
    """USB's weak (no steps), medium (1) or strong (3) transform, up to the image."""
    crop = transforms.RandomCrop(size, padding=padding, padding_mode="reflect")
    mirror = [transforms.RandomHorizontalFlip()] if flip else []
    return transforms.Compose([crop, *mirror, *([RandAugment(steps, 5)] if steps else [])])


def seed_globals(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def chi_square(counts: np.ndarray, expected: np.ndarray | float) -> float:
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("flip", [False, True])
def test_all_crops_of_the_padded_image_are_equally_likely(flip: bool) -> None:
    """The reference is torchvision's pad, crop and flip: 81 or 81 x 2 possible views, identified by their pixels."""
    n, size, padding = 32_400, 12, 4
    views = weak(coordinates(n, size), 1, torch.arange(n), 0, ViewSpec(padding, flip))
    reflected = transforms.functional.pad(coordinates(1, size)[0], [padding] * 4, padding_mode="reflect")
    possible: dict[bytes, int] = {}
    for top in range(9):
        for left in range(9):
            crop = transforms.functional.crop(reflected, top, left, size, size)
            possible[crop.numpy().tobytes()] = len(possible)
            if flip:
                possible[crop.flip(-1).numpy().tobytes()] = len(possible)
    drawn = [possible[view.numpy().tobytes()] for view in views]  # a KeyError means an impossible crop
    counts = np.bincount(drawn, minlength=len(possible))
    assert len(counts) == 81 * (1 + flip)
    assert chi_square(counts, n / len(counts)) < len(counts) + 5 * np.sqrt(2 * len(counts))


def test_a_weak_view_without_padding_and_flip_is_the_image() -> None:
    images = colour_images(20, 9, 11)
    assert torch.equal(weak(images, 0, torch.arange(20), 0, ViewSpec(0, False)), images)


def test_padding_as_large_as_the_image_is_a_user_error() -> None:
    with pytest.raises(UserError, match="crop_ratio"):
        weak(colour_images(2, 8, 12), 0, torch.arange(2), 0, ViewSpec(8, True))


@pytest.mark.parametrize("view, steps", [(medium, 1), (strong, 3)])
def test_strong_views_equal_usbs_operations_and_cutout_on_the_weak_view(view: View, steps: int) -> None:
    """Every image is recomputed with USB's functions and the same random numbers; all pixels are equal."""
    n, spec = 60, ViewSpec(4, True)
    images, positions = colour_images(n, 28, 36), torch.arange(n) * 7
    draws = uniforms(3, positions, 2, 6 + 2 * steps).double().numpy()
    op = (draws[:, 6::2] * 14).astype(np.int64)
    low, high = np.array(list(randaugment.RANGES.values())).T
    base = randaugment.apply(weak(images, 3, positions, 2, spec), op, low[op] + (high - low)[op] * draws[:, 7::2])
    views = view(images, 3, positions, 2, spec)
    for image, result, (size, x, y) in zip(base, views, draws[:, 3:6], strict=True):
        places = iter([36 + (1 - 36) * x, 28 + (1 - 28) * y])
        with pytest.MonkeyPatch.context() as patch:  # replaces the draws of numpy.random.uniform(width)
            patch.setattr(np.random, "uniform", lambda _, places=places: next(places))
            expected = Cutout(Image.fromarray(image.permute(1, 2, 0).numpy()), size * 0.5)
        assert (np.asarray(expected) == result.permute(1, 2, 0).numpy()).all()


def test_operations_and_magnitudes_have_usbs_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    n, seen, apply = 30_000, [], randaugment.apply

    def recording(images: Tensor, op: np.ndarray, magnitude: np.ndarray) -> Tensor:
        seen.append((op, magnitude))
        return apply(images, op, magnitude)

    monkeypatch.setattr(randaugment, "apply", recording)
    strong(torch.zeros(n, 1, 8, 8, dtype=torch.uint8), 0, torch.arange(n), 0, ViewSpec(0, False))
    [(op, magnitude)] = seen
    assert op.shape == magnitude.shape == (n, 3)
    for first, second in ((0, 1), (0, 2), (1, 2)):  # all ordered pairs, including an operation with itself
        counts = np.bincount(op[:, first] * 14 + op[:, second], minlength=196)
        assert chi_square(counts, n / 196) < 195 + 5 * np.sqrt(2 * 195)
    for k, (low, high) in enumerate(randaugment.RANGES.values()):
        drawn = np.sort((magnitude[op == k] - low) / (high - low))
        assert drawn[0] >= 0 and drawn[-1] < 1
        distance = np.abs(drawn - (np.arange(len(drawn)) + 0.5) / len(drawn)).max()
        assert distance < 2 / np.sqrt(len(drawn))  # Kolmogorov-Smirnov: fails by chance once in 1,500


def cutout_boxes(images: np.ndarray) -> np.ndarray:
    """First and last painted column and row of each image [n, H, W, 3]; -1 where nothing is painted."""
    painted = (images == np.array(CUTOUT_COLOUR)).all(axis=3)
    boxes = []
    for axis in (1, 2):
        line = painted.any(axis=axis)
        first, last = line.argmax(1), line.shape[1] - 1 - line[:, ::-1].argmax(1)
        boxes += [np.where(line.any(1), first, -1), np.where(line.any(1), last, -1)]
    return np.stack(boxes, axis=1)


def test_cutout_has_usbs_distribution_of_position_and_size() -> None:
    n, size = 6000, 20
    black = Image.fromarray(np.zeros((size, size, 3), np.uint8))
    seed_globals(0)
    theirs = cutout_boxes(np.stack([np.asarray(RandAugment(0, 5)(black)) for _ in range(n)]))
    ours_images = medium(torch.zeros(n, 3, size, size, dtype=torch.uint8), 0, torch.arange(n), 0, ViewSpec(0, False))
    ours = cutout_boxes(ours_images.permute(0, 2, 3, 1).numpy())
    for side in range(4):
        bins = [np.bincount(boxes[:, side] + 1, minlength=size + 1) for boxes in (ours, theirs)]
        both = bins[0] + bins[1]
        difference = ((bins[0] - bins[1]) ** 2 / np.maximum(both, 1)).sum()  # chi-square of two samples
        assert difference < (both > 0).sum() + 5 * np.sqrt(2 * (both > 0).sum())


@pytest.mark.parametrize("view, steps", [(weak, 0), (medium, 1), (strong, 3)])
def test_views_of_digits_have_usbs_statistics(view: View, steps: int) -> None:
    """Mean, standard deviation and mean difference of neighbouring pixels of 1,797 views within 4 standard errors."""
    images, size, padding = digit_images(), 32, 4
    views = view(images, 0, torch.arange(len(images)), 0, ViewSpec(padding, True)).expand(-1, 3, -1, -1).numpy()
    seed_globals(0)
    transform = usb_transform(size, padding, True, steps)
    rgb = [Image.fromarray(image[0].numpy()).convert("RGB") for image in images]
    theirs = np.stack([np.asarray(transform(image)) for image in rgb]).transpose(0, 3, 1, 2)
    for statistic in (np.mean, np.std, lambda image: np.abs(np.diff(image.astype(float), axis=-1)).mean()):
        a, b = (np.array([statistic(image) for image in side]) for side in (views, theirs))
        assert abs(a.mean() - b.mean()) < 4 * np.sqrt((a.var() + b.var()) / len(a))


def test_the_mean_of_many_views_equals_usbs_at_every_pixel() -> None:
    """Detects a shift, a wrong border or a misplaced cutout."""
    n, size, padding = 4000, 16, 2
    image = digit_images(size)[3]
    views = strong(image.expand(n, -1, -1, -1), 0, torch.arange(n), 0, ViewSpec(padding, False)).numpy()
    seed_globals(1)
    transform, rgb = usb_transform(size, padding, False, 3), Image.fromarray(image[0].numpy()).convert("RGB")
    theirs = np.stack([np.asarray(transform(rgb)) for _ in range(n)]).transpose(0, 3, 1, 2)
    error = np.sqrt((views.var(axis=0) + theirs.var(axis=0)) / n)
    z = (views.mean(axis=0) - theirs.mean(axis=0)) / error
    assert np.abs(z).max() < 5 and abs(z.std() - 1) < 0.35


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_views_do_not_depend_on_the_batch(data: st.DataObject) -> None:
    """The views of a batch equal those of its parts, bit for bit and in any order; the input does not change."""
    n, channels = data.draw(st.integers(1, 12)), data.draw(st.sampled_from([1, 3]))
    height, width = data.draw(st.integers(8, 24)), data.draw(st.integers(8, 24))
    spec = ViewSpec(data.draw(st.integers(0, 7)), data.draw(st.booleans()))
    seed, cut = data.draw(st.integers(0, 2**31)), data.draw(st.integers(0, 12))
    view = data.draw(st.sampled_from(VIEWS))
    images = colour_images(n, height, width, channels)
    positions = torch.tensor(data.draw(st.lists(st.integers(0, 2**40), min_size=n, max_size=n)))
    before = images.clone()
    whole = view(images, seed, positions, 1, spec)
    assert whole.dtype == torch.uint8 and whole.shape == (n, channels if view is weak else 3, height, width)
    parts = [view(images[part], seed, positions[part], 1, spec) for part in (slice(cut), slice(cut, None))]
    assert torch.equal(torch.cat(parts), whole)
    order = torch.tensor(data.draw(st.permutations(range(n))))
    assert torch.equal(view(images[order], seed, positions[order], 1, spec), whole[order])
    channels_last = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(view(channels_last, seed, positions, 1, spec), whole)
    assert torch.equal(images, before)


@pytest.mark.parametrize("view", VIEWS)
def test_the_view_depends_on_seed_position_and_view_number(view: View) -> None:
    images, positions, spec = digit_images()[:64], torch.arange(64), ViewSpec(4, True)
    first = view(images, 0, positions, 0, spec)
    others = (
        view(images, 1, positions, 0, spec),
        view(images, 0, positions + 64, 0, spec),
        view(images, 0, positions, 1, spec),
    )
    for other in others:
        assert (first != other).flatten(1).any(1).float().mean() > 0.9
    assert torch.equal(first, view(images, 0, positions, 0, spec))


@pytest.mark.parametrize("view", VIEWS)
def test_grey_images_are_treated_as_rgb(view: View) -> None:
    images, positions, spec = digit_images()[:256], torch.arange(256), ViewSpec(4, True)
    as_rgb = view(images.expand(-1, 3, -1, -1), 0, positions, 0, spec)
    assert torch.equal(view(images, 0, positions, 0, spec).expand(-1, 3, -1, -1), as_rgb)


@pytest.mark.parametrize("channels", [1, 3])
def test_normalise_equals_torchvision(channels: int) -> None:
    images, mean, std = colour_images(5, 10, 14, channels), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    to_tensor = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])
    rgb = images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous().numpy()
    expected = torch.stack([to_tensor(Image.fromarray(image)) for image in rgb])
    result = normalise(images, mean, std)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("channels", [1, 3])
def test_views_are_equal_on_a_gpu(view: View, channels: int) -> None:
    images, positions, spec = colour_images(300, 32, 32, channels), torch.arange(300), ViewSpec(4, True)
    on_gpu = view(images.cuda(), 0, positions, 0, spec)
    assert on_gpu.is_cuda and torch.equal(on_gpu.cpu(), view(images, 0, positions, 0, spec))
