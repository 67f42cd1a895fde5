"""The order of the packages, written once: imports point downwards only and form no circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# From the top down. A module imports modules of its own row or of rows further down, never of rows above.
LAYERS = (
    ("usb_rsmatch.cli", "usb_rsmatch.__main__"),
    ("usb_rsmatch.compare",),
    ("usb_rsmatch.report", "usb_rsmatch.inference", "usb_rsmatch.synthesis"),
    ("usb_rsmatch.usb",),
    ("usb_rsmatch.algorithms",),
    ("usb_rsmatch.detection",),
    ("usb_rsmatch.data.views",),
    ("usb_rsmatch.data.pool",),
    ("usb_rsmatch.data.sources",),
    ("usb_rsmatch.data.images",),
    (
        "usb_rsmatch.autoencoder",
        "usb_rsmatch.cache",
        "usb_rsmatch.counter_rng",
        "usb_rsmatch.csv_files",
        "usb_rsmatch.device",
        "usb_rsmatch.distributed",
        "usb_rsmatch.keys",
        "usb_rsmatch.progress",
        "usb_rsmatch.rsmatch_settings",
    ),
    ("usb_rsmatch.errors", "usb_rsmatch.io", "usb_rsmatch.version"),
)
# These of one row know nothing of each other.
SEPARATE = ("usb_rsmatch.report", "usb_rsmatch.inference", "usb_rsmatch.synthesis")
# Synthesis makes images: it knows the data, and nothing of training.
NOT_IN_SYNTHESIS = ("usb_rsmatch.usb", "usb_rsmatch.algorithms", "usb_rsmatch.detection")
SEMILEARN = ("usb_rsmatch.usb", "usb_rsmatch.algorithms", "usb_rsmatch.detection.hook", "usb_rsmatch.data.views")


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sorted((ROOT / "usb_rsmatch").rglob("*.py"))}


def imports(path: Path, nodes: Iterator[ast.AST] | None = None) -> set[str]:
    """Modules that a file imports, at its top or later."""
    found: set[str] = set()
    package = module_of(path) if path.name == "__init__.py" else module_of(path).rpartition(".")[0]
    for node in nodes or ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            found |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base for alias in node.names}
    return found


def row(module: str) -> int:
    for number, names in enumerate(LAYERS):
        if any(module == name or module.startswith(f"{name}.") for name in names):
            return number
    raise AssertionError(f"{module} stands in no row of LAYERS")


def inside(module: str, packages: tuple[str, ...]) -> str | None:
    return next((name for name in packages if module == name or module.startswith(f"{name}.")), None)


# The package itself hands public names on, and stands above everything.
FACES = ("usb_rsmatch", "usb_rsmatch.data", "usb_rsmatch.config_data")


@pytest.mark.parametrize("module", [name for name in MODULES if name not in FACES])
def test_imports_point_downwards(module: str) -> None:
    for imported in imports(MODULES[module]) & MODULES.keys():
        if imported == "usb_rsmatch":
            continue
        assert imported not in FACES, f"{module} imports {imported}, which only hands names on"
        assert row(imported) >= row(module), f"{module} imports {imported}, which stands above it"
        room, other = inside(module, SEPARATE), inside(imported, SEPARATE)
        assert other is None or room is None or room == other, f"{module} imports {imported}"
        if inside(module, ("usb_rsmatch.synthesis",)):
            assert not inside(imported, NOT_IN_SYNTHESIS), f"{module} imports {imported}: synthesis knows no training"


def test_no_circle() -> None:
    graph = {name: sorted(imports(path) & MODULES.keys() - {name, *FACES}) for name, path in MODULES.items()}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, "circle: " + " -> ".join([*way[way.index(name) :], name])
        if name in done:
            return
        for other in graph[name]:
            visit(other, (*way, name))
        done.add(name)

    for name in graph:
        visit(name, ())


def test_semilearn_stays_in_its_place() -> None:
    users = {name for name, path in MODULES.items() if any(i.partition(".")[0] == "semilearn" for i in imports(path))}
    assert users, "nothing imports semilearn: the test reads the wrong files"
    assert {name for name in users if not inside(name, SEMILEARN)} == set()


def test_the_package_imports_no_benchmark() -> None:
    for name, path in MODULES.items():
        assert not any(i.partition(".")[0] in ("benchmarks", "tests") for i in imports(path)), name


def test_an_upward_import_is_found(tmp_path: Path) -> None:
    """The reader sees imports at the top, inside functions, of packages and relative ones."""
    for text, wanted in (
        ("import semilearn.nets", "semilearn.nets"),
        ("def f():\n    from usb_rsmatch.usb import training", "usb_rsmatch.usb.training"),
        ("from usb_rsmatch.usb.training import train", "usb_rsmatch.usb.training"),
        ("from .training import train", "usb_rsmatch.usb.training"),
        ("from ..usb import training", "usb_rsmatch.usb.training"),
    ):
        path = ROOT / "usb_rsmatch" / "usb" / "imagined.py"
        assert wanted in imports(path, ast.walk(ast.parse(text))), text
