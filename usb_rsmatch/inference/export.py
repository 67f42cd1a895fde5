"""`usb-rsmatch export`: a trained run as ONNX, safetensors or torch.export file, verified, with a description."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from usb_rsmatch.counter_rng import generator
from usb_rsmatch.csv_files import refuse_existing
from usb_rsmatch.detection.detector import TRAINED
from usb_rsmatch.errors import UserError
from usb_rsmatch.inference.exported_network import ExportedNetwork, build_exported_network
from usb_rsmatch.inference.model_card import describe_export, model_card
from usb_rsmatch.io import atomic_write, write_json, write_text

TOLERANCE = 1e-4  # largest difference between the file and the run, in logits and probabilities

Writer = Callable[[ExportedNetwork, Tensor, dict[str, Any], Path], None]
Reader = Callable[[Path, Tensor], list[Tensor]]


def export(run: Any, format: str, out: Path, detector: bool | None = None) -> list[Path]:
    """Write `out`, `out`.json (description) and `out`.md (model card); returns their paths.

    The file is read back and must agree with the run within `TOLERANCE` on batches of two sizes before it is renamed to
    `out`. Raises UserError for a missing extra, an existing target, and a network that the format does not support.
    """
    write, read = FORMATS[format]
    paths = [out, Path(f"{out}.json"), Path(f"{out}.md")]
    refuse_existing(*paths)
    network = build_exported_network(run, detector)
    description = describe_export(run, network, format)
    example = _noise_images(run, 2)
    with atomic_write(out) as temporary:
        try:
            with _silence_exporters():
                write(network, example, description, temporary)
        except UserError:
            raise
        except Exception as error:  # exporters raise various errors for unsupported layers
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise UserError(f"{run.config.net} cannot be exported as {format}: {reason}") from None
        for batch in (example, _noise_images(run, 5)):
            with _silence_exporters(), torch.no_grad():
                found, expected = read(temporary, batch), list(network(batch))
            _compare(found, expected, list(description["outputs"]), format)
            _compare_with_run(run, batch, expected)
    write_json(paths[1], description)
    write_text(paths[2], model_card(description, out.name))
    return paths


def load_exported(path: str | Path, trust_plugins: bool = False, plugins: Collection[str] = ()) -> ExportedNetwork:
    """The network of a safetensors file of this package, built from the configuration in the file.

    Plugins that the file names are only imported if `plugins` names them too, or with `trust_plugins`. Raises UserError
    for other plugins, before any is imported, and for a file of another kind.
    """
    from safetensors import safe_open
    from safetensors.torch import load_file

    from usb_rsmatch.data.pool.placeholder import placeholder_pool
    from usb_rsmatch.data.sources.dataset_registry import DataSpec
    from usb_rsmatch.inference.loaded_run import Run
    from usb_rsmatch.usb.config import resolve
    from usb_rsmatch.usb.config_migration import migrate, refuse_untrusted_plugins
    from usb_rsmatch.usb.training import build

    try:
        with safe_open(str(path), framework="pt") as file:
            description = json.loads((file.metadata() or {})["usb_rsmatch"])
        inside = description["preprocessing"]["inside"]
        size, depth = description["input"]["shape"][2], description["input"]["shape"][1]
        refuse_untrusted_plugins(description["config"], path, trust_plugins, plugins)
        args, _ = resolve(migrate(description["config"])[0])
    except UserError:
        raise
    except Exception as error:  # safetensors raises its own error type
        raise UserError(f"{path}: not a safetensors file of this package ({error})") from None
    spec = DataSpec(args.dataset, tuple(inside["mean"]), tuple(inside["std"]), False, size)
    assert depth == spec.channels
    args.device, args.rs_loader, args.num_workers = "cpu", "pil", 0
    if args.rs_detector not in TRAINED:
        args.rs_detector = "none"
    pool = placeholder_pool(spec, description["classes"], size, {})
    run = Run(Path(path), args, build(args, pool=pool, load_weights=False))
    network = build_exported_network(run, description["detector"] is not None)
    network.load_state_dict(load_file(str(path)))
    return network


# formats ------------------------------------------------------------------------------------------------------------


def _write_onnx(network: ExportedNetwork, example: Tensor, description: dict[str, Any], path: Path) -> None:
    onnx = _import_extra("onnx", "onnx")
    _import_extra("onnxscript", "onnx")
    _import_extra("onnxruntime", "onnx")
    program: Any = torch.onnx.export(
        network,
        (example,),
        input_names=["images"],
        output_names=list(description["outputs"]),
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        verbose=False,
    )
    model = program.model_proto
    onnx.helper.set_model_props(model, {"usb_rsmatch": json.dumps(description)})
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def _read_onnx(path: Path, batch: Tensor) -> list[Tensor]:
    onnxruntime = _import_extra("onnxruntime", "onnx")
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return [torch.from_numpy(np.asarray(out)) for out in session.run(None, {"images": batch.numpy()})]


def _write_torch_export(network: ExportedNetwork, example: Tensor, description: dict[str, Any], path: Path) -> None:
    program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={"usb_rsmatch.json": json.dumps(description)})
    path.write_bytes(buffer.getvalue())


def _read_torch_export(path: Path, batch: Tensor) -> list[Tensor]:
    return list(torch.export.load(io.BytesIO(path.read_bytes())).module()(batch))


def _write_safetensors(network: ExportedNetwork, example: Tensor, description: dict[str, Any], path: Path) -> None:
    save_file = _import_extra("safetensors.torch", "safetensors").save_file
    state = {name: value.contiguous() for name, value in network.state_dict().items()}
    save_file(state, str(path), metadata={"format": "pt", "usb_rsmatch": json.dumps(description)})


def _read_safetensors(path: Path, batch: Tensor) -> list[Tensor]:
    return list(load_exported(path, trust_plugins=True)(batch))  # written just now


FORMATS: dict[str, tuple[Writer, Reader]] = {
    "onnx": (_write_onnx, _read_onnx),
    "safetensors": (_write_safetensors, _read_safetensors),
    "torch-export": (_write_torch_export, _read_torch_export),
}


def _import_extra(module: str, extra: str) -> Any:
    """Import an optional package; UserError with the install command if it is missing."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        raise UserError(f"{name} is not installed ({error}): pip install 'usb-rsmatch[{extra}]'") from None


