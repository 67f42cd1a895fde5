"""The interface of an engine: settings that identify its images, and a function from plan items to images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from usb_rsmatch.synthesis.plan import PlannedImage


@dataclass(frozen=True)
class GeneratedImage:
    """A generated image uint8 [H, W, C] and the further fields of its line in `metadata.jsonl`.

    `flagged` images were detected by the pipeline's safety checker, which replaces them by black ones. They are listed
    in `flagged.jsonl`, and are not part of the output.
    """

    image: np.ndarray
    metadata: Mapping[str, Any] = field(default_factory=dict)
    flagged: bool = False


class Engine(Protocol):
    """Generates images. `generator` is its name in pools; `settings` are all values that determine the images'
    bytes.
    """

    generator: str
    settings: Mapping[str, Any]

    def prepare(self) -> None:
        """Prepare the generator, such as by training it; called once, and only if images are missing."""

    def make(self, items: Sequence[PlannedImage]) -> list[GeneratedImage]:
        """Generate the images of one batch of the plan."""

    def attempt(self, items: Sequence[PlannedImage]) -> None:
        """Generate a batch of this size and discard it, to test whether the memory is sufficient."""

    def texts(self) -> Mapping[str, str]:
        """The contents of further files of the run by file name, such as its prompts."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the memory of the GPU or of the machine was exhausted."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    words = ("out of memory", "can't allocate memory", "not enough memory", "cannot allocate memory", "std::bad_alloc")
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)
