"""Settings of the flow model: hyper-parameters of training and sampling, device, data type."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch

from usb_rsmatch.device import choose_device, has_bfloat16
from usb_rsmatch.errors import UserError


def _option(default: Any, stage: str, help: str, later: bool = False) -> Any:
    """A field; `later` ones are left out of `FlowSettings.stage` at their default, so that older models keep their
    keys.
    """
    return field(default=default, metadata={"stage": stage, "help": help, "origin": "ours", "later": later})


@dataclass(frozen=True)
class FlowSettings:
    """Hyper-parameters of the flow model. A field's metadata have its stage ("train" or "sample") and its help text.

    Settings that differ only in "sample" fields share one trained model. The defaults are for images of about 8 px;
    `FlowSettings.recommended` returns settings for larger ones. Raises UserError for values out of range.
    """

    steps: int = _option(1000, "train", "training steps")
    batch_size: int = _option(64, "train", "images per training step")
    width: int = _option(32, "train", "channels on the finest grid")
    lr: float = _option(3e-3, "train", "peak learning rate of AdamW: 5 % warm-up, then linear decay to 0")
    ema: float = _option(0.995, "train", "decay of the averaged weights per step, increased gradually to this value")
    p_uncond: float = _option(0.1, "train", "share of training images whose class is hidden, for guidance")
    early: float = _option(0.2, "train", "share of training after which the 'early' weights are kept")
    bf16: bool | None = _option(None, "train", "compute in bfloat16; None: if the processor supports it")
    depth: int = _option(8, "train", "blocks of the latent flow's transformer", later=True)
    p_no_difficulty: float = _option(
        0.1, "train", "share of training images with a class whose difficulty is hidden", later=True
    )
    guidance: float = _option(
        1.25, "sample", "classifier-free guidance: 1 is none; larger values give cleaner and less diverse images"
    )
    sampler_steps: int = _option(16, "sample", "steps from noise to image")
    solver: str = _option("heun", "sample", "'euler', or 'heun' with two network evaluations per step")
    weights: str = _option("ema", "sample", "'ema', the final averaged weights, or 'early'")

    def __post_init__(self) -> None:
        checks = {
            "steps": self.steps > 0,
            "batch_size": self.batch_size > 0,
            "width": self.width > 0,
            "depth": self.depth > 0,
            "lr": self.lr > 0,
            "ema": 0 <= self.ema < 1,
            "p_uncond": 0 <= self.p_uncond < 1,
            "p_no_difficulty": 0 <= self.p_no_difficulty < 1,
            "early": 0 < self.early <= 1,
            "guidance": self.guidance >= 0,
            "sampler_steps": self.sampler_steps > 0,
            "solver": self.solver in ("euler", "heun"),
            "weights": self.weights in ("ema", "early"),
        }
        for option in fields(self):
            if not checks.get(option.name, True):
                value = getattr(self, option.name)
                raise UserError(f"flow setting {option.name}={value!r} is invalid: {option.metadata['help']}")

    @classmethod
    def recommended(cls, image_size: int, **changes: Any) -> FlowSettings:
        """Settings for images of `image_size` px, with `changes` applied."""
        base = cls() if image_size < 16 else cls(steps=2500, batch_size=128, width=48, ema=0.998)
        return replace(base, **changes)

    @classmethod
    def for_latents(cls, **changes: Any) -> FlowSettings:
        """Settings for a flow in the latents of an autoencoder, with `changes` applied."""
        return replace(cls(steps=8000, batch_size=128, width=256, lr=5e-4, ema=0.999, guidance=1.75), **changes)

    def stage(self, name: str) -> dict[str, Any]:
        """The settings of one stage, "train" or "sample"."""
        options = [option for option in fields(self) if option.metadata["stage"] == name]
        values = {option.name: getattr(self, option.name) for option in options}
        return {o.name: values[o.name] for o in options if not o.metadata["later"] or values[o.name] != o.default}


def pick_device(name: str) -> torch.device:
    """The named device; "auto" is CUDA if available. Raises UserError for "cuda" if no CUDA device is available."""
    return torch.device(choose_device(name))


def uses_bf16(device: torch.device, settings: FlowSettings) -> bool:
    """Whether the network computes in bfloat16."""
    return has_bfloat16(device) if settings.bf16 is None else settings.bf16


def autocast(device: torch.device, settings: FlowSettings) -> torch.autocast:
    """The context for the network's computations; outside of it, computations are in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=uses_bf16(device, settings))
