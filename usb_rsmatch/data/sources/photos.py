"""`dataset: photos` and `source: photos:NAME`: small photographs and generated images that come with the package.

`photos.md` beside this file says where they are from.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from usb_rsmatch.data.sources.archives import read_archive
from usb_rsmatch.data.sources.dataset_registry import DataSpec, RealData
from usb_rsmatch.data.sources.registry import SourceRequest
from usb_rsmatch.data.sources.source import FileSource, Source
from usb_rsmatch.errors import UserError

ARCHIVE = Path(__file__).with_name("photos.tar.xz")
CLASSES = ("airplane", "automobile", "cat", "frog")
MEAN, STD = (0.491, 0.476, 0.447), (0.246, 0.245, 0.264)  # of the training photographs


@lru_cache(maxsize=1)
def _parts() -> dict[str, list[tuple[str, bytes]]]:
    """Class and content of each image, by folder: train, test and one for each generator."""
    parts: dict[str, list[tuple[str, bytes]]] = {}
    for place, content in read_archive(str(ARCHIVE)):
        part, label, _ = place.split("/")
        parts.setdefault(part, []).append((label, content))
    return parts


def _files(part: str) -> list[bytes]:
    return [content for _, content in _parts()[part]]


def open_photos(data_dir: Path) -> RealData:
    """Photographs of four classes of CIFAR-10, 32 x 32 colour: 3,200 for training, 2,000 for the test."""
    labels = {part: np.array([CLASSES.index(c) for c, _ in _parts()[part]], dtype=np.int64) for part in _parts()}
    train, test = (FileSource(f"photos, {part}", _files(part), labels[part]) for part in ("train", "test"))
    return RealData(DataSpec("photos", MEAN, STD, flip=True, img_size=32), CLASSES, train, test)


def open_generated_photos(argument: str, request: SourceRequest) -> Source:
    """`photos:latent_flow` and `photos:latent_flow_guided`: 3,200 generated images each of the same classes.

    Raises UserError for another name, and where a class of the data set is unknown to the caller.
    """
    request.reject_options("photos")
    names = sorted(_parts().keys() - {"train", "test"})
    if argument not in names:
        raise UserError(f"photos:{argument}: take {' or '.join(f'photos:{name}' for name in names)}")
    labels = request.classes.of_names([label for label, _ in _parts()[argument]], f"photos:{argument}")
    return FileSource(f"photos:{argument}", _files(argument), labels, (request.generator or argument,))
