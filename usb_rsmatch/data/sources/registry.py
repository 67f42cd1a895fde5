"""Registry of image sources for the pool: finds the source named `PREFIX:ARGUMENT`, imports its module on first use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np

from usb_rsmatch.data.sources.class_names import ClassIndex
from usb_rsmatch.data.sources.source import Source
from usb_rsmatch.errors import UserError


@dataclass(frozen=True)
class SourceRequest:
    """The request to a source, in addition to the text after its prefix.

    `generator` is the name for images whose path does not name a generator; `count` is the number of images that the
    pool wants, None for all; `options` are further keys of the entry; `layouts` the user's own layouts;
    `real` returns the real training images, uint8 [N, H, W, C] at the pool's size, and their labels [N]; `spare`
    returns those of them that are in no part of the pool. With `any_provenance` a layout's folders of real images are
    read as well as those of synthetic ones.
    """

    classes: ClassIndex
    generator: str
    count: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    layouts: Mapping[str, Any] = field(default_factory=dict)
    real: Callable[[], tuple[np.ndarray, np.ndarray]] | None = None
    spare: Callable[[], tuple[np.ndarray, np.ndarray]] | None = None
    any_provenance: bool = False

    def reject_options(self, origin: str, *known: str) -> None:
        """Raise UserError for an option that the source does not know."""
        for name in self.options:
            if name not in known:
                raise UserError(f"{origin}: unknown key {name!r}; known: {', '.join(sorted(known)) or 'none'}")


Opener = Callable[[str, SourceRequest], Source]

_SOURCES = "usb_rsmatch.data.sources"
_SYNTHESIS = "usb_rsmatch.synthesis"
# An opener, or "module:function", which is imported when the prefix is first used.
_OPENERS: dict[str, Opener | str] = {
    "folder": f"{_SOURCES}.folder:open_folder",
    "flat": f"{_SOURCES}.folder:open_flat",
    "cifake": f"{_SOURCES}.folder:open_cifake",
    "genimage": f"{_SOURCES}.folder:open_genimage",
    "cnndetection": f"{_SOURCES}.folder:open_cnndetection",
    "npz": f"{_SOURCES}.npz:open_npz",
    "hf": f"{_SOURCES}.huggingface:open_hf",
    "photos": f"{_SOURCES}.photos:open_generated_photos",
    "reencoded": f"{_SOURCES}.reencoded:open_reencoded",
    "flow": f"{_SYNTHESIS}.flow_source:open_flow",
    "vae": f"{_SYNTHESIS}.vae_gan_source:open_vae",
    "gan": f"{_SYNTHESIS}.vae_gan_source:open_gan",
}


def imported(target: Any) -> Any:
    """Import the object that "module:attribute" names; any other value is returned unchanged."""
    if not isinstance(target, str):
        return target
    module, _, name = target.partition(":")
    return getattr(import_module(module), name)


def register_source(prefix: str, opener: Opener) -> None:
    """Make `prefix:ARGUMENT` a source: `opener(argument, request)` returns it. The same opener may be given again.

    Raises ValueError if the prefix already belongs to another function.
    """
    if imported(_OPENERS.setdefault(prefix, opener)) is not opener:
        raise ValueError(f"the source prefix {prefix!r} is taken by {imported(_OPENERS[prefix]).__qualname__}")


def open_source(text: str, request: SourceRequest) -> Source:
    """The source that `PREFIX:ARGUMENT` names.

    Raises UserError for an unknown prefix and for problems that the source finds.
    """
    prefix, _, argument = text.partition(":")
    own: Mapping[str, Opener] = {}
    if request.layouts:
        own = import_module(f"{_SOURCES}.folder").openers(request.layouts)
    taken = sorted(own.keys() & _OPENERS.keys())
    if taken:
        raise UserError(f"layouts: the name {taken[0]!r} is taken; give your layout another one")
    known = {**_OPENERS, **own}
    if prefix not in known:
        raise UserError(f"unknown source {text!r}: it must start with one of {', '.join(sorted(known))}")
    source = imported(known[prefix])(argument, request)
    if len(source) == 0:
        raise UserError(f"{text}: contains no images; check the path")
    source.notes += request.classes.notes
    return source
