"""The engine `diffusers` of `usb-rsmatch synthesize`: any text-to-image pipeline that the package diffusers loads."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from usb_rsmatch.counter_rng import derive
from usb_rsmatch.data.images.decode import fit
from usb_rsmatch.device import has_bfloat16
from usb_rsmatch.errors import UserError
from usb_rsmatch.synthesis.engine import GeneratedImage, is_out_of_memory
from usb_rsmatch.synthesis.flow_settings import pick_device
from usb_rsmatch.synthesis.hub import (
    error_summary,
    file_fingerprint,
    missing_extra,
    model_name,
    model_not_found,
    model_too_large,
    quiet,
)
from usb_rsmatch.synthesis.plan import PlannedImage
from usb_rsmatch.synthesis.prompts import Prompts, prompt_of, prompts_digest


@dataclass(frozen=True)
class Preset:
    """A published model with its authors' settings. `unets` maps a number of steps to a file "repository:file"."""

    model: str
    steps: int
    guidance: float
    unets: Mapping[int, str] = field(default_factory=dict)
    scheduler: str | None = None  # None: the scheduler of the model
    scheduler_options: Mapping[str, Any] = field(default_factory=dict)


PRESETS: Mapping[str, Preset] = {
    # Rombach et al. 2112.10752; steps and guidance of the model card, with its PNDM scheduler.
    "sd14": Preset("CompVis/stable-diffusion-v1-4", steps=50, guidance=7.5),
    # Lin et al. 2402.13929; from the model card: one UNet per number of steps, Euler with trailing timesteps, no
    # guidance.
    "sdxl-lightning": Preset(
        "stabilityai/stable-diffusion-xl-base-1.0",
        steps=4,
        guidance=0.0,
        unets={n: f"ByteDance/SDXL-Lightning:sdxl_lightning_{n}step_unet.safetensors" for n in (2, 4, 8)},
        scheduler="EulerDiscreteScheduler",
        scheduler_options={"timestep_spacing": "trailing"},
    ),
}


@dataclass(frozen=True)
class DiffusionSettings:
    """The user's settings; None means the preset's value, or without a preset the pipeline's own."""

    preset: str | None = None
    model: str | None = None
    revision: str | None = None
    unet: str | None = None
    steps: int | None = None
    guidance: float | None = None
    resolution: int | None = None
    negative_prompt: str | None = None
    device: str = "auto"
    dtype: str = "auto"


