"""The audit finds shortcuts that are there, and none where both sides are alike."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from usb_rsmatch.data.pool.pool import HybridPool
from usb_rsmatch.data.pool.shortcuts import file_cues, shortcut_cues, shortcut_warnings
from usb_rsmatch.data.pool.summary import contact_sheet, pool_table

RNG = np.random.default_rng(0)


def test_files_that_make_a_decoder_fail_say_nothing(tmp_path: Path) -> None:
    """A picture of a few bytes that claims 3.6 billion pixels, and one whose remark unfolds to 100 MB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    begin, end = b"\x89PNG\r\n\x1a\n", chunk(b"IEND", b"")
    header = [chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)) for side in (60_000, 8)]
    remark = chunk(b"zTXt", b"k\0\0" + zlib.compress(b"x" * 10**8))
    (tmp_path / "claims.png").write_bytes(begin + header[0] + chunk(b"IDAT", b"") + end)
    (tmp_path / "remark.png").write_bytes(begin + header[1] + remark + chunk(b"IDAT", b"") + end)
    bombs = [str(tmp_path / "claims.png"), str(tmp_path / "remark.png")]
    assert set(file_cues(bombs, bombs).values()) == {None}


def save(folder: Path, n: int, suffix: str, levels: int = 256, size: int = 8, **options: object) -> None:
    for i in range(n):
        place = folder / "ab"[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        pixels = RNG.integers(0, levels, (size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{i}.{suffix}", **options)


def folder_pool(root: Path) -> HybridPool:
    save(root / "test", 4, "png")
    return HybridPool.from_config(
        SimpleNamespace(
            dataset="folder",
            data_dir=root,
            num_labels=2,
            img_size=8,
            synthetic=[{"source": f"folder:{root / 'gan'}"}],
        )
    )


def test_alike_sides_give_nothing_away(tmp_path: Path) -> None:
    save(tmp_path / "train", 300, "png")
    save(tmp_path / "gan", 300, "png")
    cues = shortcut_cues(folder_pool(tmp_path))
    assert set(cues) >= {"grey levels in use", "share of exact zeros", "file size", "file JPEG tables"}
    assert all(value is not None and 0.5 <= value < 0.6 for value in cues.values())
    assert shortcut_warnings(cues) == []


@pytest.mark.parametrize(
    ("real", "synthetic", "cue"),
    [
        ({}, {"levels": 20}, "grey levels in use"),
        ({}, {"levels": 20}, "share of exact zeros"),
        ({}, {"suffix": "jpg"}, "file format"),
        ({"suffix": "jpg", "quality": 90}, {"suffix": "jpg", "quality": 60}, "file JPEG tables"),
        ({}, {"size": 12}, "file image size"),
        ({}, {"size": 12}, "file size"),
    ],
)
def test_shortcuts_are_found(tmp_path: Path, real: dict, synthetic: dict, cue: str) -> None:
    save(tmp_path / "train", 60, **{"suffix": "png", **real})
    save(tmp_path / "gan", 60, **{"suffix": "png", **synthetic})
    cues = shortcut_cues(folder_pool(tmp_path))
    assert cues[cue] is not None and cues[cue] > 0.9
    assert any(line.startswith(cue) for line in shortcut_warnings(cues))


def test_sides_without_files_or_images(tmp_path: Path) -> None:
    keys = {"dataset": "digits", "num_labels": 40}
    assert shortcut_cues(HybridPool.from_config(SimpleNamespace(**keys))) == {}
    np.savez(tmp_path / "noise.npz", x=RNG.integers(0, 256, (50, 8, 8), dtype=np.uint8))
    p = HybridPool.from_config(SimpleNamespace(**keys, synthetic=[{"source": f"npz:{tmp_path / 'noise.npz'}"}]))
    cues = shortcut_cues(p)
    assert cues["file size"] is None and cues["grey levels in use"] == pytest.approx(1.0)


def test_the_table_counts_every_part(tmp_path: Path) -> None:
    np.savez(tmp_path / "noise.npz", x=RNG.integers(0, 256, (50, 8, 8), dtype=np.uint8))
    source = {"source": f"npz:{tmp_path / 'noise.npz'}", "generator": "noise"}
    keys = {"dataset": "digits", "num_labels": 40, "validation_count": 100, "synthetic": [source]}
    p = HybridPool.from_config(keys)
    lines = [line.split() for line in pool_table(p).splitlines()]
    assert lines[0][:4] == ["digits:", "10", "classes,", "8"]
    counted = {line[0]: line[1] for line in lines[2:]}
    assert counted == {
        "labeled": "40",
        "unlabeled": "1388",
        "real": "1338",
        "noise": "50",
        "validation": "100",
        "test": "359",
    }
    assert lines[5][-1] == "50"
    assert len({len(line) for line in pool_table(p).splitlines()[1:]}) == 1


def test_the_sheet_shows_both_sides(tmp_path: Path) -> None:
    np.savez(tmp_path / "white.npz", x=np.full((20, 8, 8), 255, np.uint8), y=np.arange(20) % 10)
    p = HybridPool.from_config(
        SimpleNamespace(dataset="digits", num_labels=40, synthetic=[{"source": f"npz:{tmp_path / 'white.npz'}"}])
    )
    contact_sheet(p, tmp_path / "out" / "sheet.png")
    with Image.open(tmp_path / "out" / "sheet.png") as image:
        assert image.format == "PNG"
        sheet = np.asarray(image)
    left, right = sheet[20:, 110 : 110 + 400], sheet[20:, -400:]
    assert left.min() == 0 and right.min() == 255
    assert len(list((tmp_path / "out").iterdir())) == 1


def test_the_sheet_takes_class_names_of_any_script(tmp_path: Path) -> None:
    p = HybridPool.from_config(SimpleNamespace(dataset="digits", num_labels=40))
    names = ("sky \N{LATIN SMALL LETTER E WITH ACUTE}", "\N{CYRILLIC SMALL LETTER ZHE}", "\udcff")
    contact_sheet(replace(p, classes=(*names, *p.classes[3:])), tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 0
