"""A trained run in Python: `load_run(folder).predict(images)`, `.synthetic_score(images)`."""

from __future__ import annotations

import os
import sys
import unicodedata
from argparse import Namespace
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from usb_rsmatch.data.images.hashes import array_sha256, digests_sha256
from usb_rsmatch.data.pool.image_set import ImageSet
from usb_rsmatch.data.pool.placeholder import placeholder_from_manifest, placeholder_pool
from usb_rsmatch.data.pool.pool import HybridPool
from usb_rsmatch.data.pool.preprocessing import Pipeline
from usb_rsmatch.data.pool.reading import read_selections
from usb_rsmatch.data.pool.selection import Selection
from usb_rsmatch.data.pool.settings import PoolConfig
from usb_rsmatch.data.sources.dataset_registry import is_known_dataset, open_dataset, open_real
from usb_rsmatch.data.views.augment import normalise
from usb_rsmatch.detection.detector import TRAINED
from usb_rsmatch.device import choose_device
from usb_rsmatch.errors import UserError
from usb_rsmatch.io import parse_json
from usb_rsmatch.usb import checkpoint, config
from usb_rsmatch.usb.config_migration import migrate, refuse_untrusted_plugins
from usb_rsmatch.usb.training import build
from usb_rsmatch.version import __version__

Note = Callable[[str], None]


class Run:
    """The EMA weights of a run, ready to predict.

    `classes` are the names in the order of the logits; `spec` defines the normalisation of images, `pipeline` their
    decoding; `config` is the configuration, `folder` the run folder, `step` the number of steps after which the weights
    were saved, None if unknown. The run's images are only read when `pool` or `test` is accessed: prediction does not
    need them.
    """

    def __init__(self, folder: Path, config: Namespace, algorithm: Any, step: int | None = None) -> None:
        self.folder, self.config, self.algorithm, self.step = folder, config, algorithm, step
        self.model = algorithm.ema_model.eval()
        algorithm.model = self.model  # so that the detector also uses the EMA weights
        placeholder: HybridPool = algorithm.args.pool
        self.classes, self.spec, self.device = placeholder.classes, placeholder.spec, algorithm.args.device
        self.size = int(placeholder.test.images.shape[1])
        self.pipeline = replace(Pipeline.of(PoolConfig.read(config), self.spec), size=self.size)

    @cached_property
    def pool(self) -> HybridPool:
        """The pool that the run trains on; UserError if its images are missing."""
        return HybridPool.from_config(self.config)

    @cached_property
    def test(self) -> ImageSet:
        """The test set of the run's data set, read as the run reads it.

        Raises UserError for missing data, and for data with other classes than the run's.
        """
        config = PoolConfig.read(self.config)
        skip_limit = config.skip_limit if config.on_error == "skip" else None
        try:
            data = open_dataset(config.dataset, config.data_dir, config.num_classes, skip_limit, config.labels)
        except UserError as error:
            if os.path.exists(os.path.expanduser(config.data_dir)):
                raise
            raise UserError(f"{error}; if the run's data has moved, give its folder by --data_dir") from None
        _refuse_other_classes(self.classes, data.classes, config.data_dir)
        all_rows = Selection(config.dataset, data.test, np.arange(len(data.test)))
        return read_selections([all_rows], self.pipeline)[0]

    def test_notes(self) -> list[str]:
        """A line if the test images, or their classes, are not those that the run was evaluated on."""
        before = _manifest(self.folder).get("parts", {}).get("test", {})
        now = {
            "sha256": digests_sha256(self.test.hashed()),
            "labels_sha256": array_sha256(self.test.labels),
        }
        if all(before.get(key, value) == value for key, value in now.items()):
            return []
        return ["the test images are not those of the run's manifest.json, or are decoded differently here"]

    @property
    def has_detector(self) -> bool:
        """Whether the run trained a detector of synthetic images."""
        return hasattr(self.algorithm, "synthetic_logit") and self.algorithm.network.detector is not None

    def _batches(self, images: np.ndarray | Tensor, batch_size: int) -> Iterator[Tensor]:
        """Normalised batches of uint8 images [N, H, W] or [N, H, W, C] of the size that the run was trained on."""
        try:
            array = np.asarray(images)
        except ValueError:
            raise UserError("the images differ in size: the run takes an array of images of one size") from None
        array = array[..., None] if array.ndim == 3 else array
        expected = (self.size, self.size)
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[1:3] != expected or array.shape[3] not in (1, 3):
            raise UserError(
                f"the run takes uint8 images [N, {expected[0]}, {expected[1]}, 1 or 3], not "
                f"{array.dtype} {list(array.shape)}"
            )
        for start in range(0, len(array), batch_size):
            batch = torch.from_numpy(np.ascontiguousarray(array[start : start + batch_size])).permute(0, 3, 1, 2)
            yield normalise(batch.to(self.device), self.spec.mean, self.spec.std)

    @torch.no_grad()
    def logits(self, images: np.ndarray | Tensor, batch_size: int = 512) -> np.ndarray:
        """Class logits float32 [N, K] of uint8 images [N, H, W(, C)]."""
        parts = [self.model(x)["logits"].float().cpu().numpy() for x in self._batches(images, batch_size)]
        return np.concatenate([np.empty((0, len(self.classes)), np.float32), *parts])

    def predict(self, images: np.ndarray | Tensor, batch_size: int = 512) -> np.ndarray:
        """Class probabilities float32 [N, K] of uint8 images [N, H, W(, C)]."""
        return torch.from_numpy(self.logits(images, batch_size)).softmax(1).numpy()

    @torch.no_grad()
    def synthetic_score(self, images: np.ndarray | Tensor, batch_size: int = 512) -> np.ndarray:
        """Probability of synthetic float32 [N] of uint8 images [N, H, W(, C)]; UserError without a detector."""
        if not self.has_detector:
            raise UserError("this run trained no detector: only rsmatch with csqueue, pu or supervised does")
        parts = [self.algorithm.synthetic_probability(x).cpu().numpy() for x in self._batches(images, batch_size)]
        return np.concatenate([np.empty(0, np.float32), *parts])


