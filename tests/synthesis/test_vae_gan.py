"""The VAE and the GAN learn the images of each class, are kept, repeat themselves, refuse what they cannot learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from usb_rsmatch.errors import UserError
from usb_rsmatch.synthesis.vae_gan import DecoderSettings, make_decoder_images

Digits = tuple[np.ndarray, np.ndarray]


def class_means(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.stack([images[labels == c].mean(0).reshape(-1) for c in range(10)])


@pytest.mark.parametrize("kind", ["vae", "gan"])
def test_the_images_of_a_class_are_nearest_to_that_class(digits: Digits, tmp_path: Path, kind: str) -> None:
    """Of 200 generated digits most are nearest to the mean image of their own class; of noise 1 in 10 would be."""
    settings = DecoderSettings(kind, steps=250, width=16)
    images, labels = make_decoder_images(*digits, 10, 200, settings, 0, tmp_path)
    means = class_means(*digits)
    distance = ((images.reshape(200, 1, -1).astype(float) - means) ** 2).sum(2)
    assert (distance.argmin(1) == labels).mean() > 0.6
    assert set(np.unique(images)) <= set(np.unique(digits[0]))  # on the levels of the real ones
    assert len(np.unique(images.reshape(200, -1), axis=0)) > 150  # and not a few over and over


@pytest.mark.parametrize("kind", ["vae", "gan"])
def test_kept_repeated_and_continued(digits: Digits, tmp_path: Path, kind: str) -> None:
    settings = DecoderSettings(kind, steps=5, width=8)
    first, _ = make_decoder_images(*digits, 10, 30, settings, 0, tmp_path / "a")
    again, _ = make_decoder_images(*digits, 10, 150, settings, 0, tmp_path / "a")  # from the cache, and more of them
    fresh, labels = make_decoder_images(*digits, 10, 150, settings, 0, tmp_path / "b")
    np.testing.assert_array_equal(again, fresh)
    np.testing.assert_array_equal(again[:30], first)
    assert labels.tolist() == [i % 10 for i in range(150)]
    other, _ = make_decoder_images(*digits, 10, 150, settings, 1, tmp_path / "b")
    assert (other != fresh).any()


def test_odd_sizes_and_colour(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 14, 11, 3), dtype=np.uint8)
    settings = DecoderSettings("vae", steps=2, width=8)
    images, _ = make_decoder_images(noise, np.arange(40) % 4, 4, 10, settings, 0, tmp_path)
    assert images.shape == (10, 14, 11, 3)


def test_refusals(digits: Digits, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="vae or gan"):
        DecoderSettings("diffusion")
    with pytest.raises(UserError, match="steps=0"):
        DecoderSettings("vae", steps=0)
    images, labels = digits
    with pytest.raises(UserError, match="none of"):
        make_decoder_images(images[labels > 0], labels[labels > 0], 10, 5, DecoderSettings("vae"), 0, tmp_path)
    settings = DecoderSettings("vae", steps=1, width=8)
    make_decoder_images(images, labels, 10, 5, settings, 0, tmp_path)
    for store in tmp_path.glob("vae-*.pt"):
        store.write_bytes(store.read_bytes()[:100])
    with pytest.raises(UserError, match="damaged"):
        make_decoder_images(images, labels, 10, 5, settings, 0, tmp_path)
