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
from usb_rsmatch.synthesis.difficulty_request import DifficultyRequest
from usb_rsmatch.synthesis.engine import GeneratedImage, is_out_of_memory
from usb_rsmatch.synthesis.flow_sampler import Sampler, noise_seed
from usb_rsmatch.synthesis.flow_settings import FlowSettings, pick_device, uses_bf16
from usb_rsmatch.synthesis.flow_training import FlowModel, check_images, model_fingerprint, train_flow
from usb_rsmatch.synthesis.latents import LatentSpace
from usb_rsmatch.synthesis.plan import PlannedImage


class FlowEngine:
    """A flow model of real images (uint8 [N, H, W, C], classes int64 [N]), which is trained when it is first needed.

    Its checkpoint in the cache is named by a hash of images and settings. Training that was stopped resumes from it,
    and runs that need the same model share it. With `scores`, the difficulties float [N] of the images (NaN for none),
    the model is also conditioned on them, and `difficulty` says which ones the images are asked for. With `latents`
    the flow works in the latents of an autoencoder.
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
        scores: np.ndarray | None = None,
        difficulty: DifficultyRequest | None = None,
        latents: LatentSpace | None = None,
    ) -> None:
        check_images(images, labels, num_classes, latents is not None)
        self.images, self.labels, self.num_classes = images, labels, num_classes
        self.flow, self.seed, self.batch, self.cache = settings, seed, batch, cache
        self.device = pick_device(device)
        self.scores, self.difficulty, self.latents = scores, difficulty, latents
        self.key = model_fingerprint(images, labels, num_classes, settings, seed, scores, latents)
        self.generator = "flow" if latents is None else "latent_flow"
        self.settings: Mapping[str, Any] = {
            "model": f"flow-{self.key}",
            "part": part,
            "trained_on_images": len(images),
            "device": self.device.type,
            "dtype": "bfloat16" if uses_bf16(self.device, settings) else "float32",
            **{f"train_{name}": value for name, value in settings.stage("train").items() if name != "bf16"},
            **settings.stage("sample"),
            **({} if difficulty is None else {"difficulty": difficulty.text}),
            **({} if latents is None else _latent_settings(latents, settings)),
        }
        self._sampler: Sampler | None = None
        self._scores_of_class: dict[int, np.ndarray] = {}

    def prepare(self) -> None:
        self._sampler = Sampler(self.train(), self.flow, self.seed, self.batch, str(self.device))

    def make(self, items: Sequence[PlannedImage]) -> list[GeneratedImage]:
        if self._sampler is None:
            self.prepare()
        assert self._sampler is not None
        labels, ordinals = (np.array([getattr(item, key) for item in items]) for key in ("label", "ordinal"))
        difficulty = self._difficulty(labels, ordinals)
        images = self._sampler(labels, ordinals, difficulty)
        made = []
        for row, (image, item) in enumerate(zip(images, items, strict=True)):
            asked = {} if difficulty is None else {"difficulty": float(difficulty[row])}
            seed = noise_seed(self.seed, item.label, item.ordinal)
            made.append(GeneratedImage(image, {**self._image_metadata, **asked, "seed": seed}))
        return made

    def attempt(self, items: Sequence[PlannedImage]) -> None:
        assert self._sampler is not None
        smaller = copy(self._sampler)
        smaller.batch = len(items)
        labels, ordinals = (np.array([getattr(item, key) for item in items]) for key in ("label", "ordinal"))
        smaller(labels, ordinals, self._difficulty(labels, ordinals))

    def texts(self) -> Mapping[str, str]:
        return {}

    def _difficulty(self, labels: np.ndarray, ordinals: np.ndarray) -> np.ndarray | None:
        """The difficulties float64 [n] that images are asked for; None without scores."""
        if self.difficulty is None:
            return None
        return self.difficulty.draw(self.seed, labels, ordinals, self._real_scores)

    def _real_scores(self, label: int) -> np.ndarray:
        """The sorted scores of the training images of a class."""
        if label not in self._scores_of_class:
            assert self.scores is not None
            scores = self.scores[self.labels == label]
            self._scores_of_class[label] = np.sort(scores[~np.isnan(scores)])
        return self._scores_of_class[label]

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
                    difficulty=self.scores,
                    latents=self.latents,
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


def _latent_settings(latents: LatentSpace, settings: FlowSettings) -> dict[str, Any]:
    return {
        "autoencoder": latents.autoencoder.name,
        "autoencoder_revision": latents.autoencoder.fingerprint,
        "autoencoder_size": latents.side,
        "train_depth": settings.depth,
    }