class DiffusionEngine:
    """A pipeline and its prompts. Images are `size` x `size` with `channels`, or not resized if `size` is None.

    The noise of the n-th image of a class comes from a random generator that is seeded by (seed, class, n), always on
    the CPU. A pipeline's safety checker stays on.
    Raises UserError if packages or models are missing, and for settings that the pipeline does not support.
    """

    def __init__(
        self, requested: DiffusionSettings, prompts: Prompts, size: int | None, channels: int, seed: int
    ) -> None:
        try:
            import diffusers
        except ImportError as error:
            raise missing_extra("--engine diffusers", error) from None
        preset = PRESETS[requested.preset] if requested.preset else None
        name = requested.model or (preset.model if preset else None)
        if name is None:
            raise UserError(f"--engine diffusers needs --preset ({', '.join(PRESETS)}) or --model NAME or FOLDER")
        self.prompts, self.size, self.channels, self.seed = prompts, size, channels, seed
        self.device = pick_device(requested.device)
        self.dtype = _dtype(requested.dtype, self.device)
        short_name = model_name(name)
        self.generator = requested.preset or short_name.rpartition("/")[2]
        steps = requested.steps or (preset.steps if preset else None)
        unet = requested.unet or (_unet_of(preset, steps) if preset and preset.unets else None)
        with quiet():
            folder, revision = _pipeline_folder(diffusers, name, requested, self.dtype, with_unet=unet is None)
            self.pipeline, unet_revision = _load(diffusers, folder, name, unet, self.dtype, self.device)
            if preset and preset.scheduler:
                scheduler = getattr(diffusers, preset.scheduler)
                self.pipeline.scheduler = scheduler.from_config(
                    self.pipeline.scheduler.config, **preset.scheduler_options
                )
        self.pipeline.set_progress_bar_config(disable=True)
        self._parameters = inspect.signature(self.pipeline.__call__).parameters
        self._check(name)
        self.call: dict[str, Any] = {
            "num_inference_steps": self._value("--steps", "num_inference_steps", steps, requested.steps),
            "guidance_scale": self._value(
                "--guidance", "guidance_scale", requested.guidance, preset.guidance if preset else None
            ),
            "negative_prompt": self._value("--negative-prompt", "negative_prompt", requested.negative_prompt),
            "height": self._value("--resolution", "height", requested.resolution),
            "width": self._value("--resolution", "width", requested.resolution),
        }
        self.settings: Mapping[str, Any] = {
            "model": short_name,
            "revision": revision,
            "unet": unet and model_name(unet),
            "unet_revision": unet_revision,
            "pipeline": type(self.pipeline).__name__,
            "scheduler": type(self.pipeline.scheduler).__name__,
            "steps": self.call["num_inference_steps"],
            "guidance": self.call["guidance_scale"],
            "negative_prompt": requested.negative_prompt,
            "resolution": requested.resolution,
            "safety_checker": getattr(self.pipeline, "safety_checker", None) is not None,
            "watermark": getattr(self.pipeline, "watermark", None) is not None,
            "prompts": prompts_digest(prompts),
            "device": self.device.type,
            "dtype": str(self.dtype).removeprefix("torch."),
        }

    def prepare(self) -> None:
        """No preparation: the pipeline is already loaded."""

    def make(self, items: Sequence[PlannedImage]) -> list[GeneratedImage]:
        prompts = [prompt_of(self.prompts, item.name, item.ordinal) for item in items]
        seeds = [derive(self.seed, "diffusers", item.name, item.ordinal) for item in items]
        call = {key: value for key, value in self.call.items() if value is not None}
        if "negative_prompt" in call:
            call["negative_prompt"] = [call["negative_prompt"]] * len(items)
        with (
            quiet(),
            torch.inference_mode(),
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True),
        ):
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
            try:
                output = self.pipeline(prompt=prompts, generator=generators, output_type="pil", **call)
            except ValueError as error:  # the pipeline's own check of its arguments, such as a side of 33 px
                raise UserError(
                    f"{type(self.pipeline).__name__} does not accept these settings: {error_summary(error)}"
                ) from error
        hits = getattr(output, "nsfw_content_detected", None) or getattr(output, "nsfw_detected", None)
        return [
            GeneratedImage(self._pixels(image), {**self._image_metadata, "prompt": prompt, "seed": seed}, bool(hit))
            for image, prompt, seed, hit in zip(
                output.images, prompts, seeds, hits or [False] * len(items), strict=True
            )
        ]

    def attempt(self, items: Sequence[PlannedImage]) -> None:
        self.make(items)

    def texts(self) -> Mapping[str, str]:
        return {"prompts.json": json.dumps(self.prompts, indent=2, ensure_ascii=False) + "\n"}

    @property
    def _image_metadata(self) -> dict[str, Any]:
        keys = ("model", "revision", "guidance", "steps", "negative_prompt")
        return {"engine": "diffusers", **{key: self.settings[key] for key in keys}}

    def _pixels(self, image: Image.Image) -> np.ndarray:
        if self.size is not None:
            return fit(image, self.size, self.channels)
        return np.atleast_3d(np.asarray(image.convert("L" if self.channels == 1 else "RGB"), dtype=np.uint8))

    def _value(self, flag: str, parameter: str, *values: Any) -> Any:
        """The first given value, else the pipeline's default. Raises UserError for a parameter that the pipeline
        lacks.
        """
        given = next((value for value in values if value is not None), None)
        if parameter not in self._parameters:
            if given is not None:
                raise UserError(f"{flag}: {type(self.pipeline).__name__} has no parameter {parameter}; remove it")
            return None
        default = self._parameters[parameter].default
        return given if given is not None or default is inspect.Parameter.empty else default

    def _check(self, name: str) -> None:
        """Raise UserError unless the pipeline needs only prompts to generate images."""
        required = [
            key
            for key, parameter in self._parameters.items()
            if parameter.default is inspect.Parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
        ]
        if "prompt" not in self._parameters or "generator" not in self._parameters or set(required) - {"prompt"}:
            kind = type(self.pipeline).__name__
            raise UserError(f"{name}: {kind} is not a text-to-image pipeline; give another --model")


