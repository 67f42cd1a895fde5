"""Hostile input to whatever reads files: configurations, pools, checkpoints, metadata, result files.

A reader may give a value or raise `UserError` of one line. Anything else, a case of more than `SECONDS`, and a file
outside the case's folder are findings.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import signal
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from usb_rsmatch.errors import UserError

SECONDS = 10.0  # of a case; one takes milliseconds
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(12)
)


class _Hang(BaseException):
    """Raised in a case that takes too long."""


@dataclass
class Findings:
    """How many cases were tried, and what was wrong with which."""

    cases: int = 0
    tracebacks: list[str] = field(default_factory=list)
    hangs: list[str] = field(default_factory=list)
    writes_outside: list[str] = field(default_factory=list)


@contextmanager
def _in_time() -> Iterator[None]:
    def over(number: int, frame: Any) -> None:
        raise _Hang

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# hostile values -----------------------------------------------------------------------------------------------------

NAMES = st.sampled_from(
    [
        "../../evil",
        "/etc/passwd",
        "a/b",
        "..",
        ".",
        "",
        "con",
        "a\x00b",
        "=cmd|' /C calc'!A0",
        "<script>",
        "\udcff",
        "é" * 200,
    ]
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
    NAMES,
    st.integers(-3, 30),
    st.binary(max_size=4),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def damaged(draw: Any, whole: bytes) -> bytes:
    """A file with bytes changed, cut out, repeated or cut off."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        where = draw(st.integers(0, max(len(content) - 1, 0)))
        kind = draw(st.sampled_from(["flip", "cut", "insert", "end"]))
        if kind == "flip" and content:
            content[where] ^= draw(st.integers(1, 255))
        elif kind == "cut":
            del content[where : where + draw(st.integers(1, 64))]
        elif kind == "insert":
            content[where:where] = draw(st.binary(max_size=16))
        elif kind == "end":
            del content[where:]
    return bytes(content)


