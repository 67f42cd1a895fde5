"""Exported networks: every format agrees with the run, without the dummy head, with description and model card."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from usb_rsmatch import load_run
from usb_rsmatch.cli import main
from usb_rsmatch.errors import UserError
from usb_rsmatch.inference.export import FORMATS, export, load_exported
from usb_rsmatch.inference.exported_network import build_exported_network
from usb_rsmatch.inference.model_card import describe_export, model_card


def needs(format: str) -> None:
    if format == "onnx":
        for module in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(module, reason=f"{module} is not installed: pip install 'usb-rsmatch[onnx]'")
    if format == "safetensors":
        pytest.importorskip("safetensors", reason="safetensors is not installed")


def outputs_of(path: Path, format: str, images: np.ndarray) -> list[np.ndarray]:
    """Outputs of an exported file for images uint8 [N, H, W, C], read as its users would read it."""
    batch = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    if format == "onnx":
        import onnxruntime

        return onnxruntime.InferenceSession(str(path)).run(None, {"images": batch})
    if format == "torch-export":
        return [out.numpy() for out in torch.export.load(str(path)).module()(torch.from_numpy(batch))]
    return [out.numpy() for out in load_exported(path)(torch.from_numpy(batch))]


@pytest.mark.parametrize("name", ["rsmatch", "fixmatch"])
@pytest.mark.parametrize("format", FORMATS)
def test_an_exported_file_agrees_with_the_run(format: str, name: str, runs: dict[str, Any], tmp_path: Path) -> None:
    needs(format)
    run = runs[name]
    out = tmp_path / ("model.pt2" if format == "torch-export" else "model.bin")
    paths = export(run, format, out)
    assert [path.exists() for path in paths] == [True] * 3 and len(list(tmp_path.iterdir())) == 3
    for count in (1, 40):
        images = run.test.images[:count]
        expected = [run.logits(images), run.predict(images)]
        expected += [run.synthetic_score(images)] if name == "rsmatch" else []
        for ours, theirs in zip(expected, outputs_of(out, format, images), strict=True):
            np.testing.assert_allclose(theirs, ours, atol=1e-4, rtol=1e-4)


def test_the_dummy_head_is_not_exported(runs: dict[str, Any], tmp_path: Path) -> None:
    run = runs["rsmatch"]
    assert any("dummy_head" in name for name in run.model.state_dict())
    with_detector, alone = build_exported_network(run), build_exported_network(run, detector=False)
    assert not any("dummy" in name for name in with_detector.state_dict())
    assert {name.partition(".")[0] for name in with_detector.state_dict()} == {"classifier", "detector", "mean", "std"}
    assert {name.partition(".")[0] for name in alone.state_dict()} == {"classifier", "mean", "std"}
    assert any("dummy_head" in name for name in run.model.state_dict())  # the run itself is not changed
    export(run, "torch-export", tmp_path / "model.pt2", detector=False)
    program = torch.export.load(str(tmp_path / "model.pt2"))
    assert not any("dummy" in name or "detector" in name for name in program.state_dict)
    with pytest.raises(UserError, match="trained no detector"):
        build_exported_network(runs["fixmatch"], detector=True)


def test_description_and_model_card(finished: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    out = tmp_path / "model.safetensors"
    words = ["export", str(finished["rsmatch"]), "--format", "safetensors", "--out", str(out)]
    assert main(words) == 0
    assert capsys.readouterr().out.splitlines() == [str(out), f"{out}.json", f"{out}.md"]
    description = json.loads(Path(f"{out}.json").read_text())
    result = json.loads((finished["rsmatch"] / "result.json").read_text())
    assert description["result"]["accuracy"] == result["accuracy"]
    assert description["input"]["shape"] == ["batch", 1, 8, 8] and description["classes"] == list("0123456789")
    assert description["config"]["num_labels"] == 20 and description["data"]["pool"]["by_generator"] == {"blend": 200}
    card = Path(f"{out}.md").read_text()
    assert f"{100 * result['accuracy']['last']:.2f} %" in card and f"{result['detection']['auroc']:.3f}" in card
    assert "## Limits" in card and "200 by blend" in card and "cropped to their centre" in card
    assert main(words) == 2
    assert "nothing is overwritten" in capsys.readouterr().err


def test_the_model_card_reports_the_results_of_the_exported_weights(finished: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished["fixmatch"], folder)
    result = json.loads((folder / "result.json").read_text())
    result["accuracy"].update(last=0.25, best=0.75, best_iteration=30)
    (folder / "result.json").write_text(json.dumps(result))
    said = {}
    for name in ("latest_model.pth", "previous_model.pth"):  # of steps 60 and 30
        export(load_run(folder / name, device="cpu"), "torch-export", tmp_path / f"{name}.pt2")
        said[name] = (tmp_path / f"{name}.pt2.md").read_text()
    assert "25.00 % at the last step" in said["latest_model.pth"] and "60 steps of" in said["latest_model.pth"]
    assert "75.00 % at step 30" in said["previous_model.pth"] and "25.00" not in said["previous_model.pth"]
    assert "30 steps of" in said["previous_model.pth"]
    result["accuracy"]["best_iteration"] = 45
    (folder / "result.json").write_text(json.dumps(result))
    run = load_run(folder / "previous_model.pth", device="cpu")
    text = model_card(describe_export(run, build_exported_network(run), "torch-export"), "model.pt2")
    assert "of step 30, were not evaluated" in text and "accuracy 25" not in text and "accuracy 75" not in text


def test_the_described_preprocessing_reproduces_the_predictions(
    runs: dict[str, Any], digit_files: Path, tmp_path: Path
) -> None:
    """With Pillow and the JSON alone: the same probabilities as `predict` for an image of another size and mode."""
    run = runs["rsmatch"]
    Image.open(next(digit_files.rglob("*.png"))).convert("RGB").resize((31, 19)).save(tmp_path / "odd.png")
    export(run, "torch-export", tmp_path / "model.pt2")
    description = json.loads((tmp_path / "model.pt2.json").read_text())
    _, channels, height, width = description["input"]["shape"]
    image = Image.open(tmp_path / "odd.png").convert("L" if channels == 1 else "RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side)).resize((width, height), Image.Resampling.BILINEAR)
    array = np.asarray(image)[None, ..., None]
    from usb_rsmatch.inference.input_images import open_images

    batch = next(iter(open_images([tmp_path / "odd.png"]).batches(run.pipeline)))
    found = outputs_of(tmp_path / "model.pt2", "torch-export", array)
    np.testing.assert_allclose(found[1], run.predict(batch.images), atol=1e-5)


def test_a_missing_extra_is_reported_with_the_command_that_installs_it(
    finished: dict[str, Path], tmp_path: Path
) -> None:
    code = f"""