def _dtype(name: str, device: torch.device) -> torch.dtype:
    """The data type for computation; "auto" is float16 on a GPU, bfloat16 on a CPU that supports it, else float32."""
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]
    if device.type == "cuda":
        return torch.float16
    return torch.bfloat16 if has_bfloat16(device) else torch.float32


def _unet_of(preset: Preset, steps: int | None) -> str:
    if steps is None or steps not in preset.unets:
        known = ", ".join(map(str, preset.unets))
        raise UserError(
            f"--steps {steps}: the preset has UNets for {known} steps; choose one of these, or give --unet FILE"
        )
    return preset.unets[steps]


def _pipeline_folder(
    diffusers: Any, name: str, requested: DiffusionSettings, dtype: torch.dtype, with_unet: bool
) -> tuple[Path, str]:
    """The pipeline's folder, which is downloaded unless it is local, and its revision."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "model_index.json").is_file():
            raise UserError(f"{name}: has no model_index.json, so it is not a saved pipeline; check the path")
        return folder, file_fingerprint(folder)
    options: dict[str, Any] = (
        {} if with_unet else {"unet": True}
    )  # the pipeline's UNet is not downloaded if another one replaces it
    variants = ["fp16", None] if dtype == torch.float16 else [None]
    for variant in variants:
        try:
            path = diffusers.DiffusionPipeline.download(name, revision=requested.revision, variant=variant, **options)
            return Path(path), Path(path).name
        except Exception as error:  # errors of the hub, of the network, or about the name
            if variant is None:
                raise model_not_found(name, "--model", error) from None
    raise AssertionError("unreachable")


def _load(
    diffusers: Any, folder: Path, name: str, unet: str | None, dtype: torch.dtype, device: torch.device
) -> tuple[Any, str | None]:
    """The pipeline of a folder, with the weights of `unet` if given, and the fingerprint of that file."""
    options: dict[str, Any] = {}
    variant = "fp16" if list(folder.glob("*/*.fp16.safetensors")) and dtype == torch.float16 else None
    revision = None
    if unet is not None:
        file = _unet_file(unet)
        options["unet"], revision = _unet(diffusers, folder, name, file, dtype), file_fingerprint(file)
    try:
        pipeline = diffusers.DiffusionPipeline.from_pretrained(
            str(folder), torch_dtype=dtype, variant=variant, local_files_only=True, **options
        ).to(device)
    except Exception as error:  # three packages raise various errors for missing or damaged files
        if is_out_of_memory(error):
            raise model_too_large(name) from None
        raise UserError(
            f"{name}: is not a complete pipeline ({error_summary(error)}); copy or download it again"
        ) from None
    return pipeline, revision


def _unet_file(unet: str) -> Path:
    """The path of a local file, or of "repository:file" downloaded from the hub."""
    path = Path(unet).expanduser()
    if path.is_file():
        return path
    repository, _, file = unet.partition(":")
    if not file:
        raise UserError(f"--unet {unet}: no such file; check the path, or give REPOSITORY:FILE of the hub")
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, file))
    except Exception as error:  # errors of the hub, of the network, or about the name
        raise model_not_found(unet, "--unet", error) from None


def _unet(diffusers: Any, folder: Path, name: str, file: Path, dtype: torch.dtype) -> Any:
    """A UNet with the configuration of the folder's UNet and the weights of a file."""
    from safetensors.torch import load_file

    try:
        config = folder / "unet" / "config.json"
        if not config.is_file():  # it was not downloaded with the pipeline
            from huggingface_hub import hf_hub_download

            config = Path(hf_hub_download(name, "unet/config.json", revision=folder.name))
        network = diffusers.UNet2DConditionModel.from_config(json.loads(config.read_text(encoding="utf-8")))
        network.load_state_dict(load_file(file))
    except Exception as error:  # a damaged file, one of another network, or not safetensors
        if is_out_of_memory(error):
            raise model_too_large(name) from None
        reason = error_summary(error)
        raise UserError(f"--unet {file}: does not fit the UNet of {name} ({reason}); give another file") from None
    return network.to(dtype)
