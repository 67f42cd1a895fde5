"""Image formats, modes and orientations are decoded correctly, and an unreadable file is named in the error."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from usb_rsmatch.data.images.decode import MAX_PIXELS, MIN_SIDE, fit, fit_array, image_suffixes, quiet_bombs, read_image
from usb_rsmatch.errors import UserError

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (12, 16, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (12, 16), dtype=np.uint8)


def saved(path: Path, pixels: np.ndarray | Image.Image, **options: object) -> Path:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm", "webp", "tga"])
def test_lossless_formats_keep_every_pixel(tmp_path: Path, suffix: str) -> None:
    path = saved(tmp_path / f"a.{suffix}", COLOUR, **({"lossless": True} if suffix == "webp" else {}))
    assert np.array_equal(np.asarray(read_image(path)), COLOUR)
    assert f".{suffix}" in image_suffixes()


def test_grey_stays_grey_and_becomes_colour_by_repetition(tmp_path: Path) -> None:
    image = read_image(saved(tmp_path / "a.png", GREY))
    assert image.mode == "L"
    square = GREY[:, 2:14]
    assert np.array_equal(fit(image, 12, 1)[..., 0], square)
    assert np.array_equal(fit(image, 12, 3), np.repeat(square[..., None], 3, axis=-1))


def test_colour_becomes_grey_by_luma(tmp_path: Path) -> None:
    grey = fit(read_image(saved(tmp_path / "a.png", COLOUR)), 12, 1)[..., 0].astype(float)
    luma = COLOUR[:, 2:14] @ np.array([0.299, 0.587, 0.114])
    assert np.abs(grey - luma).max() <= 0.51


def test_sixteen_bit_images_are_scaled_not_clipped(tmp_path: Path) -> None:
    deep = (GREY.astype(np.uint16) * 257)[:4, :4]
    deep[0, 0] = 65535
    expected = np.rint(deep / 257).astype(np.uint8)
    for suffix in ("png", "tif"):
        assert np.array_equal(np.asarray(read_image(saved(tmp_path / f"a.{suffix}", deep))), expected)


@pytest.mark.parametrize(
    "values",
    [
        np.linspace(0, 4095, 36).astype(np.uint16),  # 12 bits in 16
        np.linspace(0, 100_000, 36).astype(np.int32),
        np.linspace(-5, 65535, 36).astype(np.int32),
        np.linspace(0, 65535, 36).astype(np.float32),
        np.linspace(-1, 1, 36).astype(np.float32),
        np.array([0.5] * 35 + [np.nan], dtype=np.float32),
    ],
)
def test_values_of_an_unknown_range_are_refused(tmp_path: Path, values: np.ndarray) -> None:
    """They would become nearly black, white or half clipped."""
    with pytest.raises(UserError, match="save it with 8 bits"):
        read_image(saved(tmp_path / "a.tif", values.reshape(6, 6)))


def test_float_images_in_0_to_1_or_0_to_255(tmp_path: Path) -> None:
    unit = RNG.random((6, 6)).astype(np.float32)
    expected = np.rint(unit.astype(np.float64) * 255).astype(np.uint8)
    assert np.array_equal(np.asarray(read_image(saved(tmp_path / "a.tif", unit))), expected)
    wide = np.float32(255) * unit + np.float32(1.5)
    expected = np.rint(np.clip(wide.astype(np.float64), 0, 255)).astype(np.uint8)
    assert np.array_equal(np.asarray(read_image(saved(tmp_path / "b.tif", wide))), expected)


def test_palette_bilevel_and_cmyk_images(tmp_path: Path) -> None:
    palette = Image.fromarray(COLOUR).quantize(8)
    assert np.array_equal(
        np.asarray(read_image(saved(tmp_path / "p.png", palette))), np.asarray(palette.convert("RGB"))
    )
    bilevel = GREY > 127
    stored = read_image(saved(tmp_path / "1.png", Image.fromarray(bilevel)))
    assert np.array_equal(np.asarray(stored), bilevel * np.uint8(255))
    cmyk = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    assert np.asarray(read_image(saved(tmp_path / "c.tif", cmyk)))[0, 0].tolist() == [0, 255, 255]


def test_transparent_pixels_become_white(tmp_path: Path) -> None:
    pixels = np.zeros((6, 6, 4), dtype=np.uint8)
    pixels[0] = (10, 20, 30, 255)
    pixels[1] = (0, 0, 0, 128)
    seen = np.asarray(read_image(saved(tmp_path / "a.png", pixels)))
    assert seen[0, 0].tolist() == [10, 20, 30]
    assert abs(int(seen[1, 0, 0]) - 127) <= 1
    assert seen[2, 0].tolist() == [255, 255, 255]
    palette = Image.new("P", (6, 6), 0)
    palette.putpalette([200, 0, 0, 0, 0, 200])
    palette.putpixel((0, 0), 1)
    seen = np.asarray(read_image(saved(tmp_path / "p.png", palette, transparency=0)))
    assert seen[0, 0].tolist() == [0, 0, 200] and seen[1, 1].tolist() == [255, 255, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(tmp_path: Path, orientation: int) -> None:
    turned = {
        1: COLOUR, 2: COLOUR[:, ::-1], 3: COLOUR[::-1, ::-1], 4: COLOUR[::-1],
        5: COLOUR.transpose(1, 0, 2), 6: np.rot90(COLOUR, -1), 7: np.rot90(COLOUR, 2).transpose(1, 0, 2),
        8: np.rot90(COLOUR),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / "a.png", COLOUR, exif=exif)
    assert np.array_equal(np.asarray(read_image(path)), turned)


def test_the_first_frame_of_an_animation_is_read(tmp_path: Path) -> None:
    frames = [Image.new("L", (8, 8), value) for value in (10, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert np.unique(np.asarray(read_image(tmp_path / "a.gif"))).tolist() == [10]


def test_the_format_is_detected_from_the_content_not_the_suffix(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg", COLOUR, format="PNG")
    assert np.array_equal(np.asarray(read_image(path)), COLOUR)


def test_resizing_equals_pillows_antialiased_bilinear_on_the_centre_square() -> None:
    square = Image.fromarray(COLOUR[:, 2:14])
    expected = np.asarray(square.resize((5, 5), Image.Resampling.BILINEAR))
    assert np.array_equal(fit(Image.fromarray(COLOUR), 5, 3), expected)


def test_arrays_are_resized_like_files(tmp_path: Path) -> None:
    images = RNG.integers(0, 256, (3, 10, 14, 3), dtype=np.uint8)
    files = [read_image(saved(tmp_path / f"{i}.png", image)) for i, image in enumerate(images)]
    for channels in (1, 3):
        assert np.array_equal(fit_array(images, 7, channels), np.stack([fit(file, 7, channels) for file in files]))
    square = images[:, :, :10]
    assert np.array_equal(fit_array(square, 10, 3), square)


def test_a_truncated_file_is_named_in_the_error(tmp_path: Path) -> None:
    for suffix in ("png", "jpg", "bmp"):
        path = saved(tmp_path / f"whole one.{suffix}", np.tile(COLOUR, (8, 8, 1)))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(UserError, match=rf"whole one\.{suffix}: cannot be read"):
            read_image(path)


@pytest.mark.parametrize("content", [b"", b"no image at all", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"])
def test_a_file_that_is_not_an_image_is_named_in_the_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "é.png"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"é\.png: cannot be read .*on_error: skip"):
        read_image(path)


def test_a_broken_link_is_named_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(UserError, match=r"link\.png: cannot be read \(No such file"):
        read_image(tmp_path / "link.png")


@pytest.mark.parametrize("side", [10_000, 100_000])
def test_decompression_bombs_are_rejected_before_decoding(tmp_path: Path, side: int) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    assert side * side > MAX_PIXELS
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    path = tmp_path / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")))
    with quiet_bombs(), pytest.raises(UserError, match=rf"bomb\.png.*more than {MAX_PIXELS} pixels"):
        read_image(path)


def test_an_image_of_one_pixel_is_too_small(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"1 x 1 is too small, the minimum is {MIN_SIDE} pixels per side"):
        read_image(saved(tmp_path / "dot.png", GREY[:1, :1]))
