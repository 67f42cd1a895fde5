"""What an engine is to the command: settings that name its images, and a function from items to images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from usb_rsmatch.synthesis.plan import Item


@dataclass(frozen=True)
class Made:
    """An image uint8 [H, W, C] and what its line of `metadata.jsonl` says beside file, class and generator.

    `flagged` images were hit by the pipeline's safety checker, which blackens them: they are recorded, not kept.
    """

    image: np.ndarray
    facts: Mapping[str, Any] = field(default_factory=dict)
    flagged: bool = False


class Engine(Protocol):
    """Makes images. `generator` is the name for pools, `settings` all that the bytes depend on, in plain values."""

    generator: str
    settings: Mapping[str, Any]

    def prepare(self) -> None:
        """Whatever takes long before the first image: called once, and only where images are to be made."""

    def make(self, items: Sequence[Item]) -> list[Made]:
        """The images of one batch of the plan."""

    def attempt(self, items: Sequence[Item]) -> None:
        """Make as many images as these as a batch of their own, for whether memory suffices."""

    def texts(self) -> Mapping[str, str]:
        """Further files of the run by name, such as its prompts."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, of the GPU or of the machine, did not suffice."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    words = ("out of memory", "can't allocate memory", "not enough memory", "cannot allocate memory", "std::bad_alloc")
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)
