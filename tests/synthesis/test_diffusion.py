"""`usb-rsmatch synthesize --engine diffusers` on real pipelines with tiny random networks, loaded from disk by path."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from usb_rsmatch.cli import main
from usb_rsmatch.counter_rng import derive
from usb_rsmatch.data.images.decode import fit
from usb_rsmatch.errors import UserError
from usb_rsmatch.synthesis.diffusion import PRESETS, DiffusionEngine, DiffusionSettings

diffusers = pytest.importorskip("diffusers", reason="the extra `synthesis` is not installed")
Capture = pytest.CaptureFixture[str]


def words(model: Path, out: Path, *more: str) -> list[str]:
    line = ["synthesize", "--engine", "diffusers", "--model", str(model), "--out", str(out), "--device", "cpu"]
    return [*line, "--steps", "2", "--classes", "cat", "dog", "--count", "10", "--batch-size", "4", *more]


def tree(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def whole(sd_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "sd"
    assert main(words(sd_folder, out)) == 0
    return out


def test_images_are_those_of_the_pipeline_called_by_hand(whole: Path, sd_folder: Path) -> None:
    run = json.loads((whole / "synthesis.json").read_text())
    dtype = getattr(torch, run["settings"]["dtype"])
    pipeline = diffusers.DiffusionPipeline.from_pretrained(sd_folder, torch_dtype=dtype)
    rows = lines(whole / "metadata.jsonl")
    assert [row["file_name"] for row in rows[:4]] == ["cat/0.png", "dog/0.png", "cat/1.png", "dog/1.png"]
    assert rows[0]["seed"] == derive(0, "diffusers", "cat", 0) and rows[0]["prompt"] == "a photo of a cat"
    for first in (0, 4, 8):
        batch = rows[first : first + 4]
        generators = [torch.Generator().manual_seed(row["seed"]) for row in batch]
        by_hand = pipeline([row["prompt"] for row in batch], generator=generators, num_inference_steps=2).images
        for row, image in zip(batch, by_hand, strict=True):
            np.testing.assert_array_equal(np.asarray(Image.open(whole / row["file_name"])), np.asarray(image))
    expected = {"engine": "diffusers", "generator": "tiny-sd", "model": "tiny-sd", "guidance": 7.5, "steps": 2}
    assert expected.items() <= rows[0].items() and run["settings"]["revision"] == rows[0]["revision"]
    assert json.loads((whole / "prompts.json").read_text())["dog"][0] == "a photo of a dog"


def test_shards_and_a_second_run_give_the_same_bytes(whole: Path, sd_folder: Path, tmp_path: Path) -> None:
    for part in ("2/2", "1/2"):
        assert main(words(sd_folder, tmp_path / "out", "--shard", part)) == 0
    assert tree(tmp_path / "out") == tree(whole)


def test_another_model_of_the_same_name_is_another_run(
    whole: Path, sd_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    changed = tmp_path / sd_folder.name
    shutil.copytree(sd_folder, changed)
    weights = changed / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert main(words(changed, whole)) == 2
    assert "contains another run: its revision is" in capsys.readouterr().err


def test_size_and_colour_are_those_of_the_pool(sd_folder: Path, tmp_path: Path, whole: Path) -> None:
    more = ["--dataset", "digits", "--classes", "3", "7", "--negative-prompt", "blurry", "--resolution", "32"]
    assert main(words(sd_folder, tmp_path / "small", *more)) == 0
    assert main(words(sd_folder, tmp_path / "full", *more, "--size", "full")) == 0
    for name in ("3/0.png", "7/4.png"):
        small, full = Image.open(tmp_path / "small" / name), Image.open(tmp_path / "full" / name)
        assert small.size == (8, 8) and small.mode == full.mode == "L" and full.size == (32, 32)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(
        sd_folder, torch_dtype=getattr(torch, json.loads((whole / "synthesis.json").read_text())["settings"]["dtype"])
    )
    batch = lines(tmp_path / "small" / "metadata.jsonl")[:4]
    made = pipeline(
        [row["prompt"] for row in batch],
        negative_prompt=["blurry"] * 4,
        generator=[torch.Generator().manual_seed(row["seed"]) for row in batch],
        num_inference_steps=2,
        height=32,
        width=32,
    ).images
    np.testing.assert_array_equal(
        np.asarray(Image.open(tmp_path / "small" / "3" / "0.png")), fit(made[0], 8, 1)[..., 0]
    )


def test_hits_of_the_safety_checker_are_recorded_and_left_out(
    whole: Path, sd_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    strict = tmp_path / "strict"
    pipeline = diffusers.DiffusionPipeline.from_pretrained(sd_folder)
    checker = pipeline.safety_checker
    pictures = [Image.open(path) for path in sorted(whole.glob("*/*.png"))]
    pixels = pipeline.feature_extractor(pictures, return_tensors="pt").pixel_values
    with torch.no_grad():
        embeddings = checker.visual_projection(checker.vision_model(pixels)[1])[:, None]
        scores = torch.nn.functional.cosine_similarity(embeddings, checker.concept_embeds[None], dim=2)
        checker.concept_embeds_weights[:] = scores.max(dim=1).values.median()  # some images are over it
    pipeline.save_pretrained(strict)
    assert main(words(strict, tmp_path / "out", "--count", "24")) == 0
    flagged, kept = lines(tmp_path / "out" / "flagged.jsonl"), lines(tmp_path / "out" / "metadata.jsonl")
    assert 0 < len(flagged) < 24 and len(flagged) + len(kept) == 24
    assert f"{len(flagged)} removed by the safety checker" in capsys.readouterr().out
    assert f"hit {len(flagged)} more images" in (tmp_path / "out" / "README.md").read_text()
    assert {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").glob("[!.]*/*.png")} == {
        row["file_name"] for row in kept
    }
    before = tree(tmp_path / "out")
    assert main(words(strict, tmp_path / "out", "--count", "24")) == 0 and tree(tmp_path / "out") == before
    assert main(words(strict, tmp_path / "packed", "--count", "24", "--format", "npz")) == 0
    with np.load(tmp_path / "packed" / "images-00000.npz") as shard:
        assert len(shard["images"]) == len(shard["labels"]) == len(kept)


def test_a_report_on_no_image_is_refused(sd_folder: Path, tmp_path: Path, capsys: Capture) -> None:
    """The safety checker removes everything."""
    pipeline = diffusers.DiffusionPipeline.from_pretrained(sd_folder)
    with torch.no_grad():
        pipeline.safety_checker.concept_embeds_weights[:] = -2  # under every cosine
    pipeline.save_pretrained(tmp_path / "strict")
    more = ["--dataset", "digits", "--classes", "3", "7", "--count", "4", "--report"]
    assert main(words(tmp_path / "strict", tmp_path / "out", *more)) == 2
    err = capsys.readouterr().err
    assert "the safety checker removed every image" in err and "Traceback" not in err


def test_the_lightning_preset_takes_its_unet_scheduler_steps_and_no_guidance(sdxl_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    weights = sdxl_folder.parent / "unet.safetensors"
    asked = DiffusionSettings("sdxl-lightning", str(sdxl_folder), unet=str(weights), device="cpu", dtype="float32")
    engine = DiffusionEngine(asked, {"cat": ["a cat"]}, None, 3, seed=0)
    for name, tensor in load_file(weights).items():
        assert torch.equal(engine.pipeline.unet.state_dict()[name], tensor)
    scheduler = engine.pipeline.scheduler
    assert isinstance(scheduler, diffusers.EulerDiscreteScheduler)
    assert scheduler.config.timestep_spacing == "trailing" and scheduler.config.beta_schedule == "scaled_linear"
    assert (engine.call["num_inference_steps"], engine.call["guidance_scale"]) == (4, 0.0)
    assert engine.generator == "sdxl-lightning" and not engine.settings["safety_checker"]
    line = ["synthesize", "--engine", "diffusers", "--preset", "sdxl-lightning", "--model", str(sdxl_folder)]
    line += [
        "--unet",
        str(weights),
        "--classes",
        "cat",
        "--count",
        "3",
        "--out",
        str(tmp_path / "out"),
        "--device",
        "cpu",
    ]
    assert main(line) == 0
    assert {row["generator"] for row in lines(tmp_path / "out" / "metadata.jsonl")} == {"sdxl-lightning"}
    assert "no safety checker" in (tmp_path / "out" / "README.md").read_text()


def test_presets_are_the_published_ones() -> None:
    assert PRESETS["sd14"].model == "CompVis/stable-diffusion-v1-4" and PRESETS["sd14"].steps == 50
    unets = PRESETS["sdxl-lightning"].unets
    assert unets[4] == "ByteDance/SDXL-Lightning:sdxl_lightning_4step_unet.safetensors" and set(unets) == {2, 4, 8}


def test_a_t5_writes_the_prompts_of_a_run(sd_folder: Path, t5_folder: Path, tmp_path: Path) -> None:
    assert main(words(sd_folder, tmp_path / "out", "--t5", str(t5_folder), "--sentences", "3")) == 0
    sentences = json.loads((tmp_path / "out" / "prompts.json").read_text())
    rows = lines(tmp_path / "out" / "metadata.jsonl")
    for row in rows:
        written = sentences[row["label"]]
        number = int(Path(row["file_name"]).stem)
        assert row["prompt"] == written[number % len(written)] and row["label"] in row["prompt"]
    assert json.loads((tmp_path / "out" / "synthesis.json").read_text())["settings"]["t5"] == "tiny-t5"


# mistakes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--prompt", "a photo"], "must contain {name}"),
        (["--prompt", "a {name}", "--prompts", "x.txt"], "--prompt and --prompts are both given"),
        (["--names", "none.json"], "none.json"),
        (["--train-steps", "3"], "--train-steps cannot be combined with --engine diffusers"),
        (["--part", "train[:50%]"], "--part cannot be combined with --engine diffusers"),
        (["--unet", "none.safetensors"], "no such file"),
        (["--report"], "--dataset NAME"),
        (["--guidance", "nan"], "--guidance nan: must be a number"),
        (["--guidance", "-1"], "--guidance -1.0: must be a number"),
        (["--classes", "cat", "cat"], "is given twice"),
        (["--resolution", "33"], "divisible by 8"),
    ],
)
def test_mistakes_are_told_in_one_line(
    more: list[str], message: str, sd_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert main(words(sd_folder, tmp_path / "out", *more)) == 2
    err = capsys.readouterr().err
    told = [line for line in err.splitlines() if line.startswith("usb-rsmatch: ")]
    assert len(told) == 1 and message in told[0] and "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_nowhere_is_told_with_the_remedy(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, sdxl_folder: Path
) -> None:
    """As on a machine without a network: the hub's address leads to a port where nobody listens."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name, flag in (("nobody/nothing", "--model"), (str(tmp_path / "typo"), "--model")):
        assert main(words(Path(name), tmp_path / "out")) == 2
        err = capsys.readouterr().err.splitlines()[-1]
        assert f"{flag} {name}: is not a local path, not in the Hugging Face cache" in err
        assert f"give {flag} its path" in err
    assert main(words(sdxl_folder, tmp_path / "out", "--t5", "nobody/t5")) == 2
    assert "--t5 nobody/t5: is not a local path" in capsys.readouterr().err
    assert main(words(sdxl_folder, tmp_path / "out", "--unet", "nobody/unets:4.safetensors")) == 2
    assert "--unet nobody/unets:4.safetensors: is not a local path" in capsys.readouterr().err
    line = ["synthesize", "--engine", "diffusers", "--classes", "cat", "--count", "1", "--out", str(tmp_path / "out")]
    assert main(line) == 2
    assert "--preset (sd14, sdxl-lightning) or --model" in capsys.readouterr().err
    assert main([*line, "--preset", "sdxl-lightning", "--steps", "5"]) == 2
    assert "UNets for 2, 4, 8 steps" in capsys.readouterr().err


