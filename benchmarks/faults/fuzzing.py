"""Fuzzing of all file readers: configurations, pools, checkpoints, metadata, result files.

A reader may return a value or raise `UserError`, which is always one line. Findings are: any other exception, a case
that takes more than `SECONDS`, and a file written outside of the case's folder.
"""

from __future__ import annotations

import contextlib
import io
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

from benchmarks.faults.malformed_inputs import (
    GRID_JSON,
    ODD_NAMES,
    RESULT_JSON,
    VALUES,
    YAML_BOMB,
    UnpicklePayload,
    arrays,
    as_json,
    damaged,
    edited,
)
from usb_rsmatch.errors import UserError

SECONDS = 10.0  # limit of processor time for a case; one takes milliseconds


class _Hang(BaseException):
    """Raised in a case that takes too long."""


@dataclass
class Findings:
    """The number of cases, and the problems found, one line each."""

    cases: int = 0
    tracebacks: list[str] = field(default_factory=list)
    hangs: list[str] = field(default_factory=list)
    writes_outside: list[str] = field(default_factory=list)


@contextmanager
def _time_limit() -> Iterator[None]:
    """Raise `_Hang` in the block after `SECONDS` of processor time."""

    def over(number: int, frame: Any) -> None:
        raise _Hang

    before = signal.signal(signal.SIGPROF, over)
    signal.setitimer(signal.ITIMER_PROF, SECONDS, SECONDS / 10)  # again, in case a Python callback catches it
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def config_cases(folder: Path) -> tuple[st.SearchStrategy[Any], Callable[[Any], object]]:
    """Configurations as mappings with any value for any key, and as YAML text, valid or invalid."""
    from usb_rsmatch.usb import config

    kinds = {"int": st.integers(0, 300), "float": st.floats(0, 1), "bool": st.booleans(), "str": ODD_NAMES}
    kinds |= {"list": st.lists(VALUES, max_size=2), "mapping": st.dictionaries(ODD_NAMES, VALUES, max_size=2)}

    def pair(name: str) -> st.SearchStrategy[Any]:
        key = config.KEYS[name]
        fitting = kinds.get(key.kind, st.sampled_from(key.kind.split("|"))) | st.just(key.default)
        return st.tuples(st.just(name), fitting | fitting | fitting | VALUES)

    keys = st.sampled_from(sorted(set(config.KEYS) - {"plugins"}))
    known = st.lists(keys.flatmap(pair), max_size=6).map(dict)
    mappings = known | st.dictionaries(keys | st.text(max_size=8) | ODD_NAMES, VALUES, max_size=3)
    texts = st.one_of(
        known.map(lambda content: as_json(content).decode()),
        st.text(max_size=60),
        damaged(b"algorithm: rsmatch\nsynthetic:\n  - {source: 'npz:a.npz', generator: b}\nlr: 0.03\nseed: 1\n").map(
            lambda raw: raw.decode("latin-1")
        ),
        st.sampled_from(
            [
                YAML_BOMB,
                "&a [*a]",
                "!!python/object/apply:os.mkdir [../evil]",
                "[" * 5000,
                "? {a: b}: c",
                "a: " + "9" * 6000,
            ]
        ),
    )

    def read(case: Any) -> object:
        path = folder / "c.yaml"
        if not isinstance(case, dict):
            path.write_text(case, encoding="utf-8", errors="surrogateescape")
        args, _ = config.resolve(case if isinstance(case, dict) else path)
        args.save_name = args.save_name or config.default_save_name(args)
        (Path("runs") / args.save_name).is_dir()
        return config.config_hash(args)

    return mappings | texts, read


