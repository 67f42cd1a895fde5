"""`dataset: fashionmnist`: Fashion-MNIST from its IDX files."""

from __future__ import annotations

from pathlib import Path

from usb_rsmatch.data.sources.dataset_registry import DataSpec, RealData
from usb_rsmatch.data.sources.idx import find_idx, read_idx
from usb_rsmatch.data.sources.source import ArraySource
from usb_rsmatch.errors import UserError

GARMENTS = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


def open_fashionmnist(data_dir: Path) -> RealData:
    """Fashion-MNIST from its IDX files: torchvision's folders, plain in `data_dir`, or Debian's package."""
    folders = [
        *(data_dir / place / "FashionMNIST" / "raw" for place in (".", "fashionmnist")),
        data_dir / "fashionmnist",
        data_dir,
        Path("/usr/share/datasets/fashion-mnist"),
    ]
    stems = {part: (f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte") for part in ("train", "t10k")}
    if not all(find_idx(folders, stem) for pair in stems.values() for stem in pair):
        from usb_rsmatch.data.sources.torchvision_sets import download

        download("FashionMNIST", data_dir / "fashionmnist", [{"train": True}])
    sources = {}
    for part, pair in stems.items():
        images, labels = (read_idx(_found(find_idx(folders, stem), stem, data_dir)) for stem in pair)
        if images.ndim != 3 or labels.shape != images.shape[:1] or labels.max(initial=0) > 9:
            raise UserError(f"fashionmnist: {pair[0]} and {pair[1]} do not match; copy them again")
        sources[part] = ArraySource("fashionmnist", images[..., None], labels)
    spec = DataSpec("fashionmnist", mean=(0.2860,), std=(0.3530,), flip=True, img_size=28)
    return RealData(spec, GARMENTS, sources["train"], sources["t10k"])


def _found(path: Path | None, stem: str, data_dir: Path) -> Path:
    if path is None:
        raise UserError(f"fashionmnist: {stem}[.gz] is in neither {data_dir} nor its FashionMNIST/raw; copy it there")
    return path
