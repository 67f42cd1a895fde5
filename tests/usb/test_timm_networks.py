"""Every algorithm trains timm's networks; a run with pretrained weights says so, and is predicted with and exported."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from semilearn.core.utils import ALGORITHMS

from usb_rsmatch.cli import main
from usb_rsmatch.data.images.decode import fit, read_image
from usb_rsmatch.errors import UserError
from usb_rsmatch.inference.export import export, load_exported
from usb_rsmatch.inference.loaded_run import load_run
from usb_rsmatch.usb import compat, training
from usb_rsmatch.usb.config import resolve

TEXT = {"multimatch"}
ALL = sorted(set(ALGORITHMS.keys()) - TEXT)


@pytest.fixture
def short(tiny: dict[str, Any]) -> dict[str, Any]:
    steps = {"num_train_iter": 2, "epoch": 1, "num_eval_iter": 2}
    return {**tiny, **steps, "img_size": 32, "rs_loader": "batched", "optim": "AdamW", "lr": 1e-3, "layer_decay": 0.5}


def test_all_algorithms_are_tested() -> None:
    assert len(ALL) >= 26 and {"rsmatch", "openmatch", "iomatch", "scomatch", "uasd"} < set(ALL)


@pytest.mark.parametrize("net", ["test_vit", "test_efficientnet"])
@pytest.mark.parametrize("algorithm", ALL)
def test_every_algorithm_trains_networks_of_timm(algorithm: str, net: str, short: dict[str, Any]) -> None:
    """First layers learn more slowly than heads, position embeddings do not decay, and the weights move."""
    own = {"num_wu_iter": 1} if algorithm == "dash" else {}
    args, notes = resolve({**short, **own, "algorithm": algorithm, "net": f"timm:{net}", "weight_decay": 0.1})
    assert notes == []
    args.device = "cpu"
    run = training.build(args)
    names = {id(weight): name for name, weight in run.model.named_parameters()}
    rates, decays = {}, {}
    for group in run.optimizer.param_groups:
        for weight in group["params"]:
            name = names.pop(id(weight)).removeprefix("backbone.").removeprefix("model.")
            rates[name], decays[name] = group["initial_lr"], group["weight_decay"]
    assert names == {}
    first = {"test_vit": "patch_embed.proj.weight", "test_efficientnet": "conv_stem.weight"}[net]
    head = {"test_vit": "head.weight", "test_efficientnet": "classifier.weight"}[net]
    assert rates[head] == 1e-3 and rates[first] < 0.1 * rates[head] and decays[first] == 0.1
    assert net != "test_vit" or decays["pos_embed"] == decays["cls_token"] == 0
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    with compat.cuda_calls_stay_on_cpu():
        if hasattr(run, "warmup"):
            run.warmup()
        run.train()
    after = run.model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name for name in moved if name.endswith((first, head))} and len(moved) > len(before) / 2
    assert run.out_dict["loss"].isfinite()


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "vit.pth"
    torch.save({"model": timm.create_model("test_vit").state_dict()}, path)
    return path


def test_a_pretrained_run_tells_its_input_and_is_loaded_without_the_file(
    short: dict[str, Any], weights: Path, tmp_path: Path
) -> None:
    """Grey digits of 32 px, a ViT of 160 px: predicted with by its run folder alone, exported, and loaded again."""
    config = {**short, "algorithm": "rsmatch", "net": "timm:test_vit", "use_pretrain": True}
    notes: list[str] = []
    result = training.train({**config, "pretrain_path": str(weights)}, note=notes.append)
    assert notes[:2] == [
        f"note: pretrain_path: {weights} has a head of 1000 outputs: a new one of 10 outputs is trained",
        "note: timm:test_vit: images are resized from 32 to 160 px (bicubic), normalised by mean 0.5, 0.5, 0.5 and "
        "deviation 0.5, 0.5, 0.5 as it was trained",
    ]
    assert notes[4] == (
        "rs_norm: split has no effect, since the network has 0 BatchNorm layers: real and synthetic images are "
        "normalised alike (13 LayerNorm)"
    )
    weights.unlink()  # the run folder is enough from here on
    run = load_run(Path(config["save_dir"]) / "run", note=lambda line: None)
    images = run.test.images[:40]
    probabilities = run.predict(images)
    assert run.algorithm.network.backbone.input.size == 160
    accuracy = float((run.predict(run.test.images).argmax(1) == run.test.labels).mean())
    assert accuracy == pytest.approx(result["accuracy"]["last"], abs=1e-9)

    pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install 'usb-rsmatch[onnx]'")
    import onnxruntime

    export(run, "onnx", tmp_path / "vit.onnx")  # also compares logits with the run's
    session = onnxruntime.InferenceSession(str(tmp_path / "vit.onnx"))
    batch = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    logits, found, synthetic = session.run(None, {"images": batch})
    assert logits.shape == (40, 10) and np.abs(found - probabilities).max() < 1e-4
    assert np.abs(synthetic - run.synthetic_score(images)).max() < 1e-4
    export(run, "safetensors", tmp_path / "vit.safetensors")
    again = load_exported(tmp_path / "vit.safetensors")
    assert np.abs(again(torch.from_numpy(batch))[1].numpy() - probabilities).max() < 1e-5


def test_both_loaders_train_at_the_networks_size_and_the_detector_at_the_images(
    short: dict[str, Any], weights: Path
) -> None:
    pretrained = {"net": "timm:test_vit", "use_pretrain": True, "pretrain_path": str(weights), "net_size": 64}
    for loader in ("pil", "batched"):
        args, _ = resolve({**short, **pretrained, "algorithm": "rsmatch", "rs_loader": loader})
        args.device = "cpu"
        run = training.build(args)
        seen: dict[str, set[tuple[int, ...]]] = {"network": set(), "detector": set()}
        parts = (("network", run.network.backbone.model.patch_embed), ("detector", run.detector))
        for name, part in parts:
            part.register_forward_pre_hook(lambda _, inputs, shapes=seen[name]: shapes.add(tuple(inputs[0].shape[1:])))
        with compat.cuda_calls_stay_on_cpu():
            run.train()
        assert seen == {"network": {(3, 64, 64)}, "detector": {(3, 32, 32)}}


def test_weights_that_cannot_be_fetched_are_an_error(short: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    config = {**short, "net": "timm:test_vit.r160_in1k", "use_pretrain": True}
    with pytest.raises(UserError, match=r"the weights of timm:test_vit.r160_in1k cannot be fetched .* pretrain_path"):
        training.train(config, note=lambda line: None)


def test_a_stopped_run_of_a_pretrained_network_resumes_to_the_same_weights(
    short: dict[str, Any], weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from usb_rsmatch.errors import Interrupted

    config = {**short, "algorithm": "rsmatch", "net": "timm:test_vit", "use_pretrain": True}
    config |= {"pretrain_path": str(weights), "net_size": 32, "num_train_iter": 4, "rs_warmup": 0}
    root = Path(config["save_dir"])
    training.train({**config, "save_name": "whole"}, note=lambda line: None)
    left = iter([False, True])
    with monkeypatch.context() as patch:
        patch.setattr(training.StopBetweenSteps, "__call__", lambda self: next(left))
        with pytest.raises(Interrupted):
            training.train({**config, "save_name": "stopped"}, note=lambda line: None)
    training.train({**config, "save_name": "stopped"}, note=lambda line: None)
    first, second = (torch.load(root / name / "latest_model.pth")["model"] for name in ("whole", "stopped"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_commands_work_on_a_run_of_a_pretrained_network(short: dict[str, Any], weights: Path, tmp_path: Path) -> None:
    """predict, audit and report, from the run folder: 32 px photographs in files, a ViT of 64 px."""
    from PIL import Image
    from sklearn.datasets import load_sample_image

    pretrained = {"net": "timm:test_vit", "use_pretrain": True, "pretrain_path": str(weights), "net_size": 64}
    training.train({**short, **pretrained, "algorithm": "rsmatch"}, note=lambda line: None)
    folder, photo = Path(short["save_dir"]), load_sample_image("flower.jpg")
    (tmp_path / "images").mkdir()
    for number in range(12):
        crop = photo[32 * number : 32 * number + 64, 100:164]
        Image.fromarray(crop).save(tmp_path / "images" / f"{number}.png")
    images, run = str(tmp_path / "images"), str(folder / "run")
    assert main(["predict", images, "--run", run, "--out", str(tmp_path / "p.csv")]) == 0
    assert main(["audit", images, "--run", run, "--out", str(tmp_path / "a.csv")]) == 0
    assert main(["report", str(folder), "--out", str(tmp_path / "report")]) == 0
    for name in ("p.csv", "a.csv"):
        assert len((tmp_path / name).read_text().splitlines()) == 13
    loaded = load_run(folder / "run", note=lambda line: None)
    with (tmp_path / "p.csv").open() as file:
        rows = list(csv.DictReader(file))
    pixels = np.stack([fit(read_image(Path(row["file"])), 32, 1) for row in rows])
    probabilities, synthetic = loaded.predict(pixels), loaded.synthetic_score(pixels)
    assert [row["class"] for row in rows] == [loaded.classes[c] for c in probabilities.argmax(1)]
    assert [float(row["confidence"]) for row in rows] == pytest.approx(probabilities.max(1).tolist(), abs=1e-4)
    assert [float(row["synthetic"]) for row in rows] == pytest.approx(synthetic.tolist(), abs=1e-4)
    assert "| rsmatch" in (tmp_path / "report" / "report.md").read_text()


def test_a_notebook_trains_a_network_of_timm(short: dict[str, Any], weights: Path) -> None:
    """USB's own functions, with the keys of the pretrained network in its configuration."""
    from semilearn import Trainer, get_algorithm, get_config, get_data_loader, get_dataset, get_net_builder

    pretrained = {"net": "timm:test_vit", "use_pretrain": True, "pretrain_path": str(weights), "net_size": 64}
    config = get_config({**short, **pretrained, "rs_loader": "pil", "num_classes": 10, "gpu": None})
    algorithm = get_algorithm(config, get_net_builder(config.net, from_name=False), tb_log=None, logger=None)
    backbone = algorithm.model
    assert backbone.input.size == 64 and backbone.changes_values
    own = torch.load(weights)["model"]["blocks.1.mlp.fc1.weight"]
    assert torch.equal(backbone.model.blocks[1].mlp.fc1.weight, own)
    data = get_dataset(config, config.algorithm, config.dataset, config.num_labels, config.num_classes)
    loaders = [get_data_loader(config, data[f"train_{kind}"], 4, num_workers=0) for kind in ("lb", "ulb")]
    evaluation = get_data_loader(config, data["eval"], 128, data_sampler=None, drop_last=False, num_workers=0)
    Trainer(config, algorithm).fit(*loaders, evaluation)
    assert algorithm.it == 2 and not torch.equal(backbone.model.blocks[1].mlp.fc1.weight, own)