class _Runs:
    """Unpickled, it leaves a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


# readers ------------------------------------------------------------------------------------------------------------


def config_cases(folder: Path) -> tuple[st.SearchStrategy[Any], Callable[[Any], object]]:
    """Configurations as mappings with any value for any key, and as YAML text, well-formed and not."""
    from usb_rsmatch.usb import config

    keys = st.sampled_from(sorted(set(config.KEYS) - {"plugins"})) | st.text(max_size=8) | NAMES
    mappings = st.dictionaries(keys, VALUES, max_size=4)
    texts = st.one_of(
        st.text(max_size=60),
        damaged(b"algorithm: rsmatch\nsynthetic:\n  - {source: 'npz:a.npz', generator: b}\nlr: 0.03\nseed: 1\n").map(
            lambda raw: raw.decode("latin-1")
        ),
        st.sampled_from(
            [BOMB, "&a [*a]", "!!python/object/apply:os.mkdir [evil]", "[" * 5000, "? {a: b}: c", "a: " + "9" * 6000]
        ),
    )

    def read(case: Any) -> object:
        if isinstance(case, dict):
            return config.resolve(case)
        path = folder / "c.yaml"
        path.write_text(case, encoding="utf-8", errors="surrogateescape")
        return config.resolve(path)

    return mappings | texts, read


def pool_cases(folder: Path) -> tuple[st.SearchStrategy[Any], Callable[[Any], object]]:
    """Pools of digits with any setting, and synthetic images from damaged or hostile npz files."""
    from usb_rsmatch.data.pool import build_pool

    rng, file = np.random.default_rng(0), io.BytesIO()
    np.savez(file, image=rng.integers(0, 256, (12, 8, 8), np.uint8), label=np.arange(12) % 10)
    good = file.getvalue()
    deflated, pickled, claims = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.savez_compressed(deflated, image=np.zeros((40, 64, 64), np.uint8), label=np.zeros(40, int))
    np.savez(pickled, image=np.array([_Runs(str(folder.parent / "evil"))], dtype=object))
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999, 8, 8), }\n"
    with zipfile.ZipFile(claims, "w") as archive:
        archive.writestr("image.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    files = st.sampled_from([good, deflated.getvalue(), pickled.getvalue(), claims.getvalue()]) | damaged(good)
    keys = [
        "real_count",
        "synthetic_count",
        "synthetic_ratio",
        "num_labels",
        "seed",
        "on_error",
        "reencode",
        "img_size",
    ]
    keys += ["validation_count", "include_lb_to_ulb", "lb_imb_ratio", "layouts"]
    changes = st.dictionaries(st.sampled_from(keys), VALUES | st.integers(-2, 40), max_size=2)
    sources = st.one_of(
        st.just("npz:{}"), NAMES, st.tuples(st.sampled_from(["npz:", "folder:", "flow:", "what:"]), NAMES).map("".join)
    )

    def read(case: Any) -> object:
        content, changed, source = case
        path = folder / "s.npz"
        path.write_bytes(content)
        args = {"dataset": "digits", "num_labels": 20, "real_count": 30, "seed": 0}
        synthetic = [{"source": source.replace("{}", str(path)), "generator": "g"}]
        return build_pool(SimpleNamespace(**{**args, "synthetic": synthetic, **changed}))

    # flow sources would train a generator: their names are read, their keys are not fuzzed here.
    return st.tuples(files, changes, sources.filter(lambda text: not text.startswith("flow:"))), read


def checkpoint_cases(folder: Path) -> tuple[st.SearchStrategy[Any], Callable[[Any], object]]:
    """Checkpoints that are damaged, compressed, hold code, or claim what is not there."""
    from usb_rsmatch.usb import checkpoint

    content: dict[str, Any] = {"model": {"weight": torch.arange(12.0)}, "it": 3, checkpoint.KEY: {"it": 3, "hooks": {}}}
    checkpoint.write(content, folder / "good.pth")
    good, evil, legacy = (folder / "good.pth").read_bytes(), io.BytesIO(), io.BytesIO()
    torch.save({"model": {}, "evil": _Runs(str(folder.parent / "evil"))}, evil)
    torch.save({"model": {}}, legacy, _use_new_zipfile_serialization=False)
    plain = pickle.dumps(_Runs(str(folder.parent / "evil")))
    files = damaged(good) | damaged(evil.getvalue()) | damaged(legacy.getvalue()) | damaged(plain) | st.just(plain)

    def read(case: bytes) -> object:
        (folder / "c.pth").write_bytes(case)
        return checkpoint.read(folder / "c.pth")

    return files, read


def metadata_cases(folder: Path) -> tuple[st.SearchStrategy[Any], Callable[[Any], object]]:
    """`metadata.csv` and `.jsonl` of image folders, and the metrics and results of run folders."""
    from usb_rsmatch.bench.results import read_result
    from usb_rsmatch.data.metadata import read_metadata
    from usb_rsmatch.usb.hooks import read_metrics

    (folder / "a.png").touch()
    lines = st.lists(
        st.dictionaries(st.sampled_from(["file_name", "label", "x"]), VALUES | st.just("a.png"), max_size=3), max_size=3
    )
    jsonl = lines.map(lambda rows: "\n".join(json.dumps(row, default=str) for row in rows).encode())
    csv = st.sampled_from([b"file_name,label\na.png,=1+1\n", b"file_name,label\n../evil.png,1\n"])
    whole = b'{"it": 2, "loss": 0.5}\n{"it": 4, "loss": 0.25}\n'
    cases = st.tuples(
        st.sampled_from(["metadata.csv", "metadata.jsonl", "metrics.jsonl", "result.json"]),
        st.one_of(jsonl, csv, st.binary(max_size=60), csv.flatmap(damaged), damaged(whole), st.just(b"[" * 100000)),
    )

    def read(case: tuple[str, bytes]) -> object:
        name, content = case
        for other in ("metadata.csv", "metadata.jsonl"):
            (folder / other).unlink(missing_ok=True)
        (folder / name).write_bytes(content)
        if name.startswith("metadata"):
            return read_metadata(folder)
        return read_metrics(folder / name) if name == "metrics.jsonl" else read_result(folder / name)

    return cases, read


READERS = {"config": config_cases, "pool": pool_cases, "checkpoint": checkpoint_cases, "metadata": metadata_cases}


def fuzz(reader: str, cases: int, number: int = 0) -> Findings:
    """Try `cases` inputs on a reader of `READERS`; `number` seeds them."""
    findings, root = Findings(), Path(tempfile.mkdtemp(prefix="fuzz-"))
    before, folder = Path.cwd(), root / "inside"
    folder.mkdir()
    os.chdir(folder)
    try:
        strategy, read = READERS[reader](folder)

        def attempt(case: Any) -> None:
            findings.cases += 1
            try:
                with _in_time():
                    read(case)
            except UserError as error:
                if "\n" in str(error):
                    findings.tracebacks.append(f"{reader}: more than a line: {str(error)[:300]!r} from {case!r:.300}")
            except _Hang:
                findings.hangs.append(f"{reader}: {case!r:.500}")
            except OSError:
                pass  # a name that no file system takes: the command tells it in one line as it is
            except Exception as error:
                findings.tracebacks.append(f"{reader}: {type(error).__name__}: {str(error)[:200]} from {case!r:.500}")
            outside = [path.name for path in root.iterdir() if path != folder]
            if outside:
                findings.writes_outside.append(f"{reader}: {outside} from {case!r:.300}")
                for name in outside:
                    (root / name).rmdir()

        quick = [
            HealthCheck.too_slow,
            HealthCheck.data_too_large,
            HealthCheck.filter_too_much,
            HealthCheck.large_base_example,
        ]
        options = settings(
            max_examples=cases, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=quick
        )
        seed(number)(options(given(strategy)(attempt)))()
    finally:
        os.chdir(before)
        shutil.rmtree(root)
    return findings
