"""RandAugment's operations on batches equal Pillow's operations on single images, as USB calls them."""

from __future__ import annotations

import platform
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from semilearn.datasets.augmentation import randaugment as usb
from sklearn.datasets import load_digits

from usb_rsmatch.data.views import randaugment

# Pillow blends in float32: with two roundings on x86-64, with one if its compiler fuses multiplication and addition.
BLENDS = ("Brightness", "Contrast", "Color", "Sharpness")
FUSED = platform.machine() not in ("x86_64", "AMD64")


def tolerance(name: str) -> int:
    """The permitted difference from Pillow in grey levels."""
    return int(FUSED and name in BLENDS)


def with_pillow(name: str, image: np.ndarray, magnitude: float) -> np.ndarray:
    """USB's operation on one image, uint8 [H, W, C] to [H, W, 3]; grey images as RGB."""
    rgb = np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3)))
    return np.asarray(getattr(usb, name)(Image.fromarray(rgb), magnitude))


def batched(images: np.ndarray, op: np.ndarray, magnitude: np.ndarray) -> np.ndarray:
    """`randaugment.apply` on uint8 [B, H, W, C]."""
    channels_first = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    return randaugment.apply(channels_first, op, magnitude).permute(0, 2, 3, 1).numpy()


def difference(name: str, images: np.ndarray, magnitude: np.ndarray) -> int:
    """The largest difference in grey levels between Pillow and the batch, over all images."""
    op = np.full((len(images), 1), randaugment.OPS.index(name))
    ours = batched(images, op, magnitude[:, None]).astype(int)
    theirs = [with_pillow(name, image, float(v)) for image, v in zip(images, magnitude, strict=True)]
    return int(np.abs(ours - np.stack(theirs)).max())


