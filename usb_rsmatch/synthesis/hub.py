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

ENDS = 1 << 20  # bytes of a file's beginning and end that are hashed
WHAT_A_TEXT_MODEL_NEEDS = ["*.json", "*.safetensors", "*.model", "*.txt"]


def missing_extra(what: str, error: ImportError) -> UserError:
    """The error for a missing package of the extra."""
    return UserError(f"{what} needs packages that are not installed ({error}): pip install 'usb-rsmatch[synthesis]'")


def model_name(name: str) -> str:
    """A model's name in records: its name on the hub, or that of its folder or file."""
    path = Path(name).expanduser()
    return path.resolve().name if path.exists() else name


def local_folder(name: str, flag: str) -> tuple[Path, str]:
    """The folder of a text model, downloaded where it is no local one, and its revision. Raises UserError."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder, fingerprint(folder)
    from huggingface_hub import snapshot_download

    with quiet():
        try:
            path = Path(snapshot_download(name, allow_patterns=WHAT_A_TEXT_MODEL_NEEDS))
            if not list(path.glob("*.safetensors")):  # older models only have torch's own files
                snapshot_download(name, revision=path.name, allow_patterns=["pytorch_model*.bin"])
        except Exception as error:  # errors of the hub, of the network, or about the name
            raise not_there(name, flag, error) from None
    return path, path.name


def not_there(name: str, flag: str, error: BaseException) -> UserError:
    """The error for a model that is neither on disk nor available from the hub."""
    reason = shortly(error)
    return UserError(
        f"{flag} {name}: is not a local path, not in the Hugging Face cache, and the hub refuses it ({reason}); "
        f"copy the model to this machine and give {flag} its path"
    )


def too_large(name: str) -> UserError:
    """The error for a model that does not fit into memory."""
    return UserError(f"{name}: out of memory while loading it: give --dtype bfloat16 or float16, or another --device")


def shortly(error: BaseException) -> str:
    """The beginning of an error's text."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text if len(text) <= 100 else f"{text[:97]}..."


def fingerprint(path: Path) -> str:
    """16 hexadecimal digits for a model on disk: names, sizes, beginnings and ends of its files."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    whole = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        whole.update(f"{file.relative_to(path).as_posix()}\0{size}\0".encode())
        with open(file, "rb") as content:
            whole.update(content.read(ENDS))
            content.seek(max(0, size - ENDS))
            whole.update(content.read(ENDS))
    return whole.hexdigest()[:16]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence notes of diffusers, transformers and the hub, except errors and the progress bars of downloads.
    """
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
