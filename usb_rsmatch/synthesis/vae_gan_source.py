"""Sources `vae` and `gan`: synthetic images of a small VAE or GAN, trained on the real training images when needed."""

from __future__ import annotations

from dataclasses import fields

from usb_rsmatch.data.sources.registry import SourceRequest
from usb_rsmatch.data.sources.source import ArraySource, Source
from usb_rsmatch.errors import UserError


def open_vae(argument: str, request: SourceRequest) -> Source:
    """`vae`: see `_open`."""
    return _open("vae", argument, request)


def open_gan(argument: str, request: SourceRequest) -> Source:
    """`gan`: see `_open`."""
    return _open("gan", argument, request)


def _open(kind: str, argument: str, request: SourceRequest) -> Source:
    """As many images as the pool requests, from a decoder that is trained once and cached.

    Options: `cache`, its folder (default: the user's cache), `seed` of the decoder (default: 0, not the run's seed)
    and the fields of `DecoderSettings`. Raises UserError if no count is given.
    """
    from usb_rsmatch.synthesis.vae_gan import (  # imported late, because it imports torch
        DecoderSettings,
        make_decoder_images,
    )

    known = [field.name for field in fields(DecoderSettings) if field.name != "kind"]
    if argument:
        raise UserError(
            f"{kind}:{argument}: takes nothing after the colon; give the cache folder as the option `cache: {argument}`"
        )
    request.reject_options(kind, "cache", "seed", *known)
    if request.count is None or request.real is None:
        raise UserError(
            f"{kind}: give the number of images, by the source's `count`, synthetic_count or synthetic_ratio"
        )
    images, labels = request.real()
    options = {name: value for name, value in request.options.items() if name in known}
    try:
        settings = DecoderSettings(kind, **options)
        seed = int(request.options.get("seed", 0))
    except (TypeError, ValueError) as error:
        raise UserError(f"{kind}: a setting has the wrong type ({error})") from None
    classes = len(request.classes.classes)
    generated, generated_labels = make_decoder_images(
        images, labels, classes, request.count, settings, seed, request.options.get("cache")
    )
    return ArraySource(kind, generated, generated_labels, (request.generator,), in_order=True)
