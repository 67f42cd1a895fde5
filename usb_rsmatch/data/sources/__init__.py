"""Where images come from: one file for each kind of source and for each family of data sets."""

from usb_rsmatch.data.sources.dataset_registry import register_dataset
from usb_rsmatch.data.sources.registry import SourceRequest, register_source
from usb_rsmatch.data.sources.source import ArraySource, FileSource, Source

__all__ = ["ArraySource", "FileSource", "Source", "SourceRequest", "register_dataset", "register_source"]