def load_run(
    path: str | Path,
    device: str | None = None,
    config: str | Path | None = None,
    note: Note = lambda line: print(line, file=sys.stderr),
    trust_plugins: bool = False,
    plugins: Collection[str] = (),
    data_dir: str | Path | None = None,
) -> Run:
    """The run of a folder or of one checkpoint file in it; UserError if it is missing or damaged.

    A checkpoint of USB itself contains no configuration: then `config` is a file or the name of a shipped one.
    `data_dir` replaces the run's own, for data that has moved. Keys of
    a run of another version are migrated; `note` is called with a line on each change. Modules that the run's own
    configuration names as plugins are only imported if `plugins` names them too, or with `trust_plugins`: a run folder
    from elsewhere would otherwise run its author's code. Raises UserError before any of them is imported.
    """
    path = Path(path)
    folder = path.parent if path.is_file() else path
    if not folder.is_dir():
        raise UserError(f"{path}: no such run folder; check the path")
    args = _configuration(folder, path, config, note, trust_plugins, plugins)
    args.device = choose_device(device)
    if data_dir is not None:
        args.data_dir = str(data_dir)
    if path.is_file():
        content: dict[str, Any] | None = checkpoint.read(path)
    else:
        content, damage = checkpoint.read_latest(folder)
        if damage:
            note(f"note: {damage}")
    if content is None:
        raise UserError(f"{folder} has no checkpoint yet: train it first")
    requested = Namespace(**vars(args))
    if args.rs_detector not in TRAINED:  # other detectors have no network
        args.rs_detector = "none"
    args.rs_loader, args.num_workers = "pil", 0
    algorithm = build(args, pool=_placeholder(folder, args), load_weights=False)
    try:
        checkpoint.load_weights(algorithm.ema_model, content["ema_model"])
    except (RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{path}: its weights do not fit its configuration ({reason})") from None
    return Run(folder, requested, algorithm, content.get("it"))


def _configuration(
    folder: Path, path: Path, name: str | Path | None, note: Note, trust_plugins: bool, plugins: Collection[str]
) -> Namespace:
    """The run's resolved configuration: its own `config.yaml`, or the given one for a checkpoint of USB itself."""
    own = folder / "config.yaml"
    if own.exists() and name is not None:
        raise UserError(f"{folder} has its own config.yaml: do not give a configuration")
    if not own.exists() and name is None:
        if path.is_file() or (folder / "latest_model.pth").exists():
            raise UserError(f"{path} is a checkpoint without a configuration: give it by --c CONFIG")
        raise UserError(f"{folder} is not a run folder: it has no config.yaml; check the path")
    if name is not None:
        args, notes = config.resolve(name)
    else:
        config.import_semilearn()
        saved = config.read_yaml(own)
        refuse_untrusted_plugins(saved, own, trust_plugins, plugins)
        kept, notes = migrate(saved)
        made_by = _made_by(folder)
        if notes and made_by != __version__:
            notes.insert(0, f"made by usb_rsmatch {made_by}, read by {__version__}")
        args, more = config.resolve(kept)
        notes += more
    for line in notes:
        note(f"note: {own if name is None else name}: {line}")
    if not is_known_dataset(args.dataset):
        raise UserError(f"{folder} was trained on {args.dataset}, which only USB reads: such a run cannot be loaded")
    return args


def _refuse_other_classes(ours: Sequence[str], theirs: Sequence[str], data_dir: str) -> None:
    """Raise UserError if the data has other classes than the run, whose numbers would then mean something else."""
    ours, theirs = ([unicodedata.normalize("NFC", name) for name in names] for names in (ours, theirs))
    if ours != theirs:
        lost = next((f"{name!r} is missing" for name in ours if name not in theirs), None)
        new = next((f"{name!r} is new" for name in theirs if name not in ours), "their order differs")
        raise UserError(
            f"{data_dir}: its {len(theirs)} classes are not the run's {len(ours)}: {lost or new}; restore the data, or "
            "evaluate a labelled source with --data"
        )


def _made_by(folder: Path) -> str:
    """The version of this package that the run's manifest names."""
    return str(_manifest(folder).get("versions", {}).get("usb_rsmatch", "of an unknown version"))


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        content = parse_json((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _placeholder(folder: Path, args: Namespace) -> HybridPool:
    """A placeholder of the run's data for building the networks, from its manifest or from the data set."""
    placeholder = placeholder_from_manifest(_manifest(folder))
    if placeholder is not None:
        return placeholder
    data = open_real(args.dataset, args.data_dir, args.labels)
    size = int(args.img_size or data.spec.img_size)
    return placeholder_pool(replace(data.spec, img_size=size), data.classes, size, {})
