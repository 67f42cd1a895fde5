"""The engine `flow` of `usb-rsmatch synthesize`: trains the small generator on real images, then samples it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np

from usb_rsmatch.cache import cache_folder, file_lock
from usb_rsmatch.errors import UserError
from usb_rsmatch.progress import Progress
from usb_rsmatch.synthesis.engine import GeneratedImage, is_out_of_memory
from usb_rsmatch.synthesis.flow_sampler import Sampler, noise_seed
from usb_rsmatch.synthesis.flow_settings import FlowSettings, pick_device, uses_bf16
from usb_rsmatch.synthesis.flow_training import FlowModel, check_images, model_fingerprint, train_flow
from usb_rsmatch.synthesis.plan import PlannedImage


class FlowEngine:
    """A flow model of real images (uint8 [N, H, W, C], classes int64 [N]), which is trained when it is first needed.

    Its checkpoint in the cache is named by a hash of images and settings. Training that was stopped resumes from it,
    and runs that need the same model share it.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        num_classes: int,
        settings: FlowSettings,
        seed: int,
        batch: int,
        part: str = "train",
        device: str = "auto",
        cache: str | None = None,
    ) -> None:
        check_images(images, labels, num_classes)
        self.images, self.labels, self.num_classes = images, labels, num_classes
        self.flow, self.seed, self.batch, self.cache = settings, seed, batch, cache
        self.device = pick_device(device)
        self.key = model_fingerprint(images, labels, num_classes, settings, seed)
        self.generator = "flow"
        self.settings: Mapping[str, Any] = {
            "model": f"flow-{self.key}",
            "part": part,
            "trained_on_images": len(images),
            "device": self.device.type,
            "dtype": "bfloat16" if uses_bf16(self.device, settings) else "float32",
            **{f"train_{name}": value for name, value in settings.stage("train").items() if name != "bf16"},
            **settings.stage("sample"),
        }
        self._sampler: Sampler | None = None

    def prepare(self) -> None:
        self._sampler = Sampler(self.train(), self.flow, self.seed, self.batch, str(self.device))

    def make(self, items: Sequence[PlannedImage]) -> list[GeneratedImage]:
        if self._sampler is None:
            self.prepare()
        assert self._sampler is not None
        labels, ordinals = (np.array([getattr(item, key) for item in items]) for key in ("label", "ordinal"))
        images = self._sampler(labels, ordinals)
        return [
            GeneratedImage(image, {**self._image_metadata, "seed": noise_seed(self.seed, item.label, item.ordinal)})
            for image, item in zip(images, items, strict=True)
        ]

    def attempt(self, items: Sequence[PlannedImage]) -> None:
        assert self._sampler is not None
        smaller = copy(self._sampler)
        smaller.batch = len(items)
        smaller(np.array([item.label for item in items]), np.array([item.ordinal for item in items]))

    def texts(self) -> Mapping[str, str]:
        return {}

    @property
    def _image_metadata(self) -> dict[str, Any]:
        return {
            "engine": "flow",
            "model": self.settings["model"],
            "revision": self.key,
            "guidance": self.flow.guidance,
            "steps": self.flow.sampler_steps,
            "prompt": None,
        }

    def train(self) -> FlowModel:
        """The trained model, loaded from its checkpoint if that exists."""
        folder = cache_folder(self.cache)
        bar: Progress | None = None

        def report_step(title: str, done: int, total: int) -> None:
            nonlocal bar
            if bar is None:
                bar = Progress(total, title, "step", done - 1)
            bar.update(1)

        try:
            with file_lock(folder / f"flow-{self.key}.lock"):
                checkpoint = Path(folder / f"flow-{self.key}.pt")
                return train_flow(
                    self.images,
                    self.labels,
                    self.num_classes,
                    self.flow,
                    self.seed,
                    report_step,
                    checkpoint,
                    device=str(self.device),
                )
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"the cache {folder} cannot be used ({reason}): give another with --cache DIR") from error
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            half = max(1, self.flow.batch_size // 2)
            raise UserError(
                f"out of memory in training with {self.flow.batch_size} images per step: give --train-batch-size {half}"
            ) from error
        finally:
            if bar is not None:
                bar.close()
