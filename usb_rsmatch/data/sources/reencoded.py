"""Source `reencoded`: real images re-encoded as JPEG, a negative control for detectors of synthetic images.

A detector that separates them from the other real images has learnt a file format, not synthesis.
"""

from __future__ import annotations

from usb_rsmatch.data.images.reencode import through_jpeg
from usb_rsmatch.data.sources.registry import SourceRequest
from usb_rsmatch.data.sources.source import ArraySource, Source
from usb_rsmatch.errors import UserError
from usb_rsmatch.keys import Key, convert

_QUALITY = Key("quality", "int", 75, "JPEG quality", low=1, high=100)


def open_reencoded(argument: str, request: SourceRequest) -> Source:
    """The training images that are in no part of the pool, re-encoded as JPEG with the option `quality` (default 75).

    Use it with `reencode`, so that all images end with the same encoding. Raises UserError if all real images are in
    the pool.
    """
    if argument:
        raise UserError(f"reencoded:{argument}: takes nothing after the colon")
    request.reject_options("reencoded", "quality")
    quality = convert(_QUALITY, request.options.get("quality", _QUALITY.default), "reencoded")
    if request.spare is None or not len((spare := request.spare())[0]):
        raise UserError("reencoded: all real images are in the pool; set real_count, so that some are left")
    images, labels = spare
    return ArraySource("reencoded", through_jpeg(images, quality), labels, (request.generator,))