# checks -------------------------------------------------------------------------------------------------------------


def _noise_images(run: Any, count: int) -> Tensor:
    """Random noise uint8 [count, C, H, W], which exercises every layer without any data."""
    shape = (count, run.spec.channels, run.size, run.size)
    return torch.from_numpy(generator(0, "export", count).integers(0, 256, shape, dtype=np.uint8))


def _compare(found: list[Tensor], expected: list[Tensor], names: list[str], format: str) -> None:
    if len(found) != len(expected):
        raise UserError(f"the {format} file has {len(found)} outputs instead of {len(expected)}: nothing is written")
    for name, ours, theirs in zip(names[: len(found)], expected, found, strict=True):
        gap = float((ours - theirs).abs().max() / max(1.0, float(ours.abs().max())))
        if not gap <= TOLERANCE:
            raise UserError(f"the {format} file's {name} differ from torch's by {gap:.1e}: nothing is written")


def _compare_with_run(run: Any, batch: Tensor, outputs: list[Tensor]) -> None:
    """Compare the network with the run's own methods, which use another code path."""
    images = batch.permute(0, 2, 3, 1).numpy()
    expected = [torch.from_numpy(run.logits(images)), torch.from_numpy(run.predict(images))]
    if len(outputs) == 3:
        expected.append(torch.from_numpy(run.synthetic_score(images)))
    _compare(outputs, expected, ["logits", "probabilities", "synthetic"], "exported")


@contextlib.contextmanager
def _silence_exporters() -> Iterator[None]:
    """Silence the exporters' own messages."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