def noise(n: int, height: int, width: int, channels: int = 3) -> np.ndarray:
    """Noise of five kinds: full range, low contrast, smooth, constant, and three grey levels."""
    rng = np.random.default_rng(n * height * width)
    images = rng.integers(0, 256, (n, height, width, channels))
    images[1::5] = images[1::5] * 3 // 10 + 60
    images[2::5] = np.cumsum(images[2::5] // 40, axis=2).clip(0, 255)
    images[3::5] = images[3::5, :1, :1]
    images[4::5] = images[4::5] // 86 * 127
    return images.astype(np.uint8)


def digits(n: int, size: int) -> np.ndarray:
    """Real digits, upscaled, grey [n, size, size, 1]."""
    small = map(Image.fromarray, np.round(load_digits().images[:n] * 255 / 16).astype(np.uint8))
    resized = [np.asarray(image.resize((size, size), Image.Resampling.BICUBIC)) for image in small]
    return np.stack(resized)[..., None]


PICTURES: dict[str, Callable[[], np.ndarray]] = {
    "colour noise 32": lambda: noise(150, 32, 32),
    "colour noise 8": lambda: noise(100, 8, 8),
    "colour noise 19 x 40": lambda: noise(100, 19, 40),
    "grey noise 33 x 16": lambda: noise(100, 33, 16, channels=1),
    "digits 8": lambda: digits(100, 8),
    "digits 28": lambda: digits(100, 28),
}


def test_operations_and_ranges_equal_usbs() -> None:
    assert {(f.__name__, float(low), float(high)) for f, low, high in usb.augment_list()} == {
        (name, *limits) for name, limits in randaugment.RANGES.items()
    }
    assert len(randaugment.OPS) == 14


@pytest.mark.parametrize("name", randaugment.OPS)
@pytest.mark.parametrize("pictures", PICTURES)
def test_each_operation_equals_pillow_over_its_range(name: str, pictures: str) -> None:
    images = PICTURES[pictures]()
    low, high = randaugment.RANGES[name]
    magnitude = np.random.default_rng(len(name)).uniform(low, high, len(images))
    magnitude[:3] = low, (low + high) / 2, np.nextafter(high, low)
    if images.shape[3] == 1:  # a grey image keeps one channel, equal to each channel of its RGB copy
        images_rgb = np.repeat(images, 3, axis=3)
        op = np.full((len(images), 1), randaugment.OPS.index(name))
        grey, rgb = (batched(x, op, magnitude[:, None]) for x in (images, images_rgb))
        assert grey.shape[3] == 1 and (grey == rgb).all()
    assert difference(name, images, magnitude) <= tolerance(name)


def test_autocontrast_equals_pillow_for_many_pairs_of_extremes() -> None:
    """Pillow truncates float64 to integers, so an inexact scale changes a level: 2,967 pairs of minimum and maximum."""
    low, high = (ends[:32637:11] for ends in np.triu_indices(256, k=1))
    ramps = np.linspace(low, high, 256).round().astype(np.uint8)
    images = ramps.reshape(16, 16, -1, 3).transpose(2, 0, 1, 3)  # one pair per channel
    assert difference("AutoContrast", images, np.zeros(len(images))) == 0


@pytest.mark.parametrize("name", ["Posterize", "Solarize"])
def test_thresholds_equal_pillow_at_and_next_to_integers(name: str) -> None:
    whole = np.arange(randaugment.RANGES[name][0], randaugment.RANGES[name][1])
    magnitude = np.concatenate([whole, np.nextafter(whole, 300), np.nextafter(whole, 0)[1:]])
    ramp = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(len(magnitude), axis=0)
    assert difference(name, ramp, magnitude) == 0


@pytest.mark.parametrize("name", BLENDS)
def test_blends_equal_pillow_for_every_grey_level(name: str) -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    images = np.concatenate([ramp, ramp.transpose(0, 2, 1, 3), ramp[:, ::-1]], axis=3).repeat(300, axis=0)
    assert difference(name, images, np.linspace(0.05, 0.95, 300)) <= tolerance(name)


@pytest.mark.parametrize("name", ["Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"])
def test_affine_operations_select_the_same_pixels_as_pillow(name: str) -> None:
    """Every pixel has its own colour, so equal images mean equal source pixels, at 1,000 magnitudes.

    The magnitudes are random: for a shift of exactly half a pixel the result depends on rounding in Pillow's sum.
    """
    y, x = np.mgrid[:30, :22]
    picture = np.stack([x + 1, y + 1, (x + y) % 7 + 1], axis=2).astype(np.uint8)
    magnitude = np.random.default_rng(0).uniform(*randaugment.RANGES[name], 1000)
    assert difference(name, picture[None].repeat(1000, axis=0), magnitude) == 0


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_chains_of_operations_on_mixed_batches_equal_pillow(data: st.DataObject) -> None:
    batch, steps = data.draw(st.integers(0, 9)), data.draw(st.integers(1, 4))
    height, width = data.draw(st.integers(8, 40)), data.draw(st.integers(8, 40))
    channels, seed = data.draw(st.sampled_from([1, 3])), data.draw(st.integers(0, 2**20))
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (batch, height, width, channels), dtype=np.uint8)
    op = rng.integers(0, len(randaugment.OPS), (batch, steps))
    low, high = np.array(list(randaugment.RANGES.values())).T
    magnitude = low[op] + (high - low)[op] * rng.random(op.shape)
    ours = batched(images, op, magnitude)
    assert ours.shape == images.shape
    for image, chain, strengths, result in zip(images, op, magnitude, ours, strict=True):
        for k, v in zip(chain, strengths, strict=True):
            image = with_pillow(randaugment.OPS[k], image, float(v))
        # Later operations can enlarge a fused blend's error of one level: chains are compared only if blends are exact.
        assert FUSED or (np.broadcast_to(result, image.shape) == image).all()


def test_the_input_images_do_not_change() -> None:
    images = torch.from_numpy(noise(28, 12, 12).transpose(0, 3, 1, 2).copy())
    before = images.clone()
    randaugment.apply(images, np.arange(28)[:, None] % 14, np.full((28, 1), 0.29))
    assert torch.equal(images, before)
