"""Source `flow`: synthetic images of a small flow model, trained on the real training images when needed."""

from __future__ import annotations

from dataclasses import fields

from usb_rsmatch.data.sources.registry import SourceRequest
from usb_rsmatch.data.sources.source import ArraySource, Source
from usb_rsmatch.errors import UserError


def open_flow(argument: str, request: SourceRequest) -> Source:
    """`flow`: as many images as the pool requests, generated once and cached with their model.

    Options: `cache`, their folder (default: the user's cache), `seed` of the generator (default: 0, not the run's
    seed, so that all runs of a grid share its images) and the fields of `FlowSettings`. Raises UserError if no count
    is given.
    """
    from usb_rsmatch.synthesis.flow import FlowSettings, make_images  # imported late, because it imports torch

    known = [field.name for field in fields(FlowSettings)]
    if argument:
        raise UserError(
            f"flow:{argument}: takes nothing after the colon; give the cache folder as the option `cache: {argument}`"
        )
    request.reject_options("flow", "cache", "seed", *known)
    if request.count is None or request.real is None:
        raise UserError("flow: give the number of images, by the source's `count`, synthetic_count or synthetic_ratio")
    images, labels = request.real()
    options = {name: value for name, value in request.options.items() if name in known}
    try:
        settings = FlowSettings.recommended(images.shape[1], **options)
        seed = int(request.options.get("seed", 0))
    except (TypeError, ValueError) as error:
        raise UserError(f"flow: a setting has the wrong type ({error})") from None
    generated, classes = make_images(
        images,
        labels,
        len(request.classes.classes),
        request.count,
        settings,
        seed,
        request.options.get("cache"),
    )
    return ArraySource("flow", generated, classes, (request.generator,), in_order=True)
