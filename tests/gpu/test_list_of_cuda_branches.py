"""docs/gpu.md lists every module that takes another path on CUDA, and the tests it names exist; needs no GPU."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BRANCH = re.compile(r"is_cuda|torch\.cuda\.\w+\(|[!=]= \"(cuda|cpu)\"")


def test_every_module_with_a_cuda_branch_is_listed() -> None:
    package = ROOT / "usb_rsmatch"
    branches = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if BRANCH.search(path.read_text(encoding="utf-8"))
    }
    listed = set(re.findall(r"^\| `([\w/]+\.py)` \|", (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8"), re.M))
    assert listed == branches


def test_the_named_tests_exist() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8"))
    assert len(named) >= 9
    for path, name in named:
        assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), f"{path}::{name}"
