"""Makes the file of `dataset: photos` from CIFAR-10 in class folders and generated images in class folders.

    python -m benchmarks.photos_subset --real CIFAR --generated NAME=FOLDER ... --out FILE.tar.xz

The first images of each class are taken. Real ones are enlarged to 64 px, reduced to 32 px and saved as JPEG 75, as
the generated ones were: without this a detector finds the resizing, not the synthesis. Generated files are copied.
"""

from __future__ import annotations

import argparse
import io
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from usb_rsmatch.data.images.decode import read_image
from usb_rsmatch.data.images.history import through_history
from usb_rsmatch.io import atomic_write

CLASSES = ("airplane", "automobile", "cat", "frog")
TRAIN, TEST, GENERATED = 800, 500, 800  # images of each class
HISTORY = (("resize", 64),)
QUALITY = 75


def matched(file: Path) -> bytes:
    """A real photograph with the history of the generated images, as the bytes of a JPEG file."""
    pixels = np.asarray(read_image(file))[None]  # uint8 [1, 32, 32, 3]
    data = io.BytesIO()
    Image.fromarray(through_history(pixels, HISTORY)[0]).save(data, "JPEG", quality=QUALITY)
    return data.getvalue()


def first(folder: Path, count: int) -> list[Path]:
    """The first `count` files of a folder by name; an error if there are fewer."""
    files = sorted(folder.glob("*.jpg"))[:count]
    if len(files) < count:
        raise SystemExit(f"{folder}: has {len(files)} images, {count} are needed")
    return files


def members(real: Path, generated: dict[str, Path]) -> list[tuple[str, bytes]]:
    """Path in the archive and content of every image."""
    found = []
    for label in CLASSES:
        for part, count in (("train", TRAIN), ("test", TEST)):
            found += [(f"{part}/{label}/{f.name}", matched(f)) for f in first(real / part / label, count)]
        for name, folder in generated.items():
            found += [(f"{name}/{label}/{f.name}", f.read_bytes()) for f in first(folder / label, GENERATED)]
    return sorted(found)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.photos_subset", description=__doc__.splitlines()[0])
    parser.add_argument("--real", type=Path, required=True, help="CIFAR-10: train/CLASS/*.jpg and test/CLASS/*.jpg")
    parser.add_argument("--generated", action="append", required=True, help="NAME=FOLDER with CLASS/*.jpg")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the archive, a .tar.xz")
    arguments = parser.parse_args(argv)
    generated = {name: Path(folder) for name, _, folder in (text.partition("=") for text in arguments.generated)}
    with atomic_write(arguments.out) as temporary, tarfile.open(temporary, "w:xz", preset=9) as archive:
        for path, content in members(arguments.real, generated):
            entry = tarfile.TarInfo(path)  # without date and owner, so that the same images give the same file
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return 0


if __name__ == "__main__":
    sys.exit(main())
