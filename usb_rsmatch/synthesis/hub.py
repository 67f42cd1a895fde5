"""Finds models on disk or on the Hugging Face hub: their local folder and revision, or a one-line error."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

from usb_rsmatch.errors import UserError

HASHED_BYTES = 1 << 20  # number of bytes that are hashed at a file's beginning and at its end
TEXT_MODEL_FILES = ["*.json", "*.safetensors", "*.model", "*.txt"]


def missing_extra(feature: str, error: ImportError) -> UserError:
    """The error for a missing package of the extra `synthesis`."""
    return UserError(f"{feature} needs packages that are not installed ({error}): pip install 'usb-rsmatch[synthesis]'")


def model_name(name: str) -> str:
    """A model's name in records: its name on the hub, or that of its folder or file."""
    path = Path(name).expanduser()
    return path.resolve().name if path.exists() else name


def text_model_folder(name: str, flag: str) -> tuple[Path, str]:
    """The folder of a text model, which is downloaded unless it is local, and its revision. Raises UserError."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder, file_fingerprint(folder)
    from huggingface_hub import snapshot_download

    with quiet():
        try:
            path = Path(snapshot_download(name, allow_patterns=TEXT_MODEL_FILES))
            if not list(path.glob("*.safetensors")):  # older models have only torch's own files
                snapshot_download(name, revision=path.name, allow_patterns=["pytorch_model*.bin"])
        except Exception as error:  # errors of the hub, of the network, or about the name
            raise model_not_found(name, flag, error) from None
    return path, path.name


def model_not_found(name: str, flag: str, error: BaseException) -> UserError:
    """The error for a model that is neither on disk nor available from the hub."""
    reason = error_summary(error)
    return UserError(
        f"{flag} {name}: is not a local path, not in the Hugging Face cache, and the hub refuses it ({reason}); "
        f"copy the model to this machine and give {flag} its path"
    )


def model_too_large(name: str) -> UserError:
    """The error for a model that does not fit into memory."""
    return UserError(f"{name}: out of memory while loading it: give --dtype bfloat16 or float16, or another --device")


def error_summary(error: BaseException) -> str:
    """The first line of an error's text, at most 100 characters."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text if len(text) <= 100 else f"{text[:97]}..."


def file_fingerprint(path: Path) -> str:
    """A hash (16 hexadecimal digits) of a model on disk: names, sizes, beginnings and ends of its files."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.relative_to(path).as_posix()}\0{size}\0".encode())
        with open(file, "rb") as content:
            digest.update(content.read(HASHED_BYTES))
            content.seek(max(0, size - HASHED_BYTES))
            digest.update(content.read(HASHED_BYTES))
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress log messages of diffusers, transformers and the hub, except errors and the progress of downloads."""
    for package in ("diffusers", "transformers"):
        with contextlib.suppress(ImportError):
            importlib.import_module(f"{package}.utils.logging").disable_progress_bar()
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers", "huggingface_hub", "accelerate")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