import sys
sys.modules["onnx"] = None
from usb_rsmatch.cli import main
sys.exit(main(["export", {str(finished["fixmatch"])!r}, "--format", "onnx", "--out", {str(tmp_path / "m.onnx")!r}]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "pip install 'usb-rsmatch[onnx]'" in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1 and list(tmp_path.iterdir()) == []


def test_a_safetensors_file_of_another_origin_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    (tmp_path / "a.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="not a safetensors file of this package"):
        load_exported(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["export", "{tmp}/no", "--format", "onnx", "--out", "{tmp}/a"], "no such run folder"),
        (["export", "{run}", "--format", "gguf", "--out", "{tmp}/a"], "invalid choice: 'gguf'"),
        (["export", "{run}", "--format", "onnx", "--out", "{run}/log.txt/a"], "is not a folder"),
        (["export", "{run}", "--format", "onnx", "--out", "{tmp}/a", "--detector"], "trained no detector"),
    ],
    ids=["run", "format", "target", "detector"],
)
def test_user_errors_are_one_line(
    words: list[str], message: str, finished: dict[str, Path], tmp_path: Path, capsys: Any
) -> None:
    assert main([word.format(run=finished["fixmatch"], tmp=tmp_path) for word in words]) == 2
    err = capsys.readouterr().err
    assert message in err and len(err.splitlines()) == 1 and list(tmp_path.iterdir()) == []
