"""The interface of an engine: settings that identify its images, and a function from plan items to images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from usb_rsmatch.synthesis.plan import Item


@dataclass(frozen=True)
class Made:
    """An image uint8 [H, W, C] and the further fields of its line in `metadata.jsonl`.

    `flagged` images were detected by the pipeline's safety checker, which blackens them: they are recorded, not kept.
    """

    image: np.ndarray
    facts: Mapping[str, Any] = field(default_factory=dict)
    flagged: bool = False


class Engine(Protocol):
    """Makes images. `generator` is the name in pools, `settings` everything that determines the bytes, as plain
    values.
    """

    generator: str
    settings: Mapping[str, Any]

    def prepare(self) -> None:
        """Expensive preparation before the first image; called once, and only if images have to be made."""

    def make(self, items: Sequence[Item]) -> list[Made]:
        """The images of one batch of the plan."""

    def attempt(self, items: Sequence[Item]) -> None:
        """Make a batch of this size, to find out whether there is enough memory."""

    def texts(self) -> Mapping[str, str]:
        """Further files of the run by name, such as its prompts."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the memory of the GPU or of the machine was exhausted."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    words = ("out of memory", "can't allocate memory", "not enough memory", "cannot allocate memory", "std::bad_alloc")
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)