def test_folders_that_are_no_text_to_image_pipeline_are_named(sd_folder: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "empty").mkdir()
    shutil.copytree(sd_folder, tmp_path / "partial")
    shutil.rmtree(tmp_path / "partial" / "unet")
    unconditional = tmp_path / "unconditional"
    diffusers.DDPMPipeline(
        diffusers.UNet2DModel(sample_size=8, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1,
                              down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2),
        diffusers.DDPMScheduler(),
    ).save_pretrained(unconditional)  # fmt: skip
    for part in ("unet", "text_encoder"):  # half a download
        shutil.copytree(sd_folder, tmp_path / f"cut_{part}")
        weights = next((tmp_path / f"cut_{part}" / part).glob("*.safetensors"))
        weights.write_bytes(weights.read_bytes()[:700])
    for folder, message in (
        ("empty", "no model_index.json"),
        ("cut_unet", "not a complete pipeline"),
        ("cut_text_encoder", "not a complete pipeline"),
        ("partial", "not a complete pipeline"),
        ("unconditional", "not a text-to-image pipeline"),
    ):
        assert main(words(tmp_path / folder, tmp_path / "out")) == 2
        assert message in capsys.readouterr().err


def test_a_model_too_large_for_memory_is_named(
    sd_folder: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    monkeypatch.setattr(diffusers.DiffusionPipeline, "to", full)
    assert main(words(sd_folder, tmp_path / "out")) == 2
    assert "tiny-sd: out of memory while loading it: give --dtype" in capsys.readouterr().err


def test_weights_of_another_unet_are_refused(sd_folder: Path, sdxl_folder: Path) -> None:
    asked = DiffusionSettings(model=str(sd_folder), unet=str(sdxl_folder.parent / "unet.safetensors"), device="cpu")
    with pytest.raises(UserError, match="does not fit the UNet"):
        DiffusionEngine(asked, {"cat": ["a cat"]}, None, 3, seed=0)
