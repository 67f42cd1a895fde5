"""The description of an exported network as JSON, and its model card in Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from usb_rsmatch.data.images.decode import FITS
from usb_rsmatch.io import parse_json
from usb_rsmatch.version import __version__


def describe_export(run: Any, network: Any, format: str) -> dict[str, Any]:
    """The description of an exported file as JSON values: input, outputs, preprocessing, provenance."""
    spec, size = run.spec, run.size
    outputs = {"logits": ["batch", len(run.classes)], "probabilities": ["batch", len(run.classes)]}
    if network.detector is not None:
        outputs["synthetic"] = ["batch"]
    return {
        "format": format,
        "made_by": f"usb_rsmatch {__version__}",
        "input": {"name": "images", "dtype": "uint8", "shape": ["batch", spec.channels, size, size]},
        "outputs": outputs,
        "classes": list(run.classes),
        "preprocessing": {
            "before": {  # to be done by the caller
                "decode": "first frame, upright by EXIF, 8 bits, transparency on white",
                "colour": "grey by ITU-R 601 luma" if spec.channels == 1 else "RGB, grey repeated",
                "fit": f"images that are not square are {FITS[run.pipeline.fit]}",
                "resize": f"{size} x {size}, antialiased bilinear; an image of that size is not resized",
                "history": [dict(step) for step in run.config.real_history],
                "jpeg": run.pipeline.jpeg,
                "clear_below": run.pipeline.clear_below,
            },
            "inside": {"scale": 1 / 255, "mean": list(spec.mean), "std": list(spec.std)},
        },
        "detector": None if network.detector is None else run.config.rs_detector_input,
        "step": run.step,
        "config": {key: value for key, value in sorted(vars(run.config).items()) if key != "device"},
        "data": _read(run.folder / "manifest.json", "dataset", "pool", "sources", "image_shape"),
        "result": _read(run.folder / "result.json", "accuracy", "detection", "iterations", "versions", "finished"),
    }


def model_card(description: Mapping[str, Any], file: str) -> str:
    """The model card: Markdown with Hugging Face's metadata header."""
    config, result, data = description["config"], description["result"], description["data"]
    pool = data.get("pool") or {}
    made = ", ".join(f"{count} by {name}" for name, count in (pool.get("by_generator") or {}).items())
    before = description["preprocessing"]["before"]
    lines = [
        "---",
        "library_name: usb_rsmatch",
        "pipeline_tag: image-classification",
        f"tags: [semi-supervised-learning, {config['algorithm']}, synthetic-image-detection]",
        "---",
        "",
        f"# {config['algorithm']} on {config['dataset']}, {config['num_labels']} labels",
        "",
        f"`{file}` ({description['format']}) takes uint8 images {_shape(description['input']['shape'])} and returns "
        f"{', '.join(f'`{name}` {_shape(shape)}' for name, shape in description['outputs'].items())}. "
        f"Classes, in order: {', '.join(map(_code, description['classes'][:20]))}"
        f"{' ...' if len(description['classes']) > 20 else ''}.",
        "",
        "## Preprocessing",
        "",
        f"Before: {before['decode']}; {before['colour']}; {before['fit']}; {before['resize']}"
        + "".join(f"; {name} {value}" for step in before["history"] for name, value in step.items())
        + (f"; JPEG of quality {before['jpeg']} and back" if before["jpeg"] else "")
        + (f"; levels under {before['clear_below']} set to 0" if before["clear_below"] else "")
        + ". Scaling and normalisation are inside the network.",
        "",
        "## Data",
        "",
        f"- Labelled: {config['num_labels']} real images of {config['dataset']}.",
        f"- Unlabelled: {pool.get('real', 'unknown')} real and {pool.get('synthetic', 'unknown')} synthetic images"
        + (f" ({made})" if made else "")
        + (f", and {pool['unknown']} of unknown provenance." if pool.get("unknown") else "."),
        f"- Test: the data set's own test images, {description['input']['shape'][2]} px.",
        "",
        "## Training",
        "",
        f"{description['step'] or config['num_train_iter']} steps of {config['batch_size']} labelled and "
        f"{config['batch_size'] * config['uratio']} unlabelled images, network {config['net']}, {config['optim']} at "
        f"{config['lr']}, seed {config['seed']}; the EMA weights (momentum {config['ema_m']}) are exported. "
        f"All keys are in `{file}.json`.",
        "",
        "## Results",
        "",
    ]
    lines += _results(result, description["step"], description["detector"] is not None)
    lines += ["", "## Limits", ""]
    lines += _limits(description, pool)
    return "\n".join(lines) + "\n"


def _results(result: Mapping[str, Any], step: int | None, has_detector: bool) -> list[str]:
    """The run's measurements for the weights of that step: at its end, or at its best evaluation."""
    accuracy, detection = result.get("accuracy") or {}, result.get("detection") or {}
    if result and step not in (None, result.get("iterations")):
        if step == accuracy.get("best_iteration"):
            return [f"- Test accuracy {100 * accuracy['best']:.2f} % at step {step}, chosen as the run's best."]
        return [
            f"The run's results are those of step {result.get('iterations')}: "
            f"these weights, of step {step}, were not evaluated."
        ]
    lines = []
    if accuracy.get("last") is not None:
        lines.append(f"- Test accuracy {100 * accuracy['last']:.2f} % at the last step.")
    if accuracy.get("validation") is not None:
        lines.append(f"- Validation accuracy {100 * accuracy['validation']:.2f} %.")
    if has_detector and detection.get("auroc") is not None:
        by_generator = detection.get("by_generator") or {}
        each = ", ".join(f"{_code(name)} {m['auroc']:.3f}" for name, m in by_generator.items() if m.get("auroc"))
        lines.append(
            f"- Detector's AUROC on the unlabelled pool {detection['auroc']:.3f}{f' ({each})' if each else ''}."
        )
    return lines or ["There is no result yet: the run had not finished when it was exported."]


def _limits(description: Mapping[str, Any], pool: Mapping[str, Any]) -> list[str]:
    lines = [
        "- One seed, one split of labels: repeat the run with other seeds before drawing conclusions.",
        "- Every image is assigned to one of the classes above, whatever it shows; confidences are not calibrated.",
        "- Accuracy was measured on images like the training data; it may be lower on others or with other decoders.",
    ]
    if description["detector"] is not None:
        known = ", ".join(map(_code, pool.get("by_generator") or {})) or "the pool's"
        lines += [
            f"- The detector learnt from the pool alone ({known}): it may miss other generators.",
            "- `synthetic` is for ranking images; it proves nothing about one image, and 0.5 is not calibrated.",
        ]
    return lines


def _shape(shape: list[Any]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _code(name: str) -> str:
    return f"`{name}`" if "`" not in name else f"`` {name} ``"


def _read(path: Any, *keys: str) -> dict[str, Any]:
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {key: content[key] for key in keys if key in content} if isinstance(content, dict) else {}