def pool_cases(folder: Path) -> tuple[st.SearchStrategy[Any], Callable[[Any], object]]:
    """Pools of digits with any settings, and with synthetic images from damaged or malformed npz files."""
    from usb_rsmatch.data.pool.pool import HybridPool

    rng, file = np.random.default_rng(0), io.BytesIO()
    np.savez(file, image=rng.integers(0, 256, (12, 8, 8), np.uint8), label=np.arange(12) % 10)
    good = file.getvalue()
    deflated, pickled, claims = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.savez_compressed(deflated, image=np.zeros((40, 64, 64), np.uint8), label=np.zeros(40, int))
    np.savez(pickled, image=np.array([UnpicklePayload(str(folder.parent / "evil"))], dtype=object))
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999, 8, 8), }\n"
    with zipfile.ZipFile(claims, "w") as archive:
        archive.writestr("image.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    special = st.sampled_from([deflated.getvalue(), pickled.getvalue(), claims.getvalue()])
    files = st.just(good) | arrays() | arrays() | special | damaged(good)
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
    whole = st.just("npz:{}")
    sources = st.one_of(
        *[whole] * 6,
        ODD_NAMES,
        st.tuples(st.sampled_from(["npz:", "folder:", "flow:", "what:"]), ODD_NAMES).map("".join),
    )

    def read(case: Any) -> object:
        content, changed, source, generator = case
        path = folder / "s.npz"
        path.write_bytes(content)
        args = {"dataset": "digits", "num_labels": 20, "real_count": 30, "seed": 0}
        synthetic = [{"source": source.replace("{}", str(path)), "generator": generator}]
        return HybridPool.from_config(SimpleNamespace(**{**args, "synthetic": synthetic, **changed}))

    # Complete flow sources are left out: they would train a generator.
    return st.tuples(files, changes, sources.filter(lambda text: not text.startswith("flow:")), ODD_NAMES), read


def checkpoint_cases(folder: Path) -> tuple[st.SearchStrategy[Any], Callable[[Any], object]]:
    """Checkpoints that are damaged, contain code, claim data that does not exist, or have unexpected content."""
    from usb_rsmatch.usb import checkpoint

    content: dict[str, Any] = {"model": {"weight": torch.arange(12.0)}, "it": 3, checkpoint.KEY: {"it": 3, "hooks": {}}}
    checkpoint.write(content, folder / "good.pth")
    good, evil, legacy = (folder / "good.pth").read_bytes(), io.BytesIO(), io.BytesIO()
    torch.save({"model": {}, "evil": UnpicklePayload(str(folder.parent / "evil"))}, evil)
    torch.save({"model": {}}, legacy, _use_new_zipfile_serialization=False)
    plain = pickle.dumps(UnpicklePayload(str(folder.parent / "evil")))
    bomb: list[Any] = [0] * 9
    for _ in range(12):
        bomb = [bomb] * 9
    tensor = torch.zeros(2, 3)
    odd = [tensor, tensor.T, tensor.bool(), tensor.to_sparse(), tensor.bfloat16(), tensor.to("meta")]

    def with_digest(changes: dict[str, Any]) -> bytes:
        file, content = io.BytesIO(), {"model": {}, **changes}
        if isinstance(content.get(checkpoint.KEY), dict) and bomb not in content.values():
            with contextlib.suppress(Exception):  # content that is not the state of a run has no digest
                content[checkpoint.KEY]["digest"] = checkpoint.digest(content)
        torch.save(content, file)
        return file.getvalue()

    names = st.sampled_from(["model", "it", "optimizer", checkpoint.KEY])
    malformed = st.dictionaries(names, VALUES | st.sampled_from(odd) | st.just(bomb), max_size=3).map(with_digest)
    files = malformed | damaged(good) | damaged(evil.getvalue()) | damaged(legacy.getvalue()) | damaged(plain)
    files |= st.just(plain)

    def read(case: bytes) -> object:
        (folder / "c.pth").write_bytes(case)
        return checkpoint.read(folder / "c.pth")

    return files, read


def metadata_cases(folder: Path) -> tuple[st.SearchStrategy[Any], Callable[[Any], object]]:
    """`metadata.csv` and `metadata.jsonl` of image folders, metrics and results of run folders, records of grids."""
    from usb_rsmatch.data.sources.metadata import read_metadata
    from usb_rsmatch.report.grid_record import read_record
    from usb_rsmatch.report.learning_curves import read_curve
    from usb_rsmatch.report.result_file import read_result
    from usb_rsmatch.usb.hooks import read_metrics

    (folder / "a.png").touch()
    column = VALUES | st.just("a.png")
    row = st.fixed_dictionaries({"file_name": column, "label": column}, optional={"generator": column, "x": column})
    jsonl = st.lists(row, max_size=3).map(lambda rows: b"\n".join(map(as_json, rows)))
    csv = st.sampled_from([b"file_name,label\na.png,=1+1\n", b"file_name,label\n../evil.png,1\n"])
    metrics = {"it": 2, "train/total_loss": 0.5, "eval/top-1-acc": 0.25}
    readers: dict[str, tuple[Callable[[Path], object], st.SearchStrategy[bytes]]] = {
        "metadata.csv": (lambda path: read_metadata(folder, []), csv | csv.flatmap(damaged)),
        "metadata.jsonl": (lambda path: read_metadata(folder, []), jsonl | jsonl.flatmap(damaged)),
        "metrics.jsonl": (lambda path: (read_metrics(path), read_curve(path, "train/total_loss")), edited(metrics)),
        "result.json": (read_result, edited(RESULT_JSON)),
        "grid.json": (read_record, edited(GRID_JSON)),
    }
    odd = st.sampled_from([b"[" * 100000, b'{"it": 1, "train/total_loss": ' + b"9" * 5000, b"[]", b"null"])
    cases = st.sampled_from(sorted(readers)).flatmap(
        lambda name: st.tuples(st.just(name), st.one_of(*[readers[name][1]] * 4, st.binary(max_size=60), odd))
    )

    def read(case: tuple[str, bytes]) -> object:
        name, content = case
        for other in ("metadata.csv", "metadata.jsonl"):
            (folder / other).unlink(missing_ok=True)
        (folder / name).write_bytes(content)
        return readers[name][0](folder / name)

    return cases, read


# The keys are keys of committed result files and must not change.
READERS = {"config": config_cases, "pool": pool_cases, "checkpoint": checkpoint_cases, "metadata": metadata_cases}


def fuzz(reader: str, cases: int, number: int = 0) -> Findings:
    """Give `cases` random inputs to a reader of `READERS`; `number` is the seed of the inputs."""
    findings, root = Findings(), Path(tempfile.mkdtemp(prefix="fuzz-"))
    before, folder = Path.cwd(), root / "between" / "inside"  # "../.." is still inside of our folder
    folder.mkdir(parents=True)
    os.chdir(folder)
    try:
        strategy, read = READERS[reader](folder)

        def attempt(case: Any) -> None:
            findings.cases += 1
            try:
                with _time_limit():
                    read(case)
            except _Hang:
                findings.hangs.append(f"{reader}: {case!r:.500}")
            except (UserError, OSError):
                pass  # OSError: a name that no file system accepts; the command reports it in one line
            except Exception as error:
                findings.tracebacks.append(f"{reader}: {type(error).__name__}: {str(error)[:200]} from {case!r:.500}")
            siblings = (*root.iterdir(), *folder.parent.iterdir())
            outside = [path for path in siblings if path not in (folder, folder.parent)]
            if outside:
                findings.writes_outside.append(f"{reader}: {outside} from {case!r:.300}")
                for path in outside:
                    path.rmdir()

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
