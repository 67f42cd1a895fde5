"""Source `flow`: synthetic images of a small flow model, trained on the real training images when needed."""

from __future__ import annotations

from dataclasses import fields

from usb_rsmatch.data.sources.registry import SourceRequest
from usb_rsmatch.data.sources.source import ArraySource, Source
from usb_rsmatch.errors import UserError


def open_flow(argument: str, request: SourceRequest) -> Source:
    """`flow`: as many images as the pool wants, made once and cached with their model.

    Options: `cache`, their cache folder (otherwise the user's), `seed` of the generator (0, not
    the run's: all runs of a grid share its images) and the fields of `FlowSettings`. Raises UserError where
    no count says how many to make.
    """
    from usb_rsmatch.synthesis.flow import FlowSettings, make_images  # late: imports torch

    known = [field.name for field in fields(FlowSettings)]
    if argument:
        raise UserError(
            f"flow:{argument}: takes nothing after the colon; `cache: {argument}` keeps images there"
        )
    request.reject_options("flow", "cache", "seed", *known)
    if request.count is None or request.real is None:
        raise UserError(
            "flow: give the number of images, by the source's `count`, synthetic_count or synthetic_ratio"
        )
    images, labels = request.real()
    options = {name: value for name, value in request.options.items() if name in known}
    try:
        settings = FlowSettings.recommended(images.shape[1], **options)
        seed = int(request.options.get("seed", 0))
    except (TypeError, ValueError) as error:
        raise UserError(f"flow: a setting is of the wrong type ({error})") from None
    made, classes = make_images(
        images,
        labels,
        len(request.classes.classes),
        request.count,
        settings,
        seed,
        request.options.get("cache"),
    )
    return ArraySource("flow", made, classes, (request.generator,), in_order=True)
